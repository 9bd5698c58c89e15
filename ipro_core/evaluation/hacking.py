"""Which clips look hacked, by comparison with real clips (Section 4.3, Table 6): suspicions, not verdicts.

The signs of a clip become scores, in standard deviations of the real clips. What is suspect is set by the
real clips themselves: each of them is scored by the others, and the limit is passed by the wanted share of
them. A rule of "two signs outside the 5 to 95 % band" would suspect a third of the real clips: fifteen
signs leave it often.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .rates import Rate
from .signs import NAMES, SIGNS, Sign
from .statistics import Gain, paired_gain

FALSE_ALARMS = 0.05
"""The share of real clips that each kind of suspicion may fall on."""
LEAST_RISE = 0.3
"""Standard deviations of the real clips by which a score must rise from base to tuned to be told."""
MOST = 6.0
"""Standard deviations; more are counted as this many, so that one broken sign does not rule a mean."""
LEAST_CLIPS = 4
Signs = Mapping[str, float]


@dataclass(frozen=True)
class Kind:
    """One kind of suspicion: signs, and in which direction each speaks for it."""

    name: str
    suspicion: str
    low: tuple[str, ...] = ()
    high: tuple[str, ...] = ()
    together: bool = False
    """Whether the signs' mean counts, because each alone is weak; else the strongest."""

    def score(self, z: Mapping[str, float]) -> float:
        values = [-z[name] for name in self.low] + [z[name] for name in self.high]
        values = [value for value in values if math.isfinite(value)]
        if not values:
            return math.nan
        return sum(values) / len(values) if self.together else max(values)


KINDS = (
    Kind(
        "stiffness",
        "the face moves and changes less than real ones do",
        low=("face_change", "expression", "turn", "diversity"),
        high=("likeness", "copy_index"),
        together=True,
    ),
    Kind(
        "pasted face",
        "one picture of the face is laid on the moving head",
        low=("face_change",),
        high=("copy_index",),
    ),
    Kind("frontal", "the head is kept frontal", low=("frontal",)),
    Kind(
        "other face",
        "the face becomes or jumps to another one",
        low=("likeness", "coverage"),
        high=("jump", "diversity"),
    ),
    Kind(
        "surface",
        "the face is smoothed, sharpened, blocky or flickers",
        low=("sharpness",),
        high=("sharpness", "blocks", "flicker"),
    ),
    Kind("size", "the face grows", high=("growth",)),
    Kind("more faces", "faces appear", high=("extra_faces",)),
    Kind("still background", "all but the head stands still", low=("background",)),
)


@dataclass(frozen=True, eq=False)
class Band:
    """What real clips look like, and from where a clip does not."""

    middle: Mapping[str, float]
    """Median of each sign, of ratios their logarithm; NaN for one that no real clip has."""
    spread: Mapping[str, float]
    limits: Mapping[str, float]
    """Of each kind's score; infinite where the clips are too few to say."""
    real_scores: Mapping[str, tuple[float, ...]]
    """Of each real clip against the others."""
    clips: int
    reason: str = ""
    """What cannot be said, and why."""

    def scores(self, signs: Signs) -> dict[str, float]:
        return _scores(signs, self.middle, self.spread)

    def suspicions(self, signs: Signs) -> tuple[str, ...]:
        """The kinds whose limit the clip passes."""
        scores = self.scores(signs)
        return tuple(name for name, limit in self.limits.items() if scores[name] > limit)

    @property
    def any_false_alarm(self) -> Rate:
        """How many of the real clips any suspicion falls on."""
        rows = zip(*self.real_scores.values(), strict=True)
        limits = self.limits.values()
        found = [any(s > limit for s, limit in zip(row, limits, strict=True)) for row in rows]
        return Rate(sum(found), len(found))

    @property
    def false_alarms(self) -> dict[str, Rate]:
        """How many of the real clips each kind falls on."""
        return {
            name: Rate(sum(score > self.limits[name] for score in scores), len(scores))
            for name, scores in self.real_scores.items()
        }


def band_of(real: Sequence[Signs], *, false_alarms: float = FALSE_ALARMS) -> Band:
    """The band of real clips, one row of signs for each.

    Raises:
        ValueError: they are fewer than four.
    """
    count = len(real)
    if count < LEAST_CLIPS:
        raise ValueError(
            f"What a hacked face looks like is measured on real clips, and {count} of them say too little: "
            f"give at least {LEAST_CLIPS}, better 40."
        )
    table = np.array([[_value(sign, signs) for sign in SIGNS] for signs in real])
    left_out = [_scores(signs, *_fitted(np.delete(table, row, axis=0))) for row, signs in enumerate(real)]
    scores = {kind.name: tuple(row[kind.name] for row in left_out) for kind in KINDS}
    # Among n clips a further one passes the k-th smallest of their scores with probability 1 − k / (n + 1).
    rank = math.ceil((1 - false_alarms) * (count + 1))
    enough = rank <= count
    table_NK = np.nan_to_num(np.array(list(scores.values())).T, nan=-np.inf)
    limits_K = np.sort(table_NK, axis=0)[rank - 1] if enough else np.full(len(KINDS), np.inf)
    limits = {kind.name: float(limit) for kind, limit in zip(KINDS, limits_K, strict=True)}
    needed = math.ceil(1 / false_alarms) - 1
    reason = (
        ""
        if enough
        else f"No single clip is called suspect: for {false_alarms:.0%} false alarms at least {needed} real "
        f"clips are needed, and there are {count}."
    )
    middle, spread = _fitted(table)
    return Band(middle, spread, limits, scores, count, reason)


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


def finite_gain(rows: Sequence[tuple[str, float, float]]) -> Gain | None:
    """Of (scene, base, tuned), those that are numbers; None without any."""
    known = [row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])]
    if not known:
        return None
    scenes, base, tuned = zip(*known, strict=True)
    return paired_gain(base, tuned, scenes)


def judge_signs(clips: Sequence[ClipSigns], *, false_alarms: float = FALSE_ALARMS) -> Hacking:
    """Compare generated clips with the real ones among them; a scene's real clip counts once."""
    real = {clip.scene: clip.signs["real"] for clip in clips if "real" in clip.signs}
    try:
        return Hacking(tuple(clips), band_of(list(real.values()), false_alarms=false_alarms))
    except ValueError as reason:
        return Hacking(tuple(clips), None, str(reason))


def _value(sign: Sign, signs: Signs) -> float:
    value = signs[sign.name]
    # A thousandth is as good as nothing: the logarithm of 0 would end every mean.
    return math.log(max(value, 1e-3)) if sign.ratio and math.isfinite(value) else value


def _fitted(table_NS: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    middle, spread = {}, {}
    for column, sign in zip(table_NS.T, SIGNS, strict=True):
        known = column[np.isfinite(column)]
        middle[sign.name] = float(np.median(known)) if len(known) else math.nan
        spread[sign.name] = max(float(known.std()) if len(known) else 0.0, sign.grain, 1e-3)
    return middle, spread


def _scores(signs: Signs, middle: Mapping[str, float], spread: Mapping[str, float]) -> dict[str, float]:
    z = {
        sign.name: min(MOST, max(-MOST, (_value(sign, signs) - middle[sign.name]) / spread[sign.name]))
        if math.isfinite(signs[sign.name]) and math.isfinite(middle[sign.name])
        else math.nan
        for sign in SIGNS
    }
    return {kind.name: kind.score(z) for kind in KINDS}
