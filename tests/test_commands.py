"""The command line: what it prints, what it refuses in one sentence, and a run that survives being killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ipro_core import files
from ipro_core.__main__ import main
from ipro_core.clips.video import read_frames, write_video
from ipro_core.models.lora import export_lora
from ipro_core.runs import Run
from ipro_core.tinyworld import FACE_PACK, FRAMING, open_tiny_world
from ipro_core.tinyworld.scenes import tiny_scenes
from ipro_core.types import FacePool

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SMALL = ["--scenes", "3", "--batch-size", "2", "--microbatch", "2", "--checkpoint-every", "1"]


@pytest.fixture
def clip(tmp_path):
    """A real clip of the embedded world, as a file."""
    path = tmp_path / "clip.mp4"
    write_video(path, next(tiny_scenes("checks", 1)).frames_TCHW, FRAMING.fps)
    return path


def answer(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *arguments) -> str:
    """The one sentence on stderr of a command that must fail."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.split("\r")[-1].splitlines() if line.strip()]
    assert len(lines) == 1
    return lines[0]


def test_pool_and_score_report_as_json(tmp_path, clip, capsys):
    pool = tmp_path / "pool.safetensors"
    assert (
        main(["pool", str(clip), "--faces", str(FACE_PACK), "-o", str(pool), "--min-face", "8", "--json"])
        == 0
    )
    built = answer(capsys)
    assert built["frames"] == 9
    assert built["faces"] == len(FacePool.load(pool).embeddings_PD)
    assert main(["score", str(clip), "--pool", str(pool), "--faces", str(FACE_PACK), "--json"]) == 0
    scored = answer(capsys)
    # A clip against its own pool: the mean of all cosines, the diagonal's ones included, is ceiling².
    assert scored["score"] == pytest.approx(built["ceiling"] ** 2, abs=1e-4)
    assert len(scored["per_frame"]) == 9


def test_a_clip_of_two_people_gives_a_file_for_each(tmp_path, clip, capsys):
    *_, crowded = tiny_scenes("tuning", 7)
    assert (crowded.visible_TK[:, 1] > 0.7).all()
    write_video(tmp_path / "two.mp4", crowded.frames_TCHW, fps=8, crf=1)
    faces = ("--faces", str(FACE_PACK), "--min-face", "8", "-o", str(tmp_path / "pool.safetensors"))
    assert main(["pool", str(tmp_path / "two.mp4"), "--people", "0", *faces, "--json"]) == 0
    told = answer(capsys)
    (other,) = told["others"]
    assert Path(other["pool"]) == tmp_path / "pool_2.safetensors" and other["coverage"] == 1
    subject, bystander = FacePool.load(told["pool"]), FacePool.load(other["pool"])
    assert (subject.embeddings_PD @ bystander.embeddings_PD.T).mean() < 0.5 < subject.self_similarity
    assert "one clip" in refused(capsys, "pool", clip, clip, "--people", "2", *faces)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared: real clips and networks")
def test_real_clips_tell_a_person_from_another_by_a_margin(tmp_path, capsys):
    clips, pool = SHARED / "media" / "derived", tmp_path / "pool.safetensors"
    faces = [
        "--faces",
        str(SHARED / "weights" / "insightface" / "models" / "antelopev2"),
        "--fps",
        "1",
        "--json",
    ]
    assert main(["pool", str(clips / "i2v81_walk_lp_s18.mp4"), "-o", str(pool), *faces]) == 0
    built = answer(capsys)
    assert built["coverage"] == 1.0
    assert 130 < built["face_px"][0] <= built["face_px"][2] < 170
    assert built["self_similarity"] > 0.9
    scores = {}
    for name in ("i2v81_small_s18", "i2v81_dolly_lp_s20"):
        assert main(["score", str(clips / f"{name}.mp4"), "--pool", str(pool), *faces]) == 0
        scores[name] = answer(capsys)["score"]
    assert scores["i2v81_small_s18"] > 0.8
    assert scores["i2v81_dolly_lp_s20"] < 0.3


