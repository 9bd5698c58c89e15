"""The opt-in guards of `ipro evaluate`: flags, and what they open."""

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clips.vision import VisionClient, VisionSettings
from ..evaluation.guards import GuardResults, Guards
from ..evaluation.quality_measures import open_meter
from ..evaluation.quality_settings import QualitySettings
from ..evaluation.vision_verdict import MODELS
from ..studio import Studio
from .flags import add_knobs, given_knobs, models_folders


def add_guards(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guards of the gain")
    suspicions = "Compare every clip with the real ones: frozen, pasted, smoothed, grown, changed faces."
    group.add_argument("--hacking", action="store_true", help=suspicions)
    official = "The Python of an environment with the official vbench, which scores the videos too."
    group.add_argument("--vbench-python", type=Path, help=official)
    add_knobs(parser, QualitySettings)
    add_knobs(parser, VisionSettings, title="a vision-language model that judges clips, with --hacking")


def open_guards(options: argparse.Namespace, studio: Studio, report: Path) -> Guards | None:
    """None where no guard is wanted.

    Raises:
        ValueError: a dimension is unknown, or a vision model is named without --hacking.
    """
    quality = _given(options, QualitySettings)
    vision = _given(options, VisionSettings)
    if vision.vision_model and not options.hacking:
        raise ValueError("--vision-model judges clips that are suspected: give --hacking with it.")
    if not (options.hacking or quality.quality or options.vbench_python):
        return None
    codec = studio.codec.open()

    def decoded(frames_TCHW: Tensor) -> Tensor:
        return codec.decode(codec.encode(frames_TCHW[None].to(studio.device)))[0].clamp(0, 1).cpu()

    return Guards(
        studio.framing.fps,
        open_meter(quality, weight_roots(), studio.device) if quality.quality else None,
        studio.faces.open() if options.hacking else None,
        VisionClient(vision, report.with_name("vision.jsonl")) if vision.vision_model else None,
        decoded,
        options.vbench_python,
        str(studio.device),
    )


def weight_roots() -> list[Path]:
    """A ComfyUI's folders of models, and the cache of Hugging Face."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return [*models_folders(), home / "hub"]


def guard_lines(results: GuardResults) -> list[str]:
    """For a terminal."""
    lines = []
    if results.quality:
        for figure, told in results.quality.figures()["figures"].items():
            if told["tuned"] is None:
                lines.append(f"{figure:<14} {told['reason'] or 'could not be measured'}")
            else:
                lines.append(f"{figure:<14} base {told['base']:.4f}   tuned {told['tuned']:.4f}")
    for which, scores in (results.official or {}).items():
        for short, score in scores.items():
            lines.append(f"vbench {short} {which:<6} " + (score.reason or f"{score.value:.4f}"))
    if results.hacking and results.hacking.reason:
        lines.append(f"suspicions     {results.hacking.reason}")
    if results.verdicts:
        for which in MODELS:
            corrected = results.verdicts.corrected(which)
            told = corrected.reason if corrected.value is None else f"{corrected.value:.0%} hacked, corrected"
            lines.append(f"{which:<14} {told}")
    return [*lines, *results.flags]


def _given(options: argparse.Namespace, settings: type) -> Any:
    return settings(**given_knobs(options, *(declared.name for declared in fields(settings))))
