"""`ipro train` and `ipro export`: a model tuned, its adapter as a LoRA."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..clips.person import find_pictures
from ..clips.scenes import Scene, find_videos
from ..evaluation.preferred import VOTES, voted_place, voted_scenes
from ..evaluation.study_design import QUESTIONS
from ..job import LORA, Job, NoFaceError, Tuner, name_of_scenes, save_adapter, showing_faces, usable
from ..rewards.base import reward_catalogue
from ..rewards.face_pool import FacePoolReward
from ..runs import Run, read_config, read_metrics
from ..tinyworld.scenes import tiny_scenes
from ..training.base import method_catalogue
from ..training.dpo import DpoSettings
from ..training.loop import MAY_DIFFER
from ..training.presets import PRESETS
from ..training.settings import LoopSettings, SamplingSettings
from ..types import Framing
from .flags import add_knobs, given_knobs, progress
from .opening import FILES, PERSON, add_networks, add_person, open_job, prepare, scenes_of_person

logger = logging.getLogger("ipro")

SCENES = 2700
KNOB_GROUPS = (
    LoopSettings,
    SamplingSettings,
    *method_catalogue().values(),
    FacePoolReward,
    *reward_catalogue().values(),
    Framing,
)
KNOBS = [knob.name for group in KNOB_GROUPS for knob in fields(group)]
MOVED = ("clips", *(f"files.{name}" for name in ("faces", *FILES)))
"""Files may have moved when a run goes on: what they hold is compared."""


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Tune a model, with IPRO or another method, on clips of your own: Wan 2.2, or the embedded world's."""
    tune(options)
    last, lora = read_metrics(options.run)[-1], options.run / "adapters" / LORA
    print(f"{lora}: update {last.step}, " + ", ".join(f"{n} {v}" for n, v in _told(last.metrics).items()))
    return {"run": str(options.run), "lora": str(lora), "updates": last.step, **last.metrics}


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="The run's folder.")
    parser.add_argument("--resume", action="store_true", help="Continue the run where it was broken off.")
    parser.add_argument(
        "--clips",
        nargs="+",
        type=Path,
        default=[],
        help="Clips to tune on, folders of them (clip.txt its prompt), or a manifest of `ipro curate`.",
    )
    add_person(parser)
    votes = "A blind study (`ipro study`) whose voted pairs DPO learns from, in the place of clips."
    parser.add_argument("--votes", type=Path, help=votes)
    asked = "Which question's votes; default: identity."
    parser.add_argument("--question", choices=list(QUESTIONS), default="identity", help=asked)
    add_tuning(parser)


def add_tuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        choices=list(PRESETS),
        help="Where settings come from; default: tiny; with Wan local-14b or local-5b.",
    )
    parser.add_argument(
        "--scenes", type=int, help=f"Scenes of the embedded world to tune on; default: {SCENES}."
    )
    parser.add_argument("--rank", type=int, default=argparse.SUPPRESS, help="Rank of the LoRA.")
    methods = list(method_catalogue())
    parser.add_argument("--method", choices=methods, default=argparse.SUPPRESS, help="How it is tuned.")
    names = list(reward_catalogue())
    parser.add_argument("--reward", choices=names, default=argparse.SUPPRESS, help="What is rewarded.")
    add_networks(parser)
    known: set[str] = set()
    for settings in KNOB_GROUPS:  # methods share knobs, which then are one flag
        add_knobs(parser, settings, without=known)
        known |= {knob.name for knob in fields(settings)}


def tune(options: argparse.Namespace) -> None:
    """Begin or continue the run in options.run."""
    begun = read_config(options.run) if options.resume and (options.run / "config.json").exists() else {}
    job = open_job(
        options,
        begun,
        given_knobs(options, "method", "reward", "rank", *KNOBS),
        preset=options.preset,
        tuned=True,
    )
    studio, plan = job.studio, job.plan
    clips, scenes = _scenes(options, job, begun)
    count = options.scenes or begun.get("scenes", SCENES)
    config = job.config(clips, count, name_of_scenes(scenes))
    if "pictures" in plan.method.wants:
        config["person"] = options.person or begun.get("person", PERSON)
    may_differ, device = (*MAY_DIFFER, *MOVED), str(studio.device)
    opened = (
        Run.open(options.run, config, may_differ=may_differ, device=device)
        if begun
        else Run.create(options.run, config, device=device)
    )
    with opened as run:
        scenes = scenes or showing_faces(studio, tiny_scenes("tuning", config["scenes"]))
        if job.is_wan:
            told, size = sum(bool(scene.prompt) for scene in scenes), plan.framing
            logger.info(
                f"{studio.base} ({studio.kind}): {len(scenes)} scenes, {told} with a prompt; "
                f"{size.frames} frames of {size.width}x{size.height}; "
                f"{plan.loop.updates} updates of {plan.loop.batch_size} videos."
            )
            logger.info(studio.plan)
        prepare(job.prepare(scenes))
        try:
            scenes = usable(studio, scenes)
        except NoFaceError:
            if not begun:
                run.discard()
            raise
        if plan.method.people != 1:
            several = sum(len(studio.pools(scene)) > 1 for scene in scenes)
            logger.info(
                f"{several} of {len(scenes)} clips show several people, each with faces of their own."
            )
        tuner = Tuner(job, scenes)
        with closing(tuner.records(run)) as records:
            bar: Any = progress(records, "tuning", total=plan.loop.updates)
            for record in bar:
                bar.set_postfix(_told(record.metrics))
        save_adapter(options.run, run.adapters / LORA)


def _scenes(
    options: argparse.Namespace, job: Job, begun: Mapping[str, Any]
) -> tuple[list[str], Sequence[Scene]]:
    """The files that are tuned on, and the scenes they make; none: the embedded world's."""
    of_person, kept = "pictures" in job.plan.method.wants, list(begun.get("clips", []))
    if of_person and (options.clips or options.votes):
        raise ValueError("PersonalVideo is tuned on pictures and prompts: give --references, not --clips.")
    if options.references and not of_person:
        raise ValueError("--references are for --method personal-video: give clips with --clips.")
    if of_person:
        files = [str(file.resolve()) for file in find_pictures(options.references)] or kept
        person = options.person or begun.get("person", PERSON)
        return files, scenes_of_person([Path(file) for file in files], job, person)
    clips = [str(clip.resolve()) for clip in find_videos(options.clips)] or kept
    if options.votes:
        clips = [voted_place(options.votes, options.question)]
    if job.is_wan and not clips:
        raise ValueError("There is nothing to tune on: give --clips with video files, or folders of them.")
    if not any(VOTES in clip for clip in clips):
        return clips, job.studio.read_clips(clips) if clips else []
    if not isinstance(job.plan.method, DpoSettings):
        raise ValueError("Votes on pairs of videos are what DPO learns from: give --method dpo with --votes.")
    return clips, [scene for clip in clips for scene in voted_scenes(clip, job.studio.framing)]


def _told(metrics: Mapping[str, float]) -> dict[str, str]:
    """Those that every method has, and then those that most have."""
    names = {"loss": "loss", "reward": "reward", "kl": "KL"}
    return {told: f"{metrics[name]:.4f}" for name, told in names.items() if name in metrics}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write a run's newest adapter as a LoRA that ComfyUI loads."""
    step = save_adapter(options.run, options.out)
    print(f"{options.out}: the adapter of update {step}")
    return {"lora": str(options.out), "update": step}


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="The run's folder.")
    parser.add_argument("--out", "-o", type=Path, default=Path(LORA), help="The LoRA to write.")
