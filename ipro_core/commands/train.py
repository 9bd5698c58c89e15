"""`ipro train` and `ipro export`: a model tuned, its adapter as a LoRA."""

import argparse
import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..cache import name_of
from ..clips.scenes import Scene, find_videos
from ..models.lora import SETTINGS, write_lora
from ..rewards.base import reward_catalogue
from ..rewards.face_pool import FacePoolReward
from ..runs import Run, read_config, read_metrics
from ..studio import Samples, Studio
from ..tinyworld import VIDEO_MODEL
from ..tinyworld.scenes import tiny_scenes
from ..training.ipro import IproObjective, IproSettings
from ..training.loop import MAY_DIFFER, LoopSettings
from ..training.loop import train as train_loop
from ..training.presets import PRESETS
from ..types import Framing
from .flags import add_knobs, given_knobs, progress
from .opening import (
    FILES,
    adapter_of_run,
    add_networks,
    open_job,
    prepare,
    shareable,
    showing_faces,
)

logger = logging.getLogger("ipro")

LORA = "ipro.safetensors"
SCENES = 2700
FIRST_SEED = 1_000_000
"""Of boundary latents for training: what is judged and sampled with the seeds 0, 1, … was not tuned on."""
KNOB_GROUPS = (LoopSettings, IproSettings, FacePoolReward, Framing)
KNOBS = [knob.name for group in KNOB_GROUPS for knob in fields(group)]
MOVED = ("clips", *(f"files.{name}" for name in ("faces", *FILES)))
"""Files may have moved when a run goes on: what they hold is compared."""


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Tune a model with IPRO on clips of your own: Wan 2.2, or the embedded world's."""
    tune(options)
    last, lora = read_metrics(options.run)[-1], options.run / "adapters" / LORA
    print(f"{lora}: update {last.step}, reward {last.metrics['reward']:.3f}, KL {last.metrics['kl']:.4f}")
    return {"run": str(options.run), "lora": str(lora), "updates": last.step, **last.metrics}


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="The run's folder.")
    parser.add_argument("--resume", action="store_true", help="Continue the run where it was broken off.")
    parser.add_argument(
        "--clips",
        nargs="+",
        type=Path,
        default=[],
        help="Clips to tune on, or folders of them; clip.txt its prompt.",
    )
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
    names = list(reward_catalogue())
    parser.add_argument("--reward", choices=names, default=argparse.SUPPRESS, help="What is rewarded.")
    add_networks(parser)
    for settings in KNOB_GROUPS:
        add_knobs(parser, settings)


def tune(options: argparse.Namespace) -> None:
    """Begin or continue the run in options.run."""
    begun = read_config(options.run) if options.resume and (options.run / "config.json").exists() else {}
    job = open_job(options, begun, given_knobs(options, "reward", "rank", *KNOBS), preset=options.preset)
    studio, plan = job.studio, job.plan
    clips = [str(clip.resolve()) for clip in find_videos(options.clips)] or begun.get("clips", [])
    if job.is_wan and not clips:
        raise ValueError("There is nothing to tune on: give --clips with video files, or folders of them.")
    scenes = studio.read_clips(clips) if clips else []
    config = {
        "files": job.files,
        "clips": clips,
        "scenes": options.scenes or begun.get("scenes", SCENES),
        "sha256": identities(studio, scenes),
        **plan.config(),
    }
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
                f"{studio.base} ({studio.kind}): {len(scenes)} clips, {told} with a prompt; "
                f"{size.frames} frames of {size.width}x{size.height}; "
                f"{plan.loop.updates} updates of {plan.loop.batch_size} videos."
            )
        seeds = range(FIRST_SEED, FIRST_SEED + plan.ipro.boundary_seeds)
        prepare(studio, scenes, plan.ipro, seeds, faces=True)
        scenes = usable(studio, scenes)
        model = studio.model.open()
        model.new_adapter(plan.rank, seed=plan.loop.seed)
        objective = IproObjective(model, studio.codec.open(), *studio.faces.open(), plan.reward, plan.ipro)
        samples = Samples(studio, scenes, plan.ipro, seeds)
        with closing(train_loop(model, objective, samples, plan.loop, run)) as records:
            bar: Any = progress(records, "tuning", total=plan.loop.updates)
            for record in bar:
                bar.set_postfix(reward=f"{record.metrics['reward']:.3f}", kl=f"{record.metrics['kl']:.4f}")
        save_adapter(options.run, run.adapters / LORA)


def usable(studio: Studio, scenes: Sequence[Scene]) -> list[Scene]:
    """The prepared scenes that show a face.

    Raises:
        ValueError: there is none.
    """
    kept = studio.with_faces(scenes)
    left_out = [scene.name for scene in scenes if scene not in kept]
    if not kept:
        raise ValueError(
            "No clip shows a face that is large enough: begin a run in another folder with clips that do."
        )
    if left_out:
        logger.warning("Left out for want of a face: %s.", ", ".join(left_out))
    return kept


def identities(studio: Studio, scenes: Sequence[Scene]) -> dict[str, str]:
    """Of all that a run's numbers depend on beside its settings."""
    networks = {"model": studio.model, "high_noise": studio.high_noise, "vae": studio.codec}
    networks |= {"text_encoder": studio.text, "faces": studio.faces}
    told = {name: network.identity() for name, network in networks.items() if network}
    clips = [{"name": scene.name, "prompt": scene.prompt, **scene.key()} for scene in scenes]
    return {**told, "clips": name_of({"clips": clips})}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write a run's newest adapter as a LoRA that ComfyUI loads."""
    step = save_adapter(options.run, options.out)
    print(f"{options.out}: the adapter of update {step}")
    return {"lora": str(options.out), "update": step}


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="The run's folder.")
    parser.add_argument("--out", "-o", type=Path, default=Path(LORA), help="The LoRA to write.")


def save_adapter(run: Path, path: Path) -> int:
    """Write the adapter of a run's newest state; returns the update it is of. No network is opened for it."""
    config = read_config(run)
    step, layers = adapter_of_run(run)
    notes = {
        "ipro.base": Path(config["files"]["model"] or VIDEO_MODEL).name,
        "ipro.base_sha256": config["sha256"]["model"].split(" ")[0],
        SETTINGS: json.dumps(shareable(config)),
    }
    write_lora(layers, path, notes)
    return step
