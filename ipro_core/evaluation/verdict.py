"""What an evaluation says: every pair's values, the gain with what it rests on, and what speaks against it.

A frame without the subject's face counts as 0 in every headline: leaving such frames out would rank a model
that loses hard faces above one that keeps them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from .claims import Guard, guard, holm, least_gain, paired_ratio, scenes_needed
from .facesim import PROTOCOL, FaceSim, Scale, common, jsonable
from .motion import motion_ratio
from .people import PeopleKept
from .statistics import Gain, paired_gain, scene_means

LEAST_MOTION = 0.8
"""Tuned over base: below it the face may be kept by moving it less."""
LEAST_TRANSFER = 0.5
"""The judge's gain over the reward recogniser's: below it the gain is that recogniser's, not the face's."""
COVERAGE_SLACK = 0.02
WORTH_SHOWING = 0.05
"""A gain of FaceSim for which the report says how many scenes it needs."""
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class VideoResult:
    """What was measured on one video."""

    facesim: FaceSim
    """Of several people, the one kept worst."""
    judge: FaceSim | None
    motion: float
    """`head_motion`, of base and tuned over the frames in which both show the face."""
    turn: float
    strip_SCHW: Tensor
    """uint8 pictures of the head at the pair's `strip_frames`."""
    quality: Mapping[str, float] = field(default_factory=dict)
    people: PeopleKept | None = None


@dataclass(frozen=True, eq=False)
class PairResult:
    """What was measured on one pair."""

    scene: str
    prompt: str
    seed: int
    base: VideoResult
    tuned: VideoResult
    real: VideoResult | None
    reference_D: Tensor
    strip_frames: tuple[int, ...]
    judge_reference_D: Tensor | None = None

    @property
    def gain(self) -> float:
        return self.tuned.facesim.all - self.base.facesim.all

    @cached_property
    def common(self) -> tuple[float, float]:
        """FaceSim of base and tuned over the frames in which both show the face."""
        return common(self.base.facesim, self.tuned.facesim)

    @property
    def videos(self) -> dict[str, VideoResult]:
        shown = {"real": self.real, "base": self.base, "tuned": self.tuned}
        return {which: video for which, video in shown.items() if video is not None}


