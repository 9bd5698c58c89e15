"""A vision-language model's verdict, by a real server on loopback that looks at the pictures it is sent."""

import json
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from ipro_core.clips.vision import NobodyAnswers, VisionClient, VisionSettings
from ipro_core.evaluation.compare import SceneVideos
from ipro_core.evaluation.guards import GuardResults, Guards
from ipro_core.evaluation.guards_page import guard_sections
from ipro_core.evaluation.signs import input_face, watch
from ipro_core.evaluation.vision_verdict import (
    HACKING,
    Answer,
    Said,
    Verdicts,
    ask_of_clip,
    clip_pictures,
)
from ipro_core.faces.packs import load_face_models
from ipro_core.tinyworld import FACE_PACK
from ipro_core.tinyworld.scenes import tiny_scenes


@pytest.fixture(scope="module")
def networks():
    return load_face_models(FACE_PACK)


@pytest.fixture(scope="module")
def clips(networks):
    found = []
    for scene in tiny_scenes("checks", 6, 4):
        try:
            reference_D, _ = input_face(scene.frames_TCHW[0], *networks)
        except ValueError:
            continue
        found.append((scene, watch(scene.frames_TCHW, *networks, reference_D)))
    return found


def client(server, folder):
    settings = VisionSettings(vision_model="looker", vision_endpoint=server.address, vision_tries=1)
    return VisionClient(settings, folder / "vision.jsonl")


def says(hacking: str, artifact: str = "none") -> str:
    answer = {name: rule.get("enum", ["frames 3, 8"])[0] for name, rule in HACKING.items()}
    return json.dumps({**answer, "hacking": hacking, "artifact": artifact})


def looks(handler):
    """Calls a clip hacked whose faces, on the third picture, hardly differ from each other."""
    asked = handler.server.asked[-1]["messages"][0]["content"]
    data = b64decode(asked[3]["image_url"]["url"].split(",")[1])
    sheet = np.array(Image.open(BytesIO(data)).convert("L"), dtype=float)
    faces = [sheet[y : y + 160, x : x + 160] for y in (0, 160) for x in range(0, 640, 160)]
    middle = [face[60:110, 55:105] for face in faces]
    hacked = np.mean([abs(face - middle[0]).mean() for face in middle[1:]]) < 4
    said = {"choices": [{"message": {"content": says("yes" if hacked else "no")}}]}
    body = json.dumps(said).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_the_model_is_shown_the_input_the_frames_and_the_faces_and_is_asked_twice(server, tmp_path, clips):
    scene, clip = clips[0]
    server.replies = [says("yes", "frozen face")]
    reference = scene.frames_TCHW[0]
    answer = ask_of_clip(client(server, tmp_path), reference, clip.frames_TCHW, clip.track, "a person smiles")
    assert answer == Answer("yes", "frozen face", "frames 3, 8")
    once, again = server.asked
    content = once["messages"][0]["content"]
    assert "a person smiles" in content[0]["text"] and "8 of" in content[0]["text"]
    assert len(content) == 4
    assert content[1:] != again["messages"][0]["content"][1:]
    # Facts come before what is concluded.
    assert list(once["response_format"]["json_schema"]["schema"]["properties"])[-1] == "hacking"


def test_mirrored_pictures_keep_their_numbers_readable(clips):
    scene, clip = clips[0]
    straight, turned = (
        clip_pictures(scene.frames_TCHW[0], clip.frames_TCHW, clip.track, mirrored=mirrored)
        for mirrored in (False, True)
    )
    assert torch.equal(straight[0].flip(-1), turned[0])
    assert torch.equal(straight[2][:, :18, :14], turned[2][:, :18, :14]), "the same number in the same corner"
    assert torch.equal(straight[2][:, 40:160, :160].flip(-1), turned[2][:, 40:160, :160])


def test_an_answer_that_depends_on_left_and_right_is_none(server, tmp_path, clips):
    scene, clip = clips[0]
    server.replies = [says("yes"), says("no")]
    asked = client(server, tmp_path), scene.frames_TCHW[0], clip.frames_TCHW, clip.track, ""
    assert ask_of_clip(*asked).hacking == "unsure"


def test_an_invalid_answer_is_no_verdict_and_a_missing_server_is_an_error(server, tmp_path, clips):
    scene, clip = clips[0]
    server.replies = ['{"hacking": "maybe"}']
    asked = scene.frames_TCHW[0], clip.frames_TCHW, clip.track, ""
    assert ask_of_clip(client(server, tmp_path), *asked) == Answer(None)
    gone = VisionSettings(vision_model="m", vision_endpoint="http://127.0.0.1:9/v1", vision_tries=1)
    with pytest.raises(NobodyAnswers):
        ask_of_clip(VisionClient(gone, tmp_path / "other.jsonl"), *asked)


def pairs(clips):
    """The tuned model repeats the first frame; the base model is as the real clip."""
    for scene, clip in clips:
        real = clip.frames_TCHW
        still = real[:1].expand_as(real).clone()
        yield SceneVideos(scene.name, scene.prompt, 0, real[0], real, still, real)


def test_control_clips_of_the_users_own_correct_the_rate(server, tmp_path, clips, networks):
    server.replies = [looks]
    server.http.asked = server.asked
    guards = Guards(8.0, faces=networks, client=client(server, tmp_path))
    for _ in guards.watch(pairs(clips)):
        pass
    results = guards.results()
    verdicts = results.verdicts
    assert verdicts
    assert verdicts.rate("frozen").of == 2 * len(clips) and verdicts.rate("real").of == len(clips)
    assert verdicts.rate("tuned").share == 1
    assert verdicts.rate("base") == verdicts.rate("real"), "they are the same clips"
    corrected = verdicts.corrected("tuned")
    assert corrected.value is not None and corrected.value > 0.9
    assert verdicts.corrected("base").value == pytest.approx(0, abs=1e-9)
    page = guard_sections(results)
    assert "looker" in page and "Rogan and Gladen" in page
    figures = results.figures()["verdicts"]
    assert figures["tuned"]["said"]["share"] == 1 and figures["model"] == "looker"


def test_a_model_that_cannot_tell_gives_no_rate():
    said = tuple(
        Said(f"scene {n}", 0, which, Answer("yes"))
        for n in range(10)
        for which in ("base", "tuned", "real", "frozen")
    )
    verdicts = Verdicts(said, "yea-sayer")
    assert verdicts.rate("tuned").share == 1
    told = verdicts.figures()["tuned"]
    assert told["corrected"] is None and "cannot tell" in told["reason"]
    assert "cannot tell" in guard_sections(GuardResults(verdicts=verdicts))


def test_unsure_and_missing_answers_are_counted_apart():
    answers = ("yes", "no", "unsure", None)
    verdicts = Verdicts(tuple(Said("a", n, "tuned", Answer(a)) for n, a in enumerate(answers)), "m")
    assert (verdicts.rate("tuned").count, verdicts.rate("tuned").of) == (1, 2)
    assert verdicts.undecided("tuned").count == 2
