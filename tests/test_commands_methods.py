"""The other methods from the command line, on Wan's tiny files: what each makes of clips, and tunes on."""

import json

import pytest
import tiny_wan
import torch
from small_study import vote_for
from test_commands import refused
from tiny_wan import SIZE
from wan_jobs import BOTH

from ipro_core import wan_studio
from ipro_core.__main__ import main
from ipro_core.clips.video import read_frames
from ipro_core.evaluation.study import Study, VideoSet
from ipro_core.evaluation.study_design import StudySettings
from ipro_core.runs import read_metrics
from ipro_core.training.presets import Preset

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--batch-size", "1", "--updates", "2", "--rank", "2", "--learning-rate", "0.05", "--warmup", "0"]


def tuned(job, run, *more) -> list[dict[str, float]]:
    given = ["train", "--run", run, *job.networks, *SIZE, *SMALL, *more]
    assert main([str(argument) for argument in given]) == 0
    return [record.metrics for record in read_metrics(run)]


@pytest.mark.parametrize("kind", BOTH)
def test_sft_learns_from_the_clips_own_latents_and_has_nothing_sampled(jobs, kind, tmp_path, monkeypatch):
    job, opened = jobs[kind], []
    load = wan_studio.load_video_model
    monkeypatch.setattr(
        wan_studio, "load_video_model", lambda path, **how: opened.append(path) or load(path, **how)
    )
    # A schedule that no other test has, so that no boundary latents of it lie in the cache.
    metrics = tuned(job, tmp_path / "run", "--clips", job.clips, "--method", "sft", "--shift", "4.5")
    assert opened == [job.files["model"]]
    assert all(step["grad_norm"] > 0 and step["coverage"] == 1 and "kl" not in step for step in metrics)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == "sft" and config["sft"]["face_weight"] == 0.1
    studio = job.studio()
    (scene, _) = studio.read_clips([job.clips])
    drawn = studio.training_sample(scene, Preset.from_config(config).method, [])
    assert drawn.video is not None
    torch.testing.assert_close(drawn.video(), studio.codec.open().encode(scene.frames()[None])[0])


@pytest.mark.parametrize("kind", BOTH)
def test_dpo_ranks_what_the_model_samples(jobs, kind, tmp_path):
    how = ["--method", "dpo", "--candidates", "2", "--levels", "1", "--boundary-seeds", "2"]
    metrics = tuned(jobs[kind], tmp_path / "run", "--clips", jobs[kind].clips, *how)
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5) and metrics[0]["gap"] > 0
    assert metrics[1]["drift"] > 0


def test_dpo_learns_pairs_that_people_have_voted_on(jobs, tmp_path, capsys):
    job = jobs["I2V-A14B"]
    clips = tiny_wan.write_clips(tmp_path / "videos")
    first, second = (read_frames(clips / f"clip{n}.mp4") for n in (0, 1))
    study = Study.create(tmp_path / "study", "Which?", ["identity"], StudySettings(seed=5, controls=0))
    takes = {method: tmp_path / "videos" / f"clip{n}.mp4" for n, method in enumerate(("base", "tuned"))}
    study.add(VideoSet("anna", takes, first[0], "a person smiles"))
    assert "No pair of" in refused(capsys, *_voting(job, tmp_path / "run", study))
    voter = study.ballots.join()
    for showing in study.showings(voter):
        study.ballots.cast(vote_for(study, voter, showing, "tuned"))
    other = ["--method", "sft"]
    assert "--method dpo" in refused(capsys, *_voting(job, tmp_path / "run", study)[:-2], *other)
    metrics = tuned(job, tmp_path / "run", "--votes", study.folder, "--method", "dpo", "--levels", "2")
    assert metrics[1]["margin"] > 0 and metrics[1]["accuracy"] == 1 and "reward" not in metrics[0]
    assert main(["train", "--run", str(tmp_path / "run"), "--resume", "--updates", "3"]) == 0
    assert len(read_metrics(tmp_path / "run")) == 3 and not torch.equal(first, second)


def _voting(job, run, study) -> list[str]:
    given = ["train", "--run", run, *job.networks, *SIZE, *SMALL, "--votes", study.folder, "--method", "dpo"]
    return [str(argument) for argument in given]


def test_without_an_anchor_and_without_the_pool_are_settings(jobs, tmp_path, monkeypatch):
    # Table 6: "w/o KL" asks the frozen model nothing, "w/o FSM" compares with the input image alone.
    job, frozen = jobs["I2V-A14B"], []
    velocities = wan_studio.WanVideoModel.velocities
    monkeypatch.setattr(
        wan_studio.WanVideoModel,
        "velocities",
        lambda *inputs, **how: frozen.append(1) or velocities(*inputs, **how),
    )
    how = ["--boundary-seeds", "2", "--clips", job.clips, "--kl-weight", "0", "--reward", "reference"]
    metrics = tuned(job, tmp_path / "run", *how)
    assert not frozen and all(step["grad_norm"] > 0 and "kl" not in step for step in metrics)
    assert metrics[0]["reward"] > 0 and metrics[0]["loss"] == pytest.approx(-0.1 * metrics[0]["reward"])