def test_a_missing_and_an_unreadable_video_are_refused(tmp_path, capsys):
    assert "nowhere.mp4" in refused(capsys, "pool", tmp_path / "nowhere.mp4", "--faces", FACE_PACK)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    assert "broken.mp4" in refused(capsys, "pool", broken, "--faces", FACE_PACK)


def test_a_video_without_a_face_is_refused(tmp_path, capsys):
    grey = tmp_path / "grey.mp4"
    write_video(grey, torch.full((5, 3, 48, 48), 0.5), 8)
    assert "shows a face" in refused(capsys, "pool", grey, "--faces", FACE_PACK)


def test_a_face_pack_with_a_missing_file_is_refused(tmp_path, clip, capsys):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "det_tiny.onnx").write_bytes((FACE_PACK / "det_tiny.onnx").read_bytes())
    assert "no recogniser" in refused(capsys, "pool", clip, "--faces", tmp_path / "pack")


def test_a_lora_of_another_model_is_refused(tmp_path, clip, capsys):
    model = open_tiny_world().model.open()
    model.new_adapter(rank=2)
    path = tmp_path / "other.safetensors"
    export_lora(model, path)
    from safetensors.torch import load_file, save_file

    renamed = {key.replace("blocks.0.", "blocks.39."): tensor for key, tensor in load_file(path).items()}
    save_file(renamed, path)
    assert "another model" in refused(capsys, "evaluate", "--lora", path)


def test_a_run_that_another_process_writes_is_refused(tmp_path, capsys):
    with Run.create(tmp_path / "run", {}):
        assert "another process" in refused(capsys, "train", "--run", tmp_path / "run", "--resume", *SMALL)


def test_a_run_is_never_begun_over_another(tmp_path, capsys):
    Run.create(tmp_path / "run", {}).close()
    assert "--resume" in refused(capsys, "train", "--run", tmp_path / "run", *SMALL)


def test_a_full_disk_is_one_sentence_and_the_older_file_stays(tmp_path, clip, capsys, monkeypatch):
    pool = tmp_path / "pool.safetensors"
    pool.write_bytes(b"older")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    command = ("pool", clip, "--faces", FACE_PACK, "-o", pool, "--min-face", 8)
    assert "disk is full" in refused(capsys, *command)
    assert pool.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "pool.safetensors"]


def test_no_command_shows_a_traceback_for_settings_out_of_their_limits(tmp_path, capsys):
    assert "grad_steps" in refused(capsys, "train", "--run", tmp_path / "run", *SMALL, "--grad-steps", 0)


def train(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "ipro_core", "train", "--run", str(folder), "--updates", "4", *SMALL, *more]


def test_a_killed_run_resumes_bit_for_bit_and_exports(tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(train(whole), cwd=ROOT, check=True, capture_output=True)
    with subprocess.Popen(
        train(broken), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        metrics = broken / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert metrics.read_bytes() != (whole / "metrics.jsonl").read_bytes()
    # A run goes on with the settings it was begun with; nothing but the folder need be repeated.
    resume = [sys.executable, "-m", "ipro_core", "train", "--run", str(broken), "--resume"]
    subprocess.run(resume, cwd=ROOT, check=True, capture_output=True)
    assert metrics.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    lora = tmp_path / "lora.safetensors"
    assert main(["export", "--run", str(broken), "--out", str(lora), "--json"]) == 0
    assert answer(capsys)["update"] == 4
    from safetensors.torch import load_file

    exported, trained = load_file(lora), load_file(whole / "adapters" / "ipro.safetensors")
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[key], trained[key]) for key in exported)


