"""`ipro curate` whole: resumed, judged anew without measuring, asked about; train and evaluate take it."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_clips
import torch
from filelock import FileLock
from test_clips_vision import answer as send
from test_commands import ROOT, SMALL, answer, refused

from ipro_core import curating
from ipro_core.__main__ import _parser, main
from ipro_core.clips.manifest import kept_clips, read_manifest
from ipro_core.clips.measured import measure
from ipro_core.clips.scenes import clip_scenes, find_clips
from ipro_core.clips.settings import MeasureSettings
from ipro_core.clips.video import read_frames
from ipro_core.commands.opening import warn_of_known_clips
from ipro_core.evaluation.charts import histogram
from ipro_core.tinyworld import FACE_PACK, FRAMING, open_tiny_world
from ipro_core.types import Framing

pytestmark = pytest.mark.usefixtures("one_thread")

# The embedded world is 96 px wide at 8 frames a second, and its recogniser tells fewer people apart.
TINY = [
    "--faces", str(FACE_PACK), "--looks", "8", "--least-side", "90", "--least-fps", "8",
    "--least-seconds", "2",
    "--largest-face", "0", "--smallest-face", "8", "--least-sharpness", "0.1", "--same-person", "0.8",
    "--evaluation-share", "0.3",
]  # fmt: skip


def curate(folder: Path, clips: Path, *more: str) -> None:
    assert main(["curate", str(clips), "--out", str(folder), *TINY, *more, "--json"]) == 0


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tiny_clips.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def curated(clips, tmp_path_factory):
    """A curation that nobody changes."""
    folder = tmp_path_factory.mktemp("curated")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    curate(folder, clips)
    torch.set_num_threads(threads)
    return folder


def rows(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in read_manifest(folder / "manifest.jsonl")}


def test_what_is_known_of_each_clip_is_what_the_manifest_says(curated, clips):
    told = rows(curated)
    assert {name: row["reason"] for name, row in told.items() if not row["kept"]} == {
        "nobody": "coverage",
        "two_again": "resolution",
    }
    assert {name for name, row in told.items() if row["kept"]} == {
        *("film 1", "film 2", "film 3", "zero", "two", "three")
    }
    (failed,) = [rule for rule in told["nobody"]["rules"] if not rule["passed"]]
    assert (failed["rule"], failed["value"], failed["limit"]) == ("coverage", 0.0, 0.4)
    assert (told["film 2"]["start"], told["film 2"]["end"], told["film 2"]["shots"]) == (2.0, 4.0, 3)
    assert all(Path(row["video"]).parent == clips for row in told.values())
    assert (
        {row["licence"] for row in told.values()} == {row["consent"] for row in told.values()} == {"unknown"}
    )


def test_a_person_in_two_files_is_one_number_on_one_side(curated):
    told = rows(curated)
    # Person 0 is in the first and last shot of the film and in `zero`.
    (person,) = told["zero"]["people"]
    assert told["film 1"]["people"] == told["film 3"]["people"] == [person] != told["film 2"]["people"]
    sides = {split: {n for row in told.values() if row["split"] == split for n in row["people"]}
             for split in ("tuning", "evaluation")}  # fmt: skip
    assert sides["tuning"] and sides["evaluation"] and not sides["tuning"] & sides["evaluation"]
    assert len({told[name]["split"] for name in ("zero", "film 1", "film 2", "film 3")}) == 1


def test_other_limits_need_no_detector(curated, clips, tmp_path, monkeypatch, capsys):
    shutil.copytree(curated, tmp_path / "again")
    curated = tmp_path / "again"

    def gone(*_):
        raise RuntimeError("the detector is not to be had")

    monkeypatch.setattr(curating, "load_face_models", gone)
    measures, before = (curated / "measures.jsonl").read_bytes(), (curated / "manifest.jsonl").read_bytes()
    curate(curated, clips, "--least-side", "64", "--least-coverage", "0")
    told = answer(capsys)
    # Now the small copy is large enough to be known as a copy, and the grey clip may stay.
    assert rows(curated)["two_again"]["reason"] == "copy" and rows(curated)["nobody"]["kept"]
    assert (told["kept"], told["shots"], told["dropped"]) == (7, 8, {"copy": 1})
    curate(curated, clips)
    assert (curated / "manifest.jsonl").read_bytes() == before
    assert (curated / "measures.jsonl").read_bytes() == measures
    with pytest.raises(RuntimeError, match="not to be had"):  # measuring in another way does need it
        main(["curate", str(clips), "--out", str(curated), *TINY, "--looks", "5"])


def test_a_killed_curation_loses_the_clip_in_work_and_goes_on(clips, curated, tmp_path):
    arguments = ["curate", str(clips), "--out", str(tmp_path), *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ipro_core", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    log, end = tmp_path / "measures.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 4) and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = log.read_bytes()
    assert written.count(b"\n") >= 4 and not (tmp_path / "manifest.jsonl").exists()
    with log.open("ab") as file:
        file.write(b'{"video": "half a li')  # as a kill in the midst of writing leaves it
    assert main(arguments) == 0
    # What was there is there still, nothing was measured twice, the verdicts are those of an unbroken run.
    assert log.read_bytes().startswith(written) and len(log.read_bytes().splitlines()) == 8
    assert (tmp_path / "manifest.jsonl").read_bytes() == (curated / "manifest.jsonl").read_bytes()


def test_two_processes_do_not_write_one_folder(curated, clips):
    def measuring():
        how = {"settings": MeasureSettings(), "names": ["other networks"]}
        return measure([clips / "zero.mp4"], curated, lambda: pytest.fail("opened"), **how)

    measuring()  # a generator that is asked for nothing holds nothing
    with (
        FileLock(curated / "curate.lock", timeout=0),
        pytest.raises(ValueError, match="Another process curates into"),
    ):
        next(measuring())


def test_licence_and_consent_come_from_the_file_beside_the_clip_or_from_the_flags(
    clips, curated, tmp_path, capsys
):
    known = tmp_path / "clips"
    known.mkdir()
    for name in ("zero", "two", "three"):
        (known / f"{name}.mp4").write_bytes((clips / f"{name}.mp4").read_bytes())
    (known / "source.json").write_text('{"licence": "CC BY 4.0"}')
    (known / "two.json").write_text('{"licence": "own", "consent": "signed", "note": "anything"}')
    out = tmp_path / "out"
    curate(out, known, "--consent", "public officials", "--known-licence")
    told = {name: (row["licence"], row["consent"], row["kept"]) for name, row in rows(out).items()}
    assert told["zero"] == ("CC BY 4.0", "public officials", True) and told["two"] == ("own", "signed", True)
    curate(out, known, "--known-licence")
    assert [row["reason"] for row in rows(out).values()] == ["licence", "", "licence"]
    (known / "two.json").write_text("CC BY")
    capsys.readouterr()
    assert "two.json is no JSON object" in refused(capsys, "curate", known, "--out", out, *TINY)


def test_the_page_opens_alone_and_shows_every_limit_and_picture(curated, clips, tmp_path):
    page = (curated / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    for flag in ("--least-coverage", "--largest-face", "--least-sharpness"):
        assert flag in page
    assert page.count("data:image/jpeg") == 8 and "6 of 8 shots are kept" in page
    assert "coverage: 0 (wanted: at least 0.4 of the frames)" in page
    evil = tmp_path / "clips"
    evil.mkdir()
    (evil / "<b>bold.mp4").write_bytes((clips / "zero.mp4").read_bytes())
    curate(tmp_path / "out", evil)
    assert "<b>bold" not in (tmp_path / "out" / "index.html").read_text()


def test_every_command_of_the_page_in_docs_is_understood():
    lines = (ROOT / "docs" / "curation.md").read_text().splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("    ipro ")]
    assert len(commands) == 6
    for command in commands:
        _parser().parse_args(command)


def test_a_histogram_counts_every_value_once_on_its_side_of_the_limit():
    chart = histogram([0.5, 0.5, 0.9], [0.1], limit=0.4, title="coverage")
    bars = chart.split('<rect class="bar ')[1:]
    counts = {kind: [int(bar.split("<title>")[1].split("<")[0]) for bar in bars if bar.startswith(kind)]
              for kind in ("rise", "fall")}  # fmt: skip
    assert sorted(counts["rise"]) == [1, 2] and counts["fall"] == [1] and "limit 0.4" in chart
    assert "level" not in histogram([1.0, 1.0], [], limit=None, title="people")


def test_the_vision_model_is_asked_of_what_passes_and_writes_the_prompts(clips, tmp_path, server, capsys):
    covered = 2 * [json.dumps({"covered_by": "a mask", "occluded": "yes", "depicted": "person"})]
    free = json.dumps({"covered_by": "nothing", "occluded": "no", "depicted": "person"})

    def model(handler):
        asked = server.asked[-1]
        names = asked["response_format"]["json_schema"]["schema"]["properties"]
        picture = asked["messages"][0]["content"][1]["image_url"]["url"].split(",")[1]
        assert base64.b64decode(picture)[:2] == b"\xff\xd8"  # a JPEG
        said = '{"caption": "The person turns to the side and smiles."}'
        if "occluded" in names:
            said = covered.pop() if covered else free
        send(handler, 200, json.dumps({"choices": [{"message": {"content": said}}]}))

    server.replies = [model]
    named = clips / "two.txt"
    named.write_text("a person comes closer")
    asking = ["--vision-model", "m", "--vision-endpoint", server.address]
    try:
        curate(tmp_path, clips, *asking)
        told, asked = rows(tmp_path), len(server.asked)
        # Six pass all else: two questions on the face of each; a caption where the user wrote none.
        assert asked == 6 * 2 + 5
        assert [row["name"] for row in told.values() if row["reason"] == "occlusion"] == ["film 1"]
        assert told["film 1"]["answers"]["covered_by"] == "a mask"
        assert told["two"]["prompt"] == "a person comes closer"
        assert told["three"]["prompt"] == "The person turns to the side and smiles."
        prompts = {
            str(clip.video.stem): clip.prompt
            for split in ("tuning", "evaluation")
            for clip in kept_clips(tmp_path / "manifest.jsonl", split)
        }
        assert prompts["two"] == told["two"]["prompt"] and prompts["film"] == told["three"]["prompt"]
        curate(tmp_path, clips, *asking)
        assert len(server.asked) == asked  # every answer was kept
    finally:
        named.unlink()


def test_a_vision_model_that_is_not_there_is_one_sentence_and_costs_no_measurement(clips, tmp_path, capsys):
    asking = ["--vision-model", "m", "--vision-endpoint", "http://127.0.0.1:9/v1"]
    sentence = refused(capsys, "curate", clips / "zero.mp4", "--out", tmp_path, *TINY, *asking)
    assert "Nobody answers at http://127.0.0.1:9/v1/chat/completions" in sentence
    assert len((tmp_path / "measures.jsonl").read_text().splitlines()) == 1


def test_a_manifest_gives_the_frames_of_its_shots_and_no_frame_beyond_them(curated, clips):
    found = clip_scenes(find_clips([curated / "manifest.jsonl"], "tuning"), FRAMING)
    found += clip_scenes(find_clips([curated / "manifest.jsonl"], "evaluation"), FRAMING)
    scenes = {scene.name: scene for scene in found}
    assert set(scenes) == {"film 0.0s", "film 2.0s", "film 4.0s", "zero", "two", "three"}
    film = read_frames(clips / "film.mp4")
    small = Framing(96, 96, 9, 8.0)
    (second,) = clip_scenes([scenes["film 2.0s"].clip], small)
    assert torch.equal(second.frames(), film[16:25]) and torch.equal(second.first(), film[16])
    assert torch.equal(torch.cat(list(second.pieces())), film[16:25])
    # At half the pace every other frame; the shot has 8 of them, and 9 would reach into the next.
    (slow,) = clip_scenes([scenes["film 2.0s"].clip], Framing(96, 96, 8, 4.0))
    assert torch.equal(slow.frames(), film[16:32:2])
    with pytest.raises(ValueError, match=r"film.mp4#t=2.000,4.000 is too short, 2.0 seconds: 9 frames at 4"):
        clip_scenes([scenes["film 2.0s"].clip], Framing(96, 96, 9, 4.0))
    # A file of one shot is the file: what was prepared of it without a manifest is found again.
    (whole,) = clip_scenes([clips / "zero.mp4"], FRAMING)
    assert scenes["zero"] == whole and str(whole.clip) == str(clips / "zero.mp4")


def test_what_is_no_manifest_or_keeps_nothing_is_a_sentence(curated, tmp_path):
    with pytest.raises(ValueError, match=r"There is no manifest at .*nowhere\.jsonl"):
        kept_clips(tmp_path / "nowhere.jsonl", "tuning")
    (tmp_path / "other.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl is no manifest: give a manifest.jsonl"):
        kept_clips(tmp_path / "other.jsonl", "tuning")
    dropped = [json.dumps({**row, "kept": False}) for row in rows(curated).values()]
    (tmp_path / "manifest.jsonl").write_text("\n".join(dropped) + "\n")
    with pytest.raises(ValueError, match=r"keeps no clip for evaluation \(0 of 8 are kept in all\)"):
        kept_clips(tmp_path / "manifest.jsonl", "evaluation")


def test_train_takes_the_tuning_split_and_evaluate_the_other(curated, tmp_path, caplog, capsys):
    manifest, run = str(curated / "manifest.jsonl"), tmp_path / "run"
    assert main(["train", "--run", str(run), "--clips", manifest, *SMALL, "--updates", "1", "--json"]) == 0
    assert answer(capsys)["updates"] == 1
    config = json.loads((run / "config.json").read_text())
    assert config["clips"] == [manifest]
    assert main(["train", "--run", str(run), "--resume", "--updates", "2"]) == 0
    caplog.clear()
    assert main(["evaluate", "--run", str(run), "--clips", manifest, "--seeds", "1", "--json"]) == 0
    judged = kept_clips(Path(manifest), "evaluation")
    assert answer(capsys)["scenes"] == len(judged) > 0 and "judge it on other people" not in caplog.text
    (known, *_) = (clip.video for clip in kept_clips(Path(manifest), "tuning") if clip.end is None)
    warn_of_known_clips([known], config["clips"])
    assert f"The run was tuned on {known}: judge it on other people" in caplog.text
    assert len(open_tiny_world().read_clips([manifest])) == 6 - len(judged)
