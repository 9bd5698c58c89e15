"""Quality of generated clips: which dimensions were asked for, what each needs, and what it gave or why
not."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..types import knob
from . import quality
from .hacking import finite_gain
from .quality_networks import WEIGHTS, NotHere, Opened, farneback, open_network, preprocessing_hash
from .statistics import Gain

Measure = Callable[[Tensor, float], dict[str, float]]
"""Frames in [0, 1] and frames a second → figures by name."""


@dataclass(frozen=True)
class Dimension:
    """One of VBench's dimensions."""

    short: str
    name: str
    figures: tuple[str, ...]
    networks: tuple[str, ...]
    extra: bool = False
    """Only where it is named: its licence forbids commercial use."""


DIMENSIONS = (
    Dimension("sc", "Subject consistency", ("sc",), ("dino",)),
    Dimension("bc", "Background consistency (whole frame)", ("bc",), ("clip_b32",)),
    Dimension("aq", "Aesthetic quality", ("aq",), ("clip_l14", "aesthetic")),
    Dimension("tf", "Temporal flickering (rewards stillness)", ("tf",), ()),
    Dimension("dd", "Dynamic degree", ("dd_dynamic", "dd_top5_px", "dd_top5_rel"), ("raft",)),
    Dimension("iq", "Imaging quality", ("iq",), ("musiq",), extra=True),
    Dimension("ms", "Motion smoothness", ("ms",), ("amt",), extra=True),
    Dimension(
        "farneback", "Farnebäck's flow, no dynamic degree", ("farneback_top5_px", "farneback_top5_rel"), ()
    ),
)
BY_SHORT = {dimension.short: dimension for dimension in DIMENSIONS}
LEAST_FRAMES = {"ms": 3, "aq": 1, "iq": 1}


@dataclass(frozen=True)
class QualitySettings:
    """Which dimensions, and where their weights lie; each is looked for in the folders of models."""

    quality: str = knob(
        "",
        "VBench-compatible quality of the videos: sc, bc, aq, tf, dd, farneback, and iq, ms, whose networks "
        "forbid commercial use, with commas between; all: the first five; empty: none.",
    )
    dino: str = knob("", "DINO ViT-B/16 for sc: a .safetensors file or its folder.")
    clip_b32: str = knob("", "CLIP ViT-B/32 for bc: a .safetensors file or its folder.")
    clip_l14: str = knob("", "CLIP ViT-L/14 for aq: a .safetensors file or its folder.")
    aesthetic: str = knob("", "LAION's linear head for aq, as .safetensors.")
    raft: str = knob("", "RAFT for dd, as .safetensors.")
    musiq: str = knob("", "MUSIQ for iq, as .safetensors; for pyiqa, PolyForm Noncommercial.")
    amt: str = knob("", "AMT-S for ms, as .onnx; CC BY-NC 4.0.")

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """
        Raises:
            ValueError: one is unknown.
        """
        words = [word.strip().lower() for word in self.quality.split(",") if word.strip()]
        names = [name for word in words for name in (_usual() if word == "all" else [word])]
        for name in names:
            if name not in BY_SHORT:
                raise ValueError(
                    f"There is no dimension {name} of quality: choose of {', '.join(BY_SHORT)}, or all."
                )
        return tuple(BY_SHORT[name] for name in dict.fromkeys(names))


def _usual() -> list[str]:
    return [d.short for d in DIMENSIONS if not d.extra and d.short != "farneback"]


@dataclass(eq=False)
class QualityMeter:
    """Measures clip by clip, its networks opened once."""

    dimensions: tuple[Dimension, ...]
    measures: dict[str, Measure]
    """Of the dimensions that can be computed here."""
    reasons: dict[str, str]
    """Of those that cannot: why not."""
    networks: dict[str, str] = field(default_factory=dict)
    """Name and SHA-256 of what was used, by dimension."""

    def __call__(self, frames_TCHW: Tensor, fps: float) -> dict[str, float]:
        """Every figure asked for; NaN with a reason where there is none."""
        figures: dict[str, float] = {}
        for dimension in self.dimensions:
            figures |= dict.fromkeys(dimension.figures, math.nan)
            least = LEAST_FRAMES.get(dimension.short, 2)
            if len(frames_TCHW) < least:
                self.reasons.setdefault(dimension.short, f"It takes at least {least} frames.")
            elif dimension.short in self.measures:
                try:
                    figures |= self.measures[dimension.short](frames_TCHW, fps)
                except (
                    RuntimeError,
                    ValueError,
                ) as error:  # out of memory, a frame below a network's least size
                    self.reasons.setdefault(dimension.short, f"The network failed: {error}.")
        return figures


