"""`ipro demo`, `train`, `sample`, `evaluate` and `export`: the model tuned, used and judged."""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clips.video import read_image, write_video
from ..evaluation.compare import Comparison, SceneVideos, compare_videos
from ..evaluation.film import side_by_side
from ..evaluation.report import write_report
from ..files import write_atomically
from ..models.lora import export_lora, import_lora, lora_settings
from ..rewards.base import reward_catalogue
from ..rewards.face_pool import FacePoolReward
from ..runs import Run, latest_state, read_config, read_metrics
from ..studio import (
    TINY_FPS,
    TINY_FRAMES,
    Scene,
    Studio,
    clip_scenes,
    open_studio,
    tiny_square,
    tiny_world_scenes,
)
from ..training.ipro import IproObjective, IproSettings
from ..training.loop import MAY_DIFFER, LoopSettings, adapter_of
from ..training.loop import train as train_loop
from ..training.presets import PRESETS, Preset
from .flags import add_knobs, given_knobs, progress

LORA = "ipro.safetensors"
SCENES = 1600
KNOB_GROUPS = (LoopSettings, IproSettings, FacePoolReward)
KNOBS = [knob.name for group in KNOB_GROUPS for knob in fields(group)]


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Tune the model with IPRO, on the embedded world's scenes or on clips of your own."""
    _tune(options)
    last, lora = read_metrics(options.run)[-1], options.run / "adapters" / LORA
    print(f"{lora}: update {last.step}, reward {last.metrics['reward']:.3f}, KL {last.metrics['kl']:.4f}")
    return {"run": str(options.run), "lora": str(lora), "updates": last.step, **last.metrics}


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="The run's folder.")
    parser.add_argument("--resume", action="store_true", help="Continue the run where it was broken off.")
    parser.add_argument(
        "--clips", nargs="+", type=Path, default=[], help="Clips to tune on, clip.txt its prompt."
    )
    _add_tuning(parser)


def _tune(options: argparse.Namespace) -> Studio:
    """Begin or continue the run in options.run; returns the studio with the tuned model."""
    begun = read_config(options.run) if options.resume and (options.run / "config.json").exists() else {}
    plan = Preset.from_config(begun) if begun else PRESETS[options.preset]
    plan = plan.changed(**given_knobs(options, "reward", "rank", *KNOBS))
    asked = {
        "model": str(options.model) if options.model else begun.get("model"),
        "faces": str(options.faces) if options.faces else begun.get("faces"),
        "clips": [str(clip) for clip in options.clips] or begun.get("clips", []),
        "scenes": options.scenes or begun.get("scenes", SCENES),
    }
    studio = open_studio(asked["model"], asked["faces"])
    studio.model.new_adapter(plan.rank, seed=plan.loop.seed)
    config = {**asked, "model_sha256": studio.model.base_sha256, **plan.config()}
    opened = (
        Run.open(options.run, config, may_differ=MAY_DIFFER) if begun else Run.create(options.run, config)
    )
    with opened as run:
        if asked["clips"]:
            scenes = list(clip_scenes([Path(clip) for clip in asked["clips"]]))
        else:
            scenes = [s for s in tiny_world_scenes("tuning", asked["scenes"]) if studio.shows_face(s)]
        samples = [studio.training_sample(scene) for scene in progress(scenes, "face pools")]
        objective = IproObjective(
            studio.model, studio.codec, studio.detector, studio.recognizer, plan.reward, plan.ipro
        )
        with closing(train_loop(studio.model, objective, samples, plan.loop, run)) as records:
            bar: Any = progress(records, "tuning", total=plan.loop.updates)
            for record in bar:
                bar.set_postfix(reward=f"{record.metrics['reward']:.3f}", kl=f"{record.metrics['kl']:.4f}")
        export_lora(studio.model, run.adapters / LORA, {"ipro.settings": json.dumps(run.config)})
    return studio


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="Where settings come from.")
    parser.add_argument(
        "--scenes", type=int, help=f"Scenes of the embedded world to tune on; default: {SCENES}."
    )
    parser.add_argument("--rank", type=int, default=argparse.SUPPRESS, help="Rank of the LoRA.")
    parser.add_argument("--model", type=Path, help="A Wan network that fits the embedded codec.")
    parser.add_argument("--faces", type=Path, help="A face pack's folder; default: the embedded world's.")
    names = list(reward_catalogue())
    parser.add_argument("--reward", choices=names, default=argparse.SUPPRESS, help="What is rewarded.")
    for settings in KNOB_GROUPS:
        add_knobs(parser, settings)


