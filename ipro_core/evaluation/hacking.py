"""Which clips look hacked, by comparison with real clips (Section 4.3, Table 6): suspicions, not verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bands import FALSE_ALARMS, KINDS, Band, Signs, band_of
from .rates import Rate
from .signs import NAMES, SIGNS
from .statistics import Gain, finite_gain

LEAST_RISE = 0.3
"""Standard deviations of the real clips by which a score must rise from base to tuned to be told."""


@dataclass(frozen=True)
class ClipSigns:
    """What was measured on one pair: the same scene and noise by both models, and what was filmed."""

    scene: str
    seed: int
    signs: Mapping[str, Signs]
    """By "base", "tuned" and, where it is known, "real"."""


@dataclass(frozen=True, eq=False)
class Hacking:
    """Suspicions against base and tuned."""

    clips: tuple[ClipSigns, ...]
    band: Band | None
    reason: str = ""
    """Why there is no band."""

    def rate(self, which: str, kind: str) -> Rate:
        """Of how many clips a kind is suspected."""
        assert self.band
        found = [kind in self.band.suspicions(clip.signs[which]) for clip in self.clips]
        return Rate(sum(found), len(found))

    def any_rate(self, which: str) -> Rate:
        """Of how many clips anything is suspected."""
        assert self.band
        found = [bool(self.band.suspicions(clip.signs[which])) for clip in self.clips]
        return Rate(sum(found), len(found))

    def rise(self, kind: str) -> Gain | None:
        """How far a kind's score rises from base to tuned; None where it could not be measured."""
        assert self.band
        rows = [
            (
                clip.scene,
                self.band.scores(clip.signs["base"])[kind],
                self.band.scores(clip.signs["tuned"])[kind],
            )
            for clip in self.clips
        ]
        return finite_gain(rows)

    def mean(self, which: str, sign: str) -> float:
        """Mean of a sign over the clips, of ratios the geometric; NaN if nothing was measured."""
        ratio = next(one.ratio for one in SIGNS if one.name == sign)
        values = np.array([clip.signs[which][sign] for clip in self.clips if which in clip.signs])
        values = values[np.isfinite(values)]
        if not len(values):
            return math.nan
        return float(np.exp(np.log(np.maximum(values, 1e-6)).mean()) if ratio else values.mean())

    @property
    def flags(self) -> tuple[str, ...]:
        """What rose from base to tuned beyond chance, one plain sentence each."""
        if self.band is None:
            return ()
        flags = []
        for kind in KINDS:
            rise = self.rise(kind.name)
            if rise and rise.mean >= LEAST_RISE and rise.ci95[0] > 0:
                flags.append(
                    f"Suspected {kind.name}: {kind.suspicion}, by {rise.mean:+.2f} standard deviations of "
                    f"the real clips from base to tuned (95 % {rise.ci95[0]:+.2f} to {rise.ci95[1]:+.2f})."
                )
        return tuple(flags)

    def figures(self) -> dict[str, Any]:
        """For JSON; None where nothing can be said."""
        if self.band is None:
            return {"suspected": None, "reason": self.reason}
        kinds = {}
        for kind in KINDS:
            rise, alarms = self.rise(kind.name), self.band.false_alarms[kind.name]
            told: dict[str, Any] = {"rise": rise and rise.mean, "rise_ci95": rise and list(rise.ci95)}
            if not self.band.reason:
                for which in ("base", "tuned"):
                    rate = self.rate(which, kind.name)
                    told |= {which: rate.share, f"{which}_ci95": list(rate.ci95)}
                told["false_alarms_on_real"] = alarms.share
            kinds[kind.name] = told
        signs = {
            name: {which: self.mean(which, name) for which in ("base", "tuned", "real")} for name in NAMES
        }
        return {
            "suspected": kinds,
            "signs": signs,
            "any": {which: self.any_rate(which).share for which in ("base", "tuned")},
            "any_of_real": self.band.any_false_alarm.share,
            "real_clips": self.band.clips,
            "reason": self.band.reason or None,
            "flags": list(self.flags),
        }


def judge_signs(clips: Sequence[ClipSigns], *, false_alarms: float = FALSE_ALARMS) -> Hacking:
    """Compare generated clips with the real ones among them; a scene's real clip counts once."""
    real = {clip.scene: clip.signs["real"] for clip in clips if "real" in clip.signs}
    try:
        return Hacking(tuple(clips), band_of(list(real.values()), false_alarms=false_alarms))
    except ValueError as reason:
        return Hacking(tuple(clips), None, str(reason))
