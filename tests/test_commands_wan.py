"""Wan 2.2 from the command line, with tiny random files: tuned, used, judged."""

import json
import re
import weakref
from pathlib import Path

import pytest
import tiny_wan
import torch
from safetensors.torch import load_file
from test_commands import answer, refused
from tiny_wan import SIZE
from wan_jobs import BOTH, OPENERS, Job

from ipro_core import studio, wan_studio
from ipro_core.__main__ import main
from ipro_core.clips.video import read_frames
from ipro_core.commands import sample as sampling
from ipro_core.commands import train as training
from ipro_core.job import FIRST_SEED
from ipro_core.models.draft import DraftedVae
from ipro_core.models.lora import import_lora, lora_settings
from ipro_core.models.wan import load_video_model
from ipro_core.runs import read_metrics
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.rollout import sample
from ipro_core.training.presets import LOCAL_14B

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", BOTH)
def test_a_run_tunes_and_leaves_a_lora_that_fits_the_network_and_tells_no_path(jobs, kind, tmp_path, capsys):
    job = jobs[kind]
    steps = read_metrics(job.run)
    assert len(steps) == 2 and all(step.metrics["coverage"] == 1 for step in steps)
    assert all(step.metrics["grad_norm"] > 0 for step in steps) and steps[1].metrics["kl"] > 0
    lora = tmp_path / "lora.safetensors"
    assert main(["export", "--run", str(job.run), "-o", str(lora), "--json"]) == 0
    assert answer(capsys)["update"] == 2
    assert alike(lora, job.run / "adapters" / "ipro.safetensors")
    # 2 blocks of 10 linear layers, each with two halves and an alpha.
    tensors = load_file(lora)
    assert len(tensors) == 60 and all(tensors[key].any() for key in tensors)
    assert import_lora(lora, load_video_model(job.files["model"])) == {}
    assert lora_settings(lora)["framing"] == {
        "width": 32,
        "height": 32,
        "frames": 5,
        "fps": {"TI2V-5B": 24.0}.get(kind, 16.0),
    }
    assert str(job.folder).encode() not in lora.read_bytes()


def test_the_low_noise_expert_begins_where_the_high_noise_one_leaves_off(jobs):
    job = jobs["I2V-A14B"]
    config = json.loads((job.run / "config.json").read_text())
    assert config["ipro"]["first_tuned_step"] == 3  # of 8 steps at shift 5: 1, 0.972, 0.938 lie above 0.9
    studio, seed = job.studio(), FIRST_SEED
    (scene, _), settings = studio.read_clips([job.clips]), LOCAL_14B.method
    high = load_video_model(job.files["high-noise"])
    import_lora(job.files["high-lightning"], high, frozen=True)
    start = studio.start(scene, seed)
    wanted = sample(high, start.noise()[None], studio.condition(scene), shifted_sigmas(8, 5.0)[:4])
    assert torch.equal(studio.boundary_latents(start, settings), wanted[0])
    drawn = studio.training_sample(scene, settings, [seed, seed + 1])
    assert torch.equal(drawn.starts[0](), wanted[0]) and not torch.equal(drawn.starts[1](), wanted[0])


def test_one_network_is_tuned_from_the_first_step_on_new_noise(jobs):
    job = jobs["TI2V-5B"]
    assert json.loads((job.run / "config.json").read_text())["ipro"]["first_tuned_step"] == 0
    studio = job.studio()
    drawn = studio.training_sample(studio.read_clips([job.clips])[0], LOCAL_14B.method, [0, 1])
    assert drawn.starts == () and drawn.latent_shape == (48, 2, 2, 2)
    first = studio.codec.open().encode(studio.read_clips([job.clips])[0].first()[None, None])
    assert torch.equal(drawn.condition.first_BC1HW, first)


@pytest.mark.parametrize("kind", BOTH)
def test_a_run_broken_off_and_resumed_ends_as_the_unbroken_one(jobs, kind, tmp_path, monkeypatch):
    job, broken = jobs[kind], tmp_path / "run"

    def broken_off(items, what, total=None):
        for item in items:
            yield item
            if what == "tuning":
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "progress", lambda *of, **how: Bar(broken_off(*of, **how)))
        assert main(job.train(broken)) == 130
    assert len(read_metrics(broken)) == 1
    monkeypatch.chdir(tmp_path)  # a run goes on from wherever it is continued
    assert main(["train", "--run", str(broken), "--resume"]) == 0
    assert (broken / "metrics.jsonl").read_bytes() == (job.run / "metrics.jsonl").read_bytes()
    assert alike(broken / "adapters" / "ipro.safetensors", job.run / "adapters" / "ipro.safetensors")