def sample(options: argparse.Namespace) -> dict[str, Any]:
    """Make a video from a first frame and a prompt, with or without a LoRA."""
    studio, config = open_studio(options.model), {}
    if options.lora:
        import_lora(options.lora, studio.model)
        config = lora_settings(options.lora)
    first_CHW = tiny_square(read_image(options.image)[None])[0]
    scene = Scene(options.image.stem, options.prompt, first_CHW.expand(TINY_FRAMES, -1, -1, -1))
    chosen = given_knobs(options, "steps", "shift", "first_tuned_step")
    plan = Preset.from_config(config) if config else PRESETS["tiny"]
    frames_TCHW = studio.generate(scene, options.seed, plan.changed(**chosen).ipro)
    write_video(options.out, frames_TCHW, TINY_FPS)
    print(f"{options.out}: {len(frames_TCHW)} frames at {TINY_FPS:g} per second")
    return {"video": str(options.out), "frames": len(frames_TCHW), "fps": TINY_FPS, "seed": options.seed}


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, help="The first frame.")
    parser.add_argument("--prompt", default="", help="What happens.")
    parser.add_argument("--lora", type=Path, help="A LoRA to apply.")
    parser.add_argument("--seed", type=int, default=0, help="Of the noise.")
    parser.add_argument("--out", "-o", type=Path, default=Path("sample.mp4"), help="The video to write.")
    parser.add_argument("--model", type=Path, help="A Wan network that fits the embedded codec.")
    add_knobs(parser, IproSettings, only=("steps", "shift", "first_tuned_step"))


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Compare base and tuned on people, prompts and seeds never trained on; writes a report."""
    if bool(options.run) == bool(options.lora):
        raise ValueError(
            "Give what is to be judged: either --run with a run's folder, or --lora with a file."
        )
    config = read_config(options.run) if options.run else {}
    studio = open_studio(options.model or config.get("model"), options.faces or config.get("faces"))
    if options.run:
        _load_adapter(studio, options.run)
    else:
        import_lora(options.lora, studio.model)
    scenes = list(clip_scenes(options.clips)) if options.clips else _held_out(studio, options.held_out)
    report = options.report or (options.run or Path()) / "report.html"
    settings = config or lora_settings(options.lora)  # a LoRA of another tool has none
    comparison, _ = _judge(studio, scenes, options.seeds, settings, options.run)
    _report(report, comparison, config, options.run)
    print(_table(comparison, report))
    return {"report": str(report), **comparison.figures()}


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="The run whose newest adapter is judged.")
    parser.add_argument("--lora", type=Path, help="Or a LoRA file.")
    parser.add_argument("--clips", nargs="+", type=Path, default=[], help="Clips of people never trained on.")
    parser.add_argument("--report", type=Path, help="The page to write; default: report.html in the run.")
    parser.add_argument("--model", type=Path, help="A Wan network that fits the embedded codec.")
    parser.add_argument("--faces", type=Path, help="A face pack's folder; default: the embedded world's.")
    _add_held_out(parser)


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write a run's newest adapter as a LoRA that ComfyUI loads."""
    config = read_config(options.run)
    studio = open_studio(options.model or config.get("model"))
    step = _load_adapter(studio, options.run)
    export_lora(studio.model, options.out, {"ipro.settings": json.dumps(config)})
    print(f"{options.out}: the adapter of update {step}")
    return {"lora": str(options.out), "update": step}


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="The run's folder.")
    parser.add_argument("--out", "-o", type=Path, default=Path(LORA), help="The LoRA to write.")
    parser.add_argument("--model", type=Path, help="The network, if it has moved since.")


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """Tune the embedded model on its own world and measure the gain on people it never saw."""
    began = time.monotonic()
    options.run = options.run or _free_folder(Path("runs") / "demo")
    options.json = True  # the demo always ends with its figures
    studio = _tune(options)
    config = read_config(options.run)
    comparison, film_TCHW = _judge(
        studio, _held_out(studio, options.held_out), options.seeds, config, options.run
    )
    _report(options.run / "report.html", comparison, config, options.run)
    write_video(options.run / "samples" / "side_by_side.mp4", film_TCHW, TINY_FPS)
    print(_table(comparison, options.run / "report.html"))
    figures = comparison.figures()
    outcome = {name: figures[name] for name in DEMO_FIGURES}
    return outcome | {"minutes": round((time.monotonic() - began) / 60, 2), "run": str(options.run)}