def open_meter(
    settings: QualitySettings, roots: Sequence[Path] = (), device: torch.device | str = "cpu"
) -> QualityMeter:
    """Networks that cannot be had become reasons, not errors.

    Raises:
        ValueError: a dimension is unknown.
    """
    dimensions = settings.dimensions
    meter = QualityMeter(dimensions, {}, {})
    for dimension in dimensions:
        try:
            opened = [
                open_network(kind, getattr(settings, kind), roots, device) for kind in dimension.networks
            ]
        except NotHere as reason:
            meter.reasons[dimension.short] = str(reason)
            continue
        meter.measures[dimension.short] = _measure(dimension.short, opened)
        meter.networks[dimension.short] = ", ".join(network.name for network in opened)
    return meter


def _measure(short: str, opened: Sequence[Opened]) -> Measure:
    asks = [network.ask for network in opened]

    def by_flow(flow: quality.Flow, prefix: str, kept: Sequence[str]) -> Measure:
        def measure(frames_TCHW: Tensor, fps: float) -> dict[str, float]:
            fastest = quality.fastest_flow(frames_TCHW, fps, flow)
            told = quality.flow_figures(fastest, frames_TCHW.shape[2], frames_TCHW.shape[3], fps)
            return {f"{prefix}_{name}": told[name] for name in kept}

        return measure

    if short == "dd":
        return by_flow(asks[0], "dd", ("dynamic", "top5_px", "top5_rel"))
    if short == "farneback":
        return by_flow(farneback, "farneback", ("top5_px", "top5_rel"))
    formula: Callable[..., float] = {
        "sc": quality.subject_consistency,
        "bc": quality.background_consistency,
        "aq": quality.aesthetic_quality,
        "tf": quality.temporal_flickering,
        "iq": quality.imaging_quality,
        "ms": quality.motion_smoothness,
    }[short]
    return lambda frames_TCHW, fps: {short: formula(frames_TCHW, *asks)}


@dataclass(frozen=True)
class ClipQuality:
    scene: str
    seed: int
    figures: Mapping[str, Mapping[str, float]]
    """By "base", "tuned" and, where it is known, "real"."""


@dataclass(frozen=True, eq=False)
class Quality:
    """What was measured on all pairs."""

    clips: tuple[ClipQuality, ...]
    meter: QualityMeter

    def mean(self, which: str, figure: str) -> float:
        """Over the videos; NaN without any."""
        values = [clip.figures[which][figure] for clip in self.clips if which in clip.figures]
        values = [value for value in values if math.isfinite(value)]
        return float(np.mean(values)) if values else math.nan

    def gain(self, figure: str) -> Gain | None:
        """Tuned less base, by scene."""
        rows = [(c.scene, c.figures["base"][figure], c.figures["tuned"][figure]) for c in self.clips]
        return finite_gain(rows)

    def figures(self) -> dict[str, Any]:
        """For JSON: what could not be computed is null and has a reason."""
        told: dict[str, Any] = {}
        for dimension in self.meter.dimensions:
            for figure in dimension.figures:
                gain = self.gain(figure)
                means = {which: self.mean(which, figure) for which in ("base", "tuned", "real")}
                told[figure] = {
                    name: value if math.isfinite(value) else None for name, value in means.items()
                }
                told[figure] |= {"gain": gain and gain.mean, "gain_ci95": gain and list(gain.ci95)}
            known = {"network": self.meter.networks.get(dimension.short), "licence": licence_of(dimension)}
            known["reason"] = self.meter.reasons.get(dimension.short)
            for figure in dimension.figures:
                told[figure] |= known
        return {"figures": told, "rules": f"VBench-compatible, {preprocessing_hash()}", "official": False}


def licence_of(dimension: Dimension) -> str:
    return "; ".join(f"{WEIGHTS[kind].name}: {WEIGHTS[kind].licence}" for kind in dimension.networks)