@dataclass(frozen=True)
class Transfer:
    """How much of the reward recogniser's gain a judge sees that was never the reward."""

    value: float
    """The judge's gain over the reward's, each on its own scale; NaN where the reward's is none."""
    ci95: tuple[float, float]
    """NaN where the reward's gain may be 0: then any transfer is possible."""
    calibrated: bool
    """Whether both gains are shares of ceiling − floor; else the cosines themselves are divided."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that an evaluation says; `figures` is its short form."""

    pairs: tuple[PairResult, ...]
    gain: Gain
    judge_gain: Gain | None
    stranger_floor: float
    """Mean cosine between the reference faces of different scenes; NaN for a single scene."""
    kl: float | None = None
    judge_floor: float = NAN
    margins: Mapping[str, float] = field(default_factory=dict)
    """The least tuned / base of each measure of quality."""

    @property
    def scenes(self) -> list[str]:
        return [pair.scene for pair in self.pairs]

    def mean(self, which: str, measure: Callable[[VideoResult], float]) -> float:
        """Mean over scenes of a measure on "base", "tuned" or "real"; NaN where nothing could be measured."""
        measured = [(pair.scene, measure(video)) for pair in self.pairs if (video := getattr(pair, which))]
        measured = [(scene, value) for scene, value in measured if math.isfinite(value)]
        if not measured:
            return NAN
        scenes, values = zip(*measured, strict=True)
        return float(scene_means(np.array(values), scenes).mean())

    def gain_in(self, measure: Callable[[VideoResult], float]) -> Gain | None:
        """Over the pairs in which both videos could be measured; None if there are none."""
        pairs = [(pair.scene, measure(pair.base), measure(pair.tuned)) for pair in self.pairs]
        pairs = [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]
        if not pairs:
            return None
        scenes, base, tuned = zip(*pairs, strict=True)
        return paired_gain(base, tuned, scenes)

    @property
    def facesim_base(self) -> float:
        return self.mean("base", lambda video: video.facesim.all)

    @property
    def facesim_tuned(self) -> float:
        return self.mean("tuned", lambda video: video.facesim.all)

    @property
    def real_ceiling(self) -> float:
        """FaceSim of the real clips by the same protocol; NaN without them."""
        return self.mean("real", lambda video: video.facesim.all)

    @property
    def scale(self) -> Scale:
        return Scale(self.stranger_floor, self.real_ceiling)

    @property
    def judge_scale(self) -> Scale:
        return Scale(self.judge_floor, self.mean("real", judged))

    @property
    def common(self) -> tuple[float, float]:
        """FaceSim of base and tuned over the frames in which both show the face; NaN if there are none."""
        both = [(pair.scene, pair.common) for pair in self.pairs if math.isfinite(pair.common[0])]
        if not both:
            return NAN, NAN
        scenes, values = zip(*both, strict=True)
        base, tuned = scene_means(np.array(values), scenes).mean(axis=0).tolist()
        return base, tuned

    @cached_property
    def transfer(self) -> Transfer | None:
        if self.judge_gain is None:
            return None
        known = self.scale.known and self.judge_scale.known
        one, other = [
            scale.ceiling - scale.floor if known else 1.0 for scale in (self.judge_scale, self.scale)
        ]
        by_judge = [(judged(pair.tuned) - judged(pair.base)) / one for pair in self.pairs]
        value, ci95 = paired_ratio(by_judge, [pair.gain / other for pair in self.pairs], self.scenes)
        return Transfer(value, ci95, known)

    @property
    def motion_ratio(self) -> float:
        """Head motion, tuned over base."""
        return motion_ratio(
            [pair.tuned.motion for pair in self.pairs], [pair.base.motion for pair in self.pairs]
        )

    @cached_property
    def guards(self) -> tuple[Guard, ...]:
        """What must not be lost for the gain, each by its margin."""

        def held(name: str, measure: Callable[[VideoResult], float], margin: float, unit: Any) -> Guard:
            base, tuned = (
                [measure(getattr(pair, which)) for pair in self.pairs] for which in ("base", "tuned")
            )
            return guard(name, base, tuned, self.scenes, margin=margin, unit=unit)

        return (
            held("head motion", lambda video: video.motion, LEAST_MOTION, "ratio"),
            held("coverage", lambda video: video.facesim.coverage, -COVERAGE_SLACK, "difference"),
            *(
                held(name, lambda video, name=name: video.quality.get(name, NAN), margin, "ratio")
                for name, margin in self.margins.items()
            ),
        )

    @property
    def rests_on(self) -> str:
        """What the guards of quality rest on, in words."""
        if list(self.margins) == ["sharpness"]:
            return "sharpness alone: none of VBench's measures was taken"
        return ", ".join(self.margins) or "nothing: none was measured"

    @cached_property
    def p_holm(self) -> dict[str, float]:
        """The p-values of all that is claimed, adjusted for being several."""
        drift = self.gain_in(lambda video: video.facesim.drift_tail)
        gains = {"facesim": self.gain, "judge": self.judge_gain, "drift_tail": drift}
        return holm({name: gain.p_value for name, gain in gains.items() if gain})

    def coverage(self, which: str) -> float:
        return self.mean(which, lambda video: video.facesim.coverage)

    @property
    def hack_flags(self) -> tuple[str, ...]:
        """What speaks against the gain, one plain sentence each; empty if nothing does."""
        flags = []
        if self.facesim_tuned > self.real_ceiling:
            flags.append(
                f"FaceSim of the tuned model ({self.facesim_tuned:.3f}) lies above that of the real clips "
                f"({self.real_ceiling:.3f}): real faces turn and change, so the face is probably frozen."
            )
        if not self.motion_ratio >= LEAST_MOTION:
            flags.append(
                f"Head motion fell to {self.motion_ratio:.2f} of the base model's (at least {LEAST_MOTION} "
                "is wanted): the face may be kept by moving it less."
                if math.isfinite(self.motion_ratio)
                else "Head motion could not be measured, so a frozen face would go unnoticed."
            )
        if self.judge_gain and self.transfer and self.transfer.value < LEAST_TRANSFER:
            flags.append(
                f"The judge, a recogniser that was not trained on, gains {self.judge_gain.mean:+.3f} where "
                f"the reward's own gains {self.gain.mean:+.3f}, a transfer of {self.transfer.value:.2f}: the "
                "tuning pleases one network more than it keeps the face."
            )
        if self.coverage("tuned") < self.coverage("base") - COVERAGE_SLACK:
            flags.append(
                f"The face is found in {self.coverage('tuned'):.0%} of the tuned frames and in "
                f"{self.coverage('base'):.0%} of the base's: faces get lost."
            )
        return tuple(flags)

    def figures(self) -> dict[str, Any]:
        """The numbers a program reads, ready for JSON: what could not be measured is None."""
        judge, transfer, first = self.judge_gain, self.transfer, self.pairs[0].base
        return jsonable(
            {
                "facesim_base": self.facesim_base,
                "facesim_tuned": self.facesim_tuned,
                "calibrated_base": self.scale.calibrated(self.facesim_base),
                "calibrated_tuned": self.scale.calibrated(self.facesim_tuned),
                "common_base": self.common[0],
                "common_tuned": self.common[1],
                "gain": self.gain.mean,
                "gain_ci95": self.gain.ci95,
                "p_value": self.gain.p_value,
                "p_holm": self.p_holm,
                "share_improved": self.gain.share_improved,
                "judge_gain": judge.mean if judge else None,
                "judge_gain_ci95": judge.ci95 if judge else None,
                "transfer": transfer.value if transfer else None,
                "transfer_ci95": transfer.ci95 if transfer else None,
                "transfer_calibrated": transfer.calibrated if transfer else None,
                "motion_ratio": self.motion_ratio,
                "guards": {one.name: {**vars(one), "verdict": one.verdict} for one in self.guards},
                "quality_rests_on": self.rests_on,
                "real_ceiling": self.real_ceiling,
                "stranger_floor": self.stranger_floor,
                "judge_ceiling": self.judge_scale.ceiling,
                "judge_floor": self.judge_floor,
                "coverage_base": self.coverage("base"),
                "coverage_tuned": self.coverage("tuned"),
                "coverage_real": self.coverage("real"),
                "kl": self.kl,
                "scenes": self.gain.scenes,
                "pairs": self.gain.pairs,
                "scenes_for_this_gain": scenes_needed(self.gain.mean, self.gain.spread),
                f"scenes_for_{WORTH_SHOWING}": scenes_needed(WORTH_SHOWING, self.gain.spread),
                "least_gain": least_gain(self.gain.scenes, self.gain.spread),
                "hack_flags": self.hack_flags,
                "recognizer": first.facesim.recognizer,
                "judge": first.judge.recognizer if first.judge else None,
                "protocol": PROTOCOL,
                "given": first.facesim.given,
            }
        )


def judged(video: VideoResult) -> float:
    return video.judge.all if video.judge else NAN
