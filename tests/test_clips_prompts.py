"""Prompt lists: the shipped one, a user's, and one by a language model on a server that may answer badly."""

import json
import logging

import pytest

from ipro_core.__main__ import main
from ipro_core.clips.prompts import PERSON, SHIPPED, ask_prompts, read_prompts
from ipro_core.clips.settings import VisionSettings
from ipro_core.clips.vision import VisionClient


def said(*numbers: int, **others: str) -> str:
    """An answer with these prompts, by number."""
    texts = [f"{PERSON} counts to {number} in a quiet room." for number in numbers]
    return json.dumps({f"prompt_{place}": text for place, text in enumerate(texts, 1)} | others)


def client(server, folder):
    return VisionClient(VisionSettings("words", server.address, vision_tries=2), folder / "prompts.jsonl")


def test_fifty_prompts_are_shipped_and_each_has_the_person_once():
    raw = [line for line in SHIPPED.read_text().splitlines() if not line.startswith("#")]
    assert len(set(raw)) == 50 and all(line.count(PERSON) == 1 for line in raw)
    told = read_prompts(person="an old man")
    assert len(told) == 50 and not any(PERSON in prompt for prompt in told)
    assert told[0].startswith("A video of an old man playing") and told[1].startswith("An old man walks")


def test_a_users_list_may_leave_the_person_out_and_hold_notes(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine\n\n  sks walks  \n{person} sits.\n")
    assert read_prompts(path, "sks") == ["sks walks", "Sks sits."]
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)
    with pytest.raises(ValueError, match="There is no prompt list"):
        read_prompts(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no prompt list"):
        read_prompts(path)


def test_a_model_is_asked_until_there_are_enough_good_and_different_ones(server, tmp_path):
    twelve = list(range(1, 13))
    # Of the first ten one lacks the person and one is there twice; the second answer brings the other three.
    server.replies = [
        said(
            *twelve[:10],
            prompt_3="Nobody is to be seen in this place.",
            prompt_4=f"{PERSON} counts to 1 in a quiet room.",
        ),
        said(13, 14, 15),
    ]
    made = ask_prompts(client(server, tmp_path), 11, "counting")
    assert len(server.asked) == 2
    assert [int(prompt.split()[3]) for prompt in made] == [1, 2, 5, 6, 7, 8, 9, 10, 13, 14, 15]
    first, second = (asked["messages"][0]["content"] for asked in server.asked)
    assert isinstance(first, str) and "All are of this: counting." in first and "10 prompts" in first
    assert "- {person} counts to 10" in second and "3 prompts" in second and PERSON in first


def test_a_model_that_repeats_itself_is_told_off_and_not_asked_for_ever(server, tmp_path):
    server.replies = [said(1, 1, 1)]
    with pytest.raises(ValueError, match="gave 1 good prompts, and 3 are wanted"):
        ask_prompts(client(server, tmp_path), 3)


def test_the_command_writes_the_shipped_list_or_a_models(server, tmp_path, capsys, caplog):
    out = tmp_path / "prompts.txt"
    assert main(["prompts", "-o", str(out)]) == 0 and read_prompts(out) == read_prompts()
    server.replies = [said(1, 2)]
    asked = ["--model", "words", "--count", "2", "--vision-endpoint", server.address]
    with caplog.at_level(logging.WARNING):
        assert main(["prompts", "-o", str(out), *asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["count"] == 2
    assert read_prompts(out, "she") == [
        "She counts to 1 in a quiet room.",
        "She counts to 2 in a quiet room.",
    ]
    assert not caplog.text  # this machine's own server: nothing is sent elsewhere
    assert main(["prompts", "-o", str(out), *asked]) == 0 and len(server.asked) == 1  # kept
