"""`ipro train --method personal-video`: from pictures and prompts to a LoRA, embedded world and Wan."""

import json
import re

import pytest
import tiny_wan
import torch
from clip_networks import write_folder
from face_networks import red_cells
from tiny_wan import SIZE, flags
from wan_jobs import Job

from ipro_core.__main__ import main
from ipro_core.clips.person import person_scenes, read_pictures, whole
from ipro_core.clips.video import read_frames, write_picture
from ipro_core.job import adapter_of_run
from ipro_core.models.lora import lora_range, lora_settings
from ipro_core.runs import read_config, read_metrics
from ipro_core.training.presets import LOCAL_14B
from ipro_core.types import Framing

METHOD = ["--method", "personal-video", "--updates", "1", "--batch-size", "1", "--rank", "2", "--warmup", "0"]
METHOD += ["--learning-rate", "0.05"]


def pictures(folder):
    """Two pictures of a red face, of different sizes."""
    folder.mkdir()
    for number, cells in enumerate(([(1, 1)], [(2, 1), (1, 1)])):
        write_picture(folder / f"{number}.png", red_cells([cells])[0, :, : 128 - 16 * number])
    return folder


def prompts(path):
    path.write_text("{person} sits.\n{person} walks.\n")
    return path


def test_one_of_the_embedded_worlds_people_is_tuned_resumed_judged_and_sampled(tmp_path, capsys, one_thread):
    run = tmp_path / "run"
    given = [*METHOD, "--semantic-weight", "0", "--checkpoint-every", "1"]
    assert main(["train", "--run", str(run), *given]) == 0
    config = read_config(run)
    assert (config["method"], config["personal-video"]["first_tuned_step"]) == ("personal-video", 6)
    assert main(["train", "--run", str(run), "--resume", "--updates", "2"]) == 0
    assert [step.step for step in read_metrics(run)] == [1, 2]
    lora = run / "adapters" / "ipro.safetensors"
    assert lora_range(lora)._asdict() == {"first": 6, "end": 8, "steps": 8, "shift": 5.0}
    assert lora_settings(lora)["method"] == "personal-video"
    capsys.readouterr()
    (tmp_path / "p.txt").write_text("a person walks left and smiles\n")
    judged = ["--prompts", str(tmp_path / "p.txt"), "--seeds", "1", "--json"]
    assert main(["evaluate", "--run", str(run), *judged]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pairs"] == 1 and told["facesim_base"] > 0
    assert main(["evaluate", "--lora", str(lora), *judged, "--report", str(tmp_path / "r.html")]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["facesim_tuned"] == pytest.approx(told["facesim_tuned"], abs=1e-6)


def test_text_to_video_is_tuned_on_pictures_with_a_scorer(tmp_path, capsys, one_thread):
    files = tiny_wan.write_files(tmp_path / "files", "T2V-1.3B")
    scorer = write_folder(tmp_path / "clip")
    networks = [*flags(files, tmp_path / "cache"), "--prompt-scorer", str(scorer), *SIZE]
    given = ["--references", str(pictures(tmp_path / "me")), "--prompts", str(prompts(tmp_path / "p.txt"))]
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), *networks, *given, *METHOD, "--person", "sks"]) == 0
    (step,) = read_metrics(run)
    assert step.metrics["grad_norm"] > 0 and step.metrics["semantic"] >= 0
    config = read_config(run)
    assert config["sha256"]["prompt_scorer"].startswith("model.safetensors sha256:")
    assert [file.rpartition("/")[2] for file in config["clips"]] == ["0.png", "1.png"]
    assert config["person"] == "sks"
    # The files have moved, and hold the same.
    moved = (tmp_path / "me").rename(tmp_path / "you")
    again = ["--references", str(moved), "--updates", "2", "--resume"]
    assert main(["train", "--run", str(run), *again]) == 0 and len(read_metrics(run)) == 2
    (tmp_path / "p.txt").write_text("{person} sits.\n{person} runs.\n")
    capsys.readouterr()
    assert main(["train", "--run", str(run), *again]) == 2
    assert "begun with other settings (sha256.clips" in capsys.readouterr().err
    out = tmp_path / "made.mp4"
    assert main(["sample", "--prompt", "sks sits", "--run", str(run), "-o", str(out)]) == 0
    assert read_frames(out).shape == (5, 3, 32, 32)


