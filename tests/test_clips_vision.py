"""The vision-language client against a real server on loopback: what it asks, refuses, repeats, remembers."""

import json
import time
from urllib.parse import urlsplit

import pytest
from vision_server import GOOD, Server, answer

from ipro_core.clips.settings import ENDPOINT, KEY, OLLAMA, VisionSettings
from ipro_core.clips.vision import VisionClient, check

SCHEMA = {
    "covered_by": {"type": "string", "maxLength": 10},
    "occluded": {"type": "string", "enum": ["yes", "no"]},
}


def client(server, folder, **settings) -> VisionClient:
    known = {"vision_model": "qwen2.5vl", "vision_endpoint": server.address, **settings}
    return VisionClient(VisionSettings(**known), folder / "vision.jsonl")


def test_pictures_and_schema_are_sent_and_a_valid_answer_is_kept_for_ever(server, tmp_path):
    assert client(server, tmp_path).ask("Covered?", [b"a jpeg"], SCHEMA) == GOOD
    (asked,) = server.asked
    text, picture = asked["messages"][0]["content"]
    assert text == {"type": "text", "text": "Covered?"} and asked["model"] == "qwen2.5vl"
    assert picture["image_url"]["url"] == "data:image/jpeg;base64,YSBqcGVn"  # base64 of "a jpeg"
    bound = asked["response_format"]["json_schema"]["schema"]
    assert bound["properties"] == SCHEMA and bound["required"] == list(SCHEMA) and asked["temperature"] == 0
    server.close()  # what was answered once needs no server
    assert client(server, tmp_path).ask("Covered?", [b"a jpeg"], SCHEMA) == GOOD
    with pytest.raises(ValueError, match="Nobody answers at http://127"):
        client(server, tmp_path).ask("Covered?", [b"another"], SCHEMA)


def test_the_key_goes_from_the_environment_into_the_header_and_nowhere_else(server, tmp_path, monkeypatch):
    asking = client(server, tmp_path)
    asking.ask("Covered?", [b"one"], SCHEMA)
    monkeypatch.setenv(KEY, "sesame")
    asking.ask("Covered?", [b"two"], SCHEMA)
    assert "Authorization" not in server.headers[0]
    assert server.headers[1]["Authorization"] == "Bearer sesame"
    assert "sesame" not in (tmp_path / "vision.jsonl").read_text() + json.dumps(server.asked)


@pytest.mark.parametrize(
    "said",
    [
        "It is covered by a phone.",
        '{"occluded": "yes"}',
        '{"covered_by": "a phone", "occluded": "maybe"}',
        '{"covered_by": "a very large telephone", "occluded": "yes"}',
        '{"covered_by": 3, "occluded": "yes"}',
        '{"covered_by": "a phone", "occluded": "yes", "sure": "yes"}',
        "[1, 2]",
        "",
    ],
)
def test_an_answer_that_is_not_of_the_schema_is_asked_again_with_what_was_wrong(server, tmp_path, said):
    server.replies = [said, json.dumps(GOOD)]
    assert client(server, tmp_path).ask("Covered?", [], SCHEMA) == GOOD
    first, second = server.asked
    assert len(first["messages"]) == 1 and len(second["messages"]) == 3
    assert "not valid" in second["messages"][2]["content"]


def test_an_answer_that_stays_wrong_is_none_and_is_not_kept(server, tmp_path):
    server.replies = ["no idea"]
    assert client(server, tmp_path, vision_tries=2).ask("Covered?", [], SCHEMA) is None
    assert len(server.asked) == 2 and not (tmp_path / "vision.jsonl").exists()


def test_a_fenced_answer_and_one_after_thinking_are_understood(server, tmp_path):
    asking = client(server, tmp_path)
    for number, said in enumerate(
        (f"```json\n{json.dumps(GOOD)}\n```", f"<think>{{?}}</think>{json.dumps(GOOD)}")
    ):
        server.replies = [said]
        assert asking.ask(f"Covered? {number}", [], SCHEMA) == GOOD
    assert len(server.asked) == 2


def test_a_server_that_knows_no_schema_is_asked_without_one_and_checked_all_the_same(server, tmp_path):
    refuses = lambda handler: answer(handler, 400, '{"error": "response_format is not supported"}')  # noqa: E731
    server.replies = [refuses, '{"occluded": "yes"}', json.dumps(GOOD)]
    assert client(server, tmp_path).ask("Covered?", [], SCHEMA) == GOOD
    assert ["response_format" in asked for asked in server.asked] == [True, False, False]


