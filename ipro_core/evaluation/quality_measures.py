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

from . import quality
from .quality_networks import Opened, farneback, open_network, preprocessing_hash
from .quality_settings import Dimension, QualitySettings
from .quality_weights import WEIGHTS, NotHere
from .statistics import Gain, finite_gain

Measure = Callable[[Tensor, float], dict[str, float]]
"""Frames in [0, 1] and frames a second → figures by name."""


LEAST_FRAMES = {"ms": 3, "aq": 1, "iq": 1}


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