DEMO_FIGURES = (
    *("facesim_base", "facesim_tuned", "gain", "gain_ci95", "judge_gain", "judge_gain_ci95"),
    *("motion_ratio", "real_ceiling", "kl", "hack_flags"),
)


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="The run's folder; default: a new one under runs.")
    parser.set_defaults(resume=False, clips=[])
    _add_tuning(parser)
    _add_held_out(parser)


def _add_held_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--held-out", type=int, default=48, help="Scenes of the embedded world to judge on.")
    parser.add_argument("--seeds", type=int, default=2, help="Videos of each scene by each model.")


def _load_adapter(studio: Studio, run: Path) -> int:
    """Give the model the adapter of a run's newest state; returns the update it is of."""
    state = latest_state(run)
    if state is None:
        raise ValueError(f"The run in {run} has no state yet: let it train first.")
    studio.model.new_adapter(read_config(run)["rank"])
    parameters, kept = studio.model.adapter_parameters(), adapter_of(state)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    return state.step


def _held_out(studio: Studio, wanted: int) -> list[Scene]:
    """Scenes of people nothing was trained on, those whose input image shows a face."""
    return [scene for scene in tiny_world_scenes("held_out", wanted) if studio.shows_face(scene)]


def _judge(
    studio: Studio, scenes: Sequence[Scene], seeds: int, config: Mapping[str, Any], run: Path | None
) -> tuple[Comparison, Tensor]:
    """The comparison, and a film of the first scenes: real, base, tuned."""
    settings = IproSettings(**config["ipro"]) if config else PRESETS["tiny"].ipro
    steps = read_metrics(run)[-KL_UPDATES:] if run else []
    film = []

    def watched() -> Iterator[SceneVideos]:
        for pair in progress(studio.pairs(scenes, seeds, settings), "judging", total=len(scenes) * seeds):
            if pair.seed == 0 and len(film) < FILM_SCENES and pair.real_TCHW is not None:
                film.append(
                    side_by_side({"real": pair.real_TCHW, "base": pair.base_TCHW, "tuned": pair.tuned_TCHW})
                )
            yield pair

    kl = sum(step.metrics["kl"] for step in steps) / len(steps) if steps else None
    comparison = compare_videos(watched(), studio.detector, studio.recognizer, studio.judge, kl=kl)
    return comparison, torch.cat(film)


FILM_SCENES = 8
KL_UPDATES = 10
"""The KL that is told is the mean over this many last updates."""


def _report(path: Path, comparison: Comparison, config: Mapping[str, Any], run: Path | None) -> None:
    environment = json.loads((run / "environment.json").read_text()) if run else {}
    write_report(
        path,
        comparison,
        steps=read_metrics(run) if run else [],
        settings=config,
        environment=environment,
    )
    figures = json.dumps(comparison.figures(), indent=2).encode() + b"\n"
    write_atomically(path.with_suffix(".json"), figures)


def _table(comparison: Comparison, report: Path) -> str:
    """The figures for a terminal."""
    gain, judge = comparison.gain, comparison.judge_gain
    lines = [
        f"FaceSim        base {comparison.facesim_base:.3f}   tuned {comparison.facesim_tuned:.3f}   "
        f"real clips {comparison.real_ceiling:.3f}   strangers {comparison.stranger_floor:.3f}",
        f"gain           {gain.mean:+.3f}   95 % {gain.ci95[0]:+.3f} to {gain.ci95[1]:+.3f}   "
        f"({gain.scenes} scenes, {gain.pairs} pairs)",
    ]
    if judge:
        lines.append(f"judge's gain   {judge.mean:+.3f}   95 % {judge.ci95[0]:+.3f} to {judge.ci95[1]:+.3f}")
    lines.append(f"head motion    tuned / base {comparison.motion_ratio:.2f}")
    lines.append(
        f"face found in  base {comparison.coverage('base'):.0%}   tuned {comparison.coverage('tuned'):.0%}   "
        f"real {comparison.coverage('real'):.0%}"
    )
    if comparison.kl is not None:
        lines.append(f"KL             {comparison.kl:.4f}")
    lines += [f"Sign of a hack: {flag}" for flag in comparison.hack_flags]
    return "\n".join([*lines, f"report         {report}"])


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that does not exist."""
    tries = (folder.with_name(f"{folder.name}-{number}") if number > 1 else folder for number in count(1))
    return next(path for path in tries if not path.exists())