def test_sample_makes_a_video_from_a_picture(tmp_path, capsys):
    from PIL import Image

    frame = (next(tiny_scenes("checks", 1)).first() * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(frame).save(tmp_path / "first.png")
    out = tmp_path / "video.mp4"
    prompt = ["--prompt", "a person turns left and smiles"]
    assert main(["sample", str(tmp_path / "first.png"), *prompt, "-o", str(out), "--json"]) == 0
    assert answer(capsys)["frames"] == 9
    assert out.stat().st_size > 1000


def test_what_an_evaluation_keeps_becomes_a_study(tmp_path, capsys):
    model, lora = open_tiny_world().model.open(), tmp_path / "none.safetensors"
    model.new_adapter(rank=2)  # it begins at nothing, so tuned is base
    export_lora(model, lora)
    videos, few = tmp_path / "videos", ["--held-out", "2", "--seeds", "1"]
    report = ["--report", str(tmp_path / "report.html"), "--keep-videos", str(videos)]
    assert main(["evaluate", "--lora", str(lora), *few, *report]) == 0
    assert main(["study", "make", str(videos), "-o", str(tmp_path / "study"), "--json"]) == 0
    told = answer(capsys)
    assert (told["methods"], told["scenes"], told["pairs"]) == (["base", "tuned"], 2, 2)
    assert told["questions"] == ["identity", "quality", "text", "motion"]
    for base, tuned in zip(sorted(videos.glob("base/*")), sorted(videos.glob("tuned/*")), strict=True):
        # Sampled by two ways of running one network: an encoder makes a last bit's difference a pixel's.
        off = (read_frames(base, 0, 9) - read_frames(tuned, 0, 9)).abs().mean()
        assert base.name == tuned.name and off < 0.005


def test_without_a_reward_the_demo_finds_no_gain(tmp_path, capsys):
    few = ["--updates", "3", "--held-out", "4", "--seeds", "1"]
    assert main(["demo", "--run", str(tmp_path / "run"), "--reward-weight", "0", *SMALL, *few]) == 0
    low, high = answer(capsys)["gain_ci95"]
    assert low <= 0 <= high


def test_the_demo_raises_the_reward_of_what_it_tunes_on_and_leaves_everything_behind(tmp_path, capsys):
    # Two people and one noise are learnt by heart in seconds; a gain on strangers takes the whole demo.
    few = ["--updates", "12", "--scenes", "2", "--batch-size", "2", "--noise-seed", "0"]
    judged = ["--held-out", "2", "--seeds", "1"]
    assert main(["demo", "--run", str(tmp_path / "run"), *few, *judged]) == 0
    figures = answer(capsys)
    assert figures["facesim_base"] < figures["real_ceiling"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rewards = [json.loads(line)["metrics"]["reward"] for line in lines]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05
    for name in ("config.json", "metrics.jsonl", "report.html", "samples/side_by_side.mp4"):
        assert (tmp_path / "run" / name).stat().st_size > 100
    assert (tmp_path / "run" / "adapters" / "ipro.safetensors").exists()


def test_guards_of_a_run_are_told_and_written_beside_its_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), "--updates", "1", *SMALL]) == 0
    asked = ["--hacking", "--quality", "tf,sc", "--held-out", "5", "--seeds", "1", "--json"]
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), *asked]) == 0
    told = answer(capsys)
    assert 0.9 < told["quality"]["figures"]["tf"]["tuned"] <= 1
    assert told["quality"]["figures"]["sc"]["tuned"] is None
    assert "DINO" in told["quality"]["figures"]["sc"]["reason"]
    assert "at least 12 real clips" in told["hacking"]["reason"]
    written = json.loads((run / "report.guards.json").read_text())
    assert written == {"quality": told["quality"], "hacking": told["hacking"]}
    assert "Suspicions" in (run / "report.html").read_text()


def test_guards_that_do_not_go_together_are_refused(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), "--updates", "1", *SMALL]) == 0
    few = ["--held-out", "2", "--seeds", "1"]
    assert "give --hacking" in refused(capsys, "evaluate", "--run", run, *few, "--vision-model", "m")
    assert "no dimension xy" in refused(capsys, "evaluate", "--run", run, *few, "--quality", "xy")
