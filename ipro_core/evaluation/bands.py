"""What real clips look like, and from where a clip does not: kinds of suspicion, and their limits.

The signs of a clip become scores, in standard deviations of the real clips. What is suspect is set by the
real clips themselves: each of them is scored by the others, and all kinds' limits together are passed by the
wanted share of them. A limit for each kind alone, or a rule of "two signs outside the 5 to 95 % band", would
suspect a quarter or a third of the real clips: eight kinds and fifteen signs each leave their band on others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .rates import Rate
from .signs import SIGNS, Sign

FALSE_ALARMS = 0.08
"""The share of real clips that any suspicion may fall on."""
LEAST_SPREAD = 0.25
"""Standard deviations of signs; a kind whose scores of real clips differ by less counts as if by so much."""
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
    limits_K = _limits(np.array(list(scores.values())).T, false_alarms)
    limits = {kind.name: float(limit) for kind, limit in zip(KINDS, limits_K, strict=True)}
    needed = math.ceil(1 / false_alarms) - 1
    reason = (
        ""
        if count >= needed
        else f"No single clip is called suspect: for {false_alarms:.0%} false alarms at least {needed} real "
        f"clips are needed, and there are {count}."
    )
    middle, spread = _fitted(table)
    return Band(middle, spread, limits, scores, count, reason)


def _limits(scores_NK: np.ndarray, false_alarms: float) -> np.ndarray:
    """A limit for each kind, so that the wanted share of clips passes any: all lie equally far out, each in
    its own kind's spread over the real clips. Infinite where the clips are too few."""
    # A kind that could not be measured on a clip speaks neither for nor against it.
    columns = [column[np.isfinite(column)] for column in scores_NK.T]
    middle_K = np.array([np.median(known) if len(known) else 0.0 for known in columns])
    spread_K = np.array([max(LEAST_SPREAD, known.std() if len(known) else 0.0) for known in columns])
    furthest_N = np.nan_to_num((scores_NK - middle_K) / spread_K).max(axis=1)
    # Among n clips a further one passes the k-th smallest with probability 1 − k / (n + 1).
    rank = math.ceil((1 - false_alarms) * (len(scores_NK) + 1))
    reach = np.sort(furthest_N)[rank - 1] if rank <= len(scores_NK) else np.inf
    return middle_K + reach * spread_K


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
