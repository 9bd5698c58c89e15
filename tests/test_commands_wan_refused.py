"""What does not fit together, or into the memory, is told in a sentence before anything is opened."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_wan
import torch
from safetensors import safe_open
from test_commands import refused
from wan_jobs import BOTH, OPENERS

from ipro_core import wan_studio
from ipro_core.__main__ import main
from ipro_core.clips.video import write_video
from ipro_core.models.wan_files import open_wan_file
from ipro_core.training.presets import LOCAL_14B
from ipro_core.types import Framing
from ipro_core.wan_settings import DeviceSettings, WanFiles
from ipro_core.wan_studio import open_wan, plan_wan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "kind, change, told",
    [
        ("I2V-A14B", lambda a, _: {"model": a["high-noise"]}, "is the high-noise expert"),
        ("I2V-A14B", lambda a, _: {"high-noise": a["model"]}, "is the low-noise expert"),
        ("I2V-A14B", lambda a, _: {"high-noise": None, "high-lightning": None}, "one of I2V-A14B's two"),
        ("I2V-A14B", lambda a, b: {"high-noise": b["model"]}, "not two experts of one model"),
        ("I2V-A14B", lambda a, b: {"vae": b["vae"]}, "latents have 16 channels, and those of .* 48: .*2.1"),
        ("I2V-A14B", lambda a, b: {"lightning": b["lightning"]}, "is a LoRA of another model"),
        ("I2V-A14B", lambda a, b: {"high-lightning": b["lightning"]}, "is a LoRA of another model"),
        ("I2V-A14B", lambda a, _: {"text-encoder": a["vae"]}, "no UMT5 text encoder"),
        ("I2V-A14B", lambda a, _: {"vae": a["model"]}, "no Wan autoencoder"),
        ("I2V-A14B", lambda a, _: {"model": a["lightning"]}, "is a LoRA"),
        ("I2V-A14B", lambda a, _: {"vae": None}, "give --vae"),
        ("I2V-A14B", lambda a, _: {"model": None}, "goes with a Wan network"),
        ("I2V-A14B", lambda a, _: {"faces": a["vae"]}, "no face pack"),
        ("I2V-A14B", lambda a, _: {"model": a["model"].with_suffix(".pt")}, "is a pickle"),
        ("I2V-A14B", lambda a, _: {"width": "40"}, "sides that 16 divides, not 5 frames of 40x32"),
        ("I2V-A14B", lambda a, _: {"frames": "6"}, "not 6 frames"),
        ("I2V-A14B", lambda a, _: {"first-tuned-step": "4"}, "takes those from 3 on"),
        ("I2V-A14B", lambda a, _: {"steps": "1"}, "leave nothing to the low-noise expert"),
        ("TI2V-5B", lambda a, _: {"high-noise": a["model"]}, "one network for all steps"),
        ("TI2V-5B", lambda a, b: {"vae": b["vae"]}, "latents have 48 channels, and those of .* 16: .*2.2"),
        ("TI2V-5B", lambda a, b: {"high-lightning": b["lightning"]}, "is for the high-noise expert"),
        ("TI2V-5B", lambda a, _: {"width": "48"}, "sides that 32 divides"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_anything_is_opened(
    jobs, kind, change, told, tmp_path, capsys, monkeypatch
):
    a, b = (jobs[one].files for one in (BOTH if kind == BOTH[0] else BOTH[::-1]))
    for name in OPENERS:
        monkeypatch.setattr(wan_studio, name, lambda *_, **__: pytest.fail("a network was opened"))
    given = {**a, "width": "32", "height": "32", "frames": "5"} | change(a, b)
    named = [part for flag, value in given.items() if value for part in (f"--{flag}", value)]
    sentence = refused(capsys, "train", "--clips", jobs[kind].clips, "--run", tmp_path / "run", *named)
    assert re.search(told, sentence)
    assert not (tmp_path / "run").exists()


def test_an_update_that_does_not_fit_the_memory_is_refused_with_a_size_that_does(
    jobs, tmp_path, capsys, monkeypatch, caplog
):
    job = jobs["I2V-A14B"]
    larger = ["--width", "320", "--height", "320", "--frames", "33"]
    settings, model = replace(LOCAL_14B.method, first_tuned_step=3), open_wan_file(job.files["model"])
    half = plan_wan(model, Framing(320, 320, 17), DeviceSettings(kept_attentions=0), (settings, 2))
    for name in OPENERS:
        monkeypatch.setattr(wan_studio, name, lambda *_, **__: pytest.fail("a network was opened"))
    monkeypatch.setattr(wan_studio, "device_bytes", lambda device: half.device_bytes)
    told = refused(capsys, *job.train(tmp_path / "run"), *larger)
    assert "17 frames of 320x320 would fit" in told and not (tmp_path / "run").exists()
    # Whoever places all by hand is warned and goes on.
    by_hand = DeviceSettings(resident_blocks=2, states_on_host="no")
    assert plan_wan(model, Framing(320, 320, 33), by_hand, (settings, 2)).placement.resident is None
    assert "more memory than there is" in caplog.text


def test_image_to_video_without_a_picture_is_refused(jobs, capsys):
    told = refused(capsys, "sample", "--prompt", "walks", "--run", jobs["TI2V-5B"].run)
    assert "TI2V-5B makes a video of a picture: give its first frame." in told


def test_a_run_that_finds_no_face_leaves_no_folder(jobs, tmp_path, capsys):
    job, clips = jobs["TI2V-5B"], tmp_path / "faceless"
    clips.mkdir()
    write_video(clips / "wall.mp4", torch.full((12, 3, 128, 128), 0.5), fps=16)
    told = refused(capsys, *job.train(tmp_path / "none"), "--clips", clips)
    assert "No clip shows a face that is large enough" in told and not (tmp_path / "none").exists()


def test_swapped_few_step_loras_are_noticed_by_their_names(jobs, caplog):
    job = jobs["I2V-A14B"]
    named = {flag.replace("-", "_"): str(file) for flag, file in job.files.items()}
    pack = Path(named.pop("faces"))

    def warnings(**change: str) -> str:
        caplog.clear()
        open_wan(WanFiles(**(named | change)), pack, Framing(32, 32, 5), DeviceSettings())
        return " ".join(r.getMessage() for r in caplog.records if r.levelname == "WARNING")

    low, high = named["lightning"], named["high_lightning"]
    assert warnings() == ""
    assert "are swapped" in warnings(lightning=high, high_lightning=low)
    assert "Both experts get low_lora.safetensors" in warnings(high_lightning=low)


def test_wan_2_1_image_to_video_is_refused_by_name(jobs, tmp_path, capsys):
    model = tiny_wan.network(tmp_path / "wan2.1_i2v.safetensors", "2.1 I2V", seed=1)
    given = [*jobs["I2V-A14B"].networks, "--model", model, "--run", tmp_path / "run"]
    assert "CLIP's embedding" in refused(capsys, "train", *given)


def test_a_lora_and_a_run_of_another_model_are_refused_before_it_is_opened(
    jobs, tmp_path, capsys, monkeypatch
):
    a, b = (jobs[kind] for kind in BOTH)
    for name in OPENERS:
        monkeypatch.setattr(wan_studio, name, lambda *_, **__: pytest.fail("a network was opened"))
    picture = tmp_path / "first.png"  # not even looked at
    lora = b.run / "adapters" / "ipro.safetensors"
    assert "another model" in refused(capsys, "sample", picture, "--lora", lora, *a.networks)
    assert "of another network" in refused(capsys, "sample", picture, "--run", b.run, *a.networks)


def test_clips_without_a_face_are_left_out(jobs, tmp_path, capsys, caplog):
    job, clips = jobs["I2V-A14B"], tiny_wan.write_clips(tmp_path / "clips", count=1)
    write_video(clips / "grey.mp4", torch.full((9, 3, 64, 64), 0.5), fps=16)
    given = ["--clips", str(clips), "--cache", str(tmp_path / "cache"), "--updates", "1"]
    assert main([*job.train(tmp_path / "run"), *given]) == 0
    assert "Left out for want of a face: grey." in caplog.text
    boundary = [file for file in (tmp_path / "cache").glob("*.safetensors") if "boundary" in key_of(file)]
    assert len(boundary) == 2  # both noises of one clip
    given = ["--clips", clips / "grey.mp4", "--cache", tmp_path / "cache"]
    assert main([str(part) for part in [*job.train(tmp_path / "none"), *given]]) == 2
    assert "No clip shows a face" in capsys.readouterr().err


def key_of(entry: Path) -> str:
    with safe_open(entry, "pt") as file:
        return file.metadata()["ipro.key"]