def test_with_two_experts_the_frozen_ones_carry_on_to_the_last_quarter(jobs, tmp_path, one_thread):
    job: Job = jobs["I2V-A14B"]
    run, cache = tmp_path / "run", tmp_path / "cache"
    given = ["--references", str(pictures(tmp_path / "me")), "--prompts", str(prompts(tmp_path / "p.txt"))]
    given += ["--semantic-weight", "0", "--boundary-seeds", "1", *METHOD, *SIZE]
    assert main(["train", "--run", str(run), *flags(job.files, cache), *given]) == 0
    assert read_config(run)["personal-video"]["first_tuned_step"] == 6
    assert lora_range(run / "adapters" / "ipro.safetensors").first == 6
    # What the high-noise expert left is at its own boundary: after step 3 of 8.
    studio = job.studio()
    assert studio.switch(LOCAL_14B.method) == 3
    at_boundary = [
        len(json.loads(told)["sigmas"])
        for told in (notes_of(file) for file in cache.glob("*.safetensors"))
        if '"boundary"' in told
    ]
    assert at_boundary == [4, 4]
    assert any(layer.up_OR.abs().max() > 0 for layer in adapter_of_run(run)[1].values())
    # An adapter of IPRO is on wherever its expert is, and needs no note of it.
    assert lora_range(job.run / "adapters" / "ipro.safetensors") is None


def notes_of(file) -> str:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        return opened.metadata()["ipro.key"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--method", "personal-video", "--clips", "x.mp4"], "give --references, not --clips"),
        (["--references", "x.png"], "--references are for --method personal-video"),
        (["--method", "personal-video", "--references", "gone.png"], "There is no picture at .*gone.png"),
        (["--face-encoder", "prompt-scorer", "--model", "gone.safetensors"], "There is no"),
        (["--prompt-scorer", "HPS_v2.1.pt"], "There is no text-image scorer"),
    ],
)
def test_what_does_not_go_together_is_told_at_once(given, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--run", "run", *given]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_faces_may_be_compared_by_clip_and_the_pools_are_its_own(tmp_path, one_thread, capsys):
    clip = write_folder(tmp_path / "clip")
    small = ["--updates", "1", "--batch-size", "1", "--scenes", "1", "--rank", "2"]
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), "--face-encoder", str(clip), *small]) == 0
    assert read_config(run)["sha256"]["face_encoder"].startswith("model.safetensors sha256:")
    reward = read_metrics(run)[0].metrics["reward"]
    assert main(["train", "--run", str(tmp_path / "plain"), *small]) == 0
    assert reward != read_metrics(tmp_path / "plain")[0].metrics["reward"]
    capsys.readouterr()
    # It is measured by the recogniser all the same.
    assert main(["evaluate", "--run", str(run), "--held-out", "1", "--seeds", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        main(["evaluate", "--run", str(tmp_path / "plain"), "--held-out", "1", "--seeds", "1", "--json"]) == 0
    )
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["facesim_base"] == pytest.approx(plain["facesim_base"])


def test_pictures_are_first_frames_in_turn_or_none(tmp_path):
    found = read_pictures([pictures(tmp_path / "me")])
    assert [tuple(picture.shape) for picture in found] == [(3, 128, 128), (3, 112, 128)]
    framing = Framing(32, 16, 5, 16.0)
    scenes = person_scenes(found, ["a", "b", "c"], framing, with_first=True)
    assert [scene.shown for scene in scenes] == [0, 1, 0]
    assert scenes[0].first().shape == (3, 16, 32) and len(list(scenes[0].pieces())) == 2
    assert scenes[0].key() == scenes[2].key() != scenes[1].key()
    # Without a first frame a picture is shown whole: 128 x 128 in 32 x 16 is 16 wide, 8 black at each side.
    (scene,) = person_scenes(found, ["a"], framing, with_first=False)
    assert scene.first()[..., :8].max() == 0 and scene.first()[..., 24:].max() == 0
    torch.testing.assert_close(scene.first(), whole(found[0], framing))
    with pytest.raises(ValueError, match="holds no picture"):
        read_pictures([tmp_path])
    with pytest.raises(ValueError, match="is no clip"):
        scene.frames()