def test_a_busy_server_is_asked_again_and_a_refusing_one_is_told_of_at_once(server, tmp_path):
    busy = lambda handler: answer(handler, 503, "loading the model")  # noqa: E731
    server.replies = [busy, busy, json.dumps(GOOD)]
    assert client(server, tmp_path).ask("Covered?", [], SCHEMA) == GOOD and len(server.asked) == 3
    server.replies = [busy]
    assert client(server, tmp_path).ask("And now?", [], SCHEMA) is None and len(server.asked) == 6
    server.replies = [lambda handler: answer(handler, 404, 'model "qwen2.5vl" not found')]
    with pytest.raises(ValueError, match=r'answers 404: model "qwen2.5vl" not found'):
        client(server, tmp_path).ask("And again?", [], SCHEMA)
    assert len(server.asked) == 7


def test_a_server_that_is_too_slow_or_hangs_up_is_asked_again(server, tmp_path):
    slow = lambda handler: time.sleep(0.4)  # noqa: E731
    server.replies = [slow, json.dumps(GOOD)]
    assert client(server, tmp_path, vision_timeout=0.2).ask("Covered?", [], SCHEMA) == GOOD
    server.replies = [lambda handler: handler.connection.close(), json.dumps(GOOD)]
    assert client(server, tmp_path).ask("And now?", [], SCHEMA) == GOOD
    server.replies = [lambda handler: answer(handler, 200, "not JSON at all"), json.dumps(GOOD)]
    assert client(server, tmp_path).ask("And again?", [], SCHEMA) == GOOD


def test_nothing_is_sent_where_a_server_points(server, tmp_path):
    elsewhere = Server()
    server.replies = [lambda handler: answer(handler, 302, "", Location=elsewhere.address)]
    with pytest.raises(ValueError, match="answers 302"):
        client(server, tmp_path).ask("Covered?", [b"a face"], SCHEMA)
    assert not elsewhere.asked
    elsewhere.close()


def test_another_model_and_another_picture_are_other_questions(server, tmp_path):
    client(server, tmp_path).ask("Covered?", [b"one"], SCHEMA)
    client(server, tmp_path).ask("Covered?", [b"two"], SCHEMA)
    client(server, tmp_path, vision_model="gemma3").ask("Covered?", [b"one"], SCHEMA)
    assert len(server.asked) == 3


def test_a_kept_answer_that_was_cut_short_is_asked_for_again(server, tmp_path):
    client(server, tmp_path).ask("Covered?", [b"one"], SCHEMA)
    client(server, tmp_path).ask("Covered?", [b"two"], SCHEMA)
    kept = tmp_path / "vision.jsonl"
    kept.write_bytes(kept.read_bytes()[:-9])
    for picture in (b"one", b"two", b"one"):
        assert client(server, tmp_path).ask("Covered?", [picture], SCHEMA) == GOOD
    assert len(server.asked) == 3 and len(kept.read_text().splitlines()) == 2


@pytest.mark.parametrize("address", ["127.0.0.1:11434", "file:///etc/passwd", "ftp://models.example"])
def test_what_is_no_address_is_refused(tmp_path, address):
    with pytest.raises(ValueError, match="must be an address such as http://127"):
        VisionClient(VisionSettings("m", address), tmp_path / "vision.jsonl")


def test_without_an_address_it_is_the_environments_else_this_machines(server, tmp_path, monkeypatch):
    monkeypatch.setenv(ENDPOINT, server.address)
    assert client(server, tmp_path, vision_endpoint="").ask("Covered?", [], SCHEMA) == GOOD
    monkeypatch.delenv(ENDPOINT)
    assert urlsplit(OLLAMA).hostname == "127.0.0.1"
    assert (
        VisionClient(VisionSettings("m"), tmp_path / "vision.jsonl").address == f"{OLLAMA}/chat/completions"
    )


def test_sending_pictures_to_another_machine_is_said(tmp_path, caplog):
    VisionClient(VisionSettings("m", "https://models.example/v1"), tmp_path / "vision.jsonl")
    assert "Pictures of the clips are sent to models.example" in caplog.text


def test_a_check_gives_the_object_back_or_says_what_is_wrong():
    assert check(dict(GOOD), SCHEMA) == GOOD
    with pytest.raises(ValueError, match="occluded must be one of yes, no, not 'perhaps'"):
        check({**GOOD, "occluded": "perhaps"}, SCHEMA)