def alike(one: Path, other: Path) -> bool:
    """Tensor by tensor, bit for bit."""
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Bar:
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return self.items

    def set_postfix(self, *_):
        pass


def test_stages_hold_one_network_at_a_time_and_a_second_run_opens_only_what_it_trains(
    jobs, tmp_path, monkeypatch
):
    job = jobs["I2V-A14B"]
    opened: list[tuple[str, weakref.ref]] = []
    alive: list[list[str]] = []

    def watch(name, real):
        def open_it(*of, **how):
            alive.append([known for known, network in opened if network() is not None])
            network = real(*of, **how)
            what = Path(of[0]).stem if name == "load_video_model" else name
            opened.append((what, weakref.ref(network[0] if isinstance(network, tuple) else network)))
            return network

        monkeypatch.setattr(wan_studio, name, open_it)

    for name in OPENERS:
        watch(name, getattr(wan_studio, name))
    low, high = "wan2.2_low_noise", "wan2.2_high_noise"
    trained = [low, "load_vae", "load_face_models"]
    again = job.train(tmp_path / "again")
    assert main(again) == 0
    assert [name for name, _ in opened] == trained
    opened.clear(), alive.clear()
    fresh = [*job.train(tmp_path / "fresh"), "--cache", str(tmp_path / "cache")]
    assert main(fresh) == 0
    stages = ["load_text_encoder", "load_vae", "load_face_models", high]
    assert [name for name, _ in opened] == stages + trained
    assert alive[:5] == [[]] * 5  # whatever is opened for a stage is gone before the next
    for run in ("again", "fresh"):
        assert (tmp_path / run / "metrics.jsonl").read_bytes() == (job.run / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("kind", BOTH)
def test_a_picture_becomes_a_video_by_the_tuned_and_by_the_frozen_model(
    jobs, kind, tmp_path, capsys, monkeypatch
):
    from PIL import Image

    job, picture = jobs[kind], tmp_path / "first.png"
    Image.new("RGB", (40, 32), (255, 0, 0)).save(picture)
    lora = str(job.run / "adapters" / "ipro.safetensors")
    made, written = {}, []  # before they are encoded, which makes much of a last bit
    write = sampling.write_video
    monkeypatch.setattr(sampling, "write_video", lambda *given: written.append(given[1]) or write(*given))
    for name, how in {
        "run": ["--run", str(job.run)],
        "lora": ["--lora", lora, *job.networks],
        "base": [*job.networks, *SIZE],
        "seed": [*job.networks, *SIZE, "--seed", "1"],
    }.items():
        out = tmp_path / f"{name}.mp4"
        assert main(["sample", str(picture), "--prompt", "walks", "-o", str(out), "--json", *how]) == 0
        assert answer(capsys)["frames"] == 5
        made[name] = written[-1]
        assert made[name].shape == read_frames(out).shape == (5, 3, 32, 32)
    assert (made["run"] - made["lora"]).abs().max() < 1e-4 < (made["lora"] - made["base"]).abs().max()
    assert (made["base"] - made["seed"]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", BOTH)
def test_base_and_tuned_are_judged_from_the_same_noise(jobs, kind, tmp_path, capsys, caplog, monkeypatch):
    job, clips = jobs[kind], tiny_wan.write_clips(tmp_path / "others", first=2)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own").symlink_to(job.files["faces"])
    tiny_wan.write_pack(tmp_path / "models" / "second", seed=1)
    monkeypatch.setenv("IPRO_FACES", str(tmp_path))  # packs are named as --faces names them
    told = ["evaluate", "--run", str(job.run), "--seeds", "1", "--json", "--clips", str(clips), "--judge"]
    with monkeypatch.context() as patched:  # refused before a clip is read
        patched.setattr("ipro_core.commands.evaluate.find_clips", None)
        assert main([*told, "own"]) == 2 and "reward's own recogniser" in capsys.readouterr().err
    assert main([*told, "second"]) == 0
    figures = answer(capsys)
    assert figures["pairs"] == figures["scenes"] == 2 and figures["coverage_tuned"] == 1
    assert 0 != figures["gain"] != figures["judge_gain"] != 0
    assert "was tuned on" not in caplog.text
    assert str(job.folder) not in (job.run / "report.html").read_text()
    assert len(list((job.run / "samples").glob("*.mp4"))) == 2
    # The adapter at zero is the base: no pair differs.
    kept = load_file(job.run / "adapters" / "ipro.safetensors")
    zero = {key: tensor * (0 if "lora_B" in key else 1) for key, tensor in kept.items()}
    tiny_wan.save_file(zero, tmp_path / "zero.safetensors")
    report = ["--report", str(tmp_path / "report.html"), "--seeds", "1", "--json", *SIZE]
    lora = ["evaluate", "--lora", str(tmp_path / "zero.safetensors"), *job.networks, *report]
    assert main([*lora, "--clips", str(clips / "clip2.mp4")]) == 0
    assert answer(capsys)["gain"] == 0


def test_a_judge_of_known_people_is_warned(jobs, capsys, caplog):
    job = jobs["TI2V-5B"]
    clip = str(job.clips / "clip0.mp4")
    assert main(["evaluate", "--run", str(job.run), "--seeds", "1", "--clips", clip]) == 0
    assert "tuned on" in caplog.text and "clip0.mp4" in caplog.text


def test_a_run_prints_its_plan_before_it_begins(jobs, tmp_path, caplog):
    job = jobs["TI2V-5B"]
    with caplog.at_level("INFO"):
        assert main(job.train(tmp_path / "run")) == 0
    assert re.search(
        r"TI2V-5B, 32x32, 5 frames: 2 tokens, .* PFLOP a video\nall blocks on the device", caplog.text
    )


def test_text_to_video_is_tuned_sampled_and_judged_and_wants_no_picture(tmp_path, capsys):
    job = Job(tmp_path, "T2V-1.3B")
    steps = read_metrics(job.run)
    assert len(steps) == 2 and all(step.metrics["grad_norm"] > 0 for step in steps)
    out = tmp_path / "made.mp4"
    assert (
        main(["sample", "--prompt", "a person walks", "--run", str(job.run), "-o", str(out), "--json"]) == 0
    )
    assert answer(capsys)["frames"] == 5 and read_frames(out).shape == (5, 3, 32, 32)
    others = tiny_wan.write_clips(tmp_path / "others", first=2)
    given = ["--run", str(job.run), "--clips", str(others), "--seeds", "1", "--json"]
    assert main(["evaluate", *given]) == 0
    assert answer(capsys)["pairs"] == 2


def test_with_a_draft_only_the_faces_are_decoded_in_an_update(jobs, tmp_path, capsys, monkeypatch):
    job, draft = jobs["TI2V-5B"], tiny_wan.draft(tmp_path / "taew2_2.safetensors", "TI2V-5B")
    made = []
    monkeypatch.setattr(studio, "DraftedVae", lambda *given: made.append(DraftedVae(*given)) or made[-1])
    assert main([*job.train(tmp_path / "run"), "--draft", str(draft)]) == 0
    (codec,) = made
    assert codec.judged == 2  # two updates of one video
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["files"]["draft"] == str(draft) and config["sha256"]["draft"]
    other = tiny_wan.draft(tmp_path / "taew2_1.safetensors", "I2V-A14B")
    told = refused(capsys, *job.train(tmp_path / "other"), "--draft", str(other))
    assert "give taew2_2 with --draft" in told


def test_a_run_goes_on_with_the_clips_and_prompts_it_was_begun_with(jobs, tmp_path, capsys):
    job, run = jobs["TI2V-5B"], tmp_path / "run"
    clips = tiny_wan.write_clips(tmp_path / "clips")
    assert main([*job.train(run), "--clips", str(clips)]) == 0
    (clips / "clip0.txt").write_text("another prompt")
    capsys.readouterr()
    assert "begun with other settings (sha256.clips" in refused(capsys, "train", "--run", run, "--resume")
    (clips / "clip0.txt").write_text("a person smiles")
    moved = clips.rename(tmp_path / "moved")
    assert main(["train", "--run", str(run), "--resume", "--updates", "3", "--clips", str(moved)]) == 0
    assert len(read_metrics(run)) == 3
