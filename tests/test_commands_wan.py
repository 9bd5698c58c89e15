"""Wan 2.2 from the command line, with tiny random files: tuned, used, judged; what does not fit is told."""

import json
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_wan
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_commands import answer, refused
from tiny_wan import SIZE, SMALL, flags

from ipro_core import studio, wan_studio
from ipro_core.__main__ import main
from ipro_core.clips.video import read_frames, write_video
from ipro_core.commands import sample as sampling
from ipro_core.commands import train as training
from ipro_core.job import FIRST_SEED
from ipro_core.models.draft import DraftedVae
from ipro_core.models.lora import import_lora, lora_settings
from ipro_core.models.wan import load_video_model
from ipro_core.models.wan_files import open_wan_file
from ipro_core.runs import read_metrics
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.rollout import sample
from ipro_core.studio import Studio
from ipro_core.training.presets import LOCAL_14B
from ipro_core.types import Framing
from ipro_core.wan_studio import DeviceSettings, WanFiles, open_wan, plan_wan

OPENERS = ("load_text_encoder", "load_vae", "load_face_models", "load_video_model")
BOTH = ["I2V-A14B", "TI2V-5B"]


class Job:
    """Files, clips, and a run of two updates on them."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind, self.run = folder, kind, folder / "run"
        self.files = tiny_wan.write_files(folder / "files", kind)
        self.clips = tiny_wan.write_clips(folder / "clips")
        self.networks = flags(self.files, folder / "cache")
        assert main(self.train(self.run)) == 0

    def train(self, run: Path) -> list[str]:
        clips = ["--clips", str(self.clips), "--run", str(run), "--learning-rate", "0.05", "--warmup", "0"]
        return ["train", *clips, *self.networks, *SIZE, *SMALL]

    def studio(self) -> Studio:
        named = {flag.replace("-", "_"): str(file) for flag, file in self.files.items()}
        pack = Path(named.pop("faces"))
        files = WanFiles(cache=str(self.folder / "cache"), **named)
        return open_wan(files, pack, Framing(32, 32, 5), DeviceSettings())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return {kind: Job(tmp_path_factory.mktemp(kind), kind) for kind in BOTH}


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
    (scene, _), settings = studio.read_clips([job.clips]), LOCAL_14B.ipro
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
    drawn = studio.training_sample(studio.read_clips([job.clips])[0], LOCAL_14B.ipro, [0, 1])
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

    def set_postfix(self, **_):
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
    (tmp_path / "models" / "second").symlink_to(job.files["faces"])
    monkeypatch.setenv("IPRO_FACES", str(tmp_path))  # packs are named as --faces names them
    told = ["evaluate", "--run", str(job.run), "--seeds", "1", "--json", "--judge", "second"]
    assert main([*told, "--clips", str(clips)]) == 0
    figures = answer(capsys)
    assert figures["pairs"] == figures["scenes"] == 2 and figures["coverage_tuned"] == 1
    # The judge is the reward's own pack here: both gains are one.
    assert figures["gain"] != 0 and figures["judge_gain"] == figures["gain"]
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
    settings, model = replace(LOCAL_14B.ipro, first_tuned_step=3), open_wan_file(job.files["model"])
    half = plan_wan(model, Framing(320, 320, 17), DeviceSettings(), (settings, 2))
    for name in OPENERS:
        monkeypatch.setattr(wan_studio, name, lambda *_, **__: pytest.fail("a network was opened"))
    monkeypatch.setattr(wan_studio, "device_bytes", lambda device: half.device_bytes)
    told = refused(capsys, *job.train(tmp_path / "run"), *larger)
    assert "17 frames of 320x320 would fit" in told and not (tmp_path / "run").exists()
    # Whoever places all by hand is warned and goes on.
    by_hand = DeviceSettings(resident_blocks=2, states_on_host="no")
    assert plan_wan(model, Framing(320, 320, 33), by_hand, (settings, 2)).placement.resident is None
    assert "more memory than there is" in caplog.text


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
