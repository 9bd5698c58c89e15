"""What may be claimed of several outcomes: which gains stand, which guards held, how many scenes it takes.

"No significant difference" is no proof that nothing was lost: a guard holds only if its interval lies above a
margin that was named beforehand.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from .statistics import RESAMPLES, interval_tail, paired_gain, scene_means

Verdict = Literal["kept", "lost", "not shown"]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of several outcomes, adjusted so that all claims together err in 5 of 100 cases, not each.

    Holm's step-down: the k-th smallest of m counts (m − k + 1) times, and never less than the one before it.
    An outcome that could not be tested, NaN, stays so and does not count.
    """
    tested = sorted(
        (name for name, p in p_values.items() if math.isfinite(p)), key=lambda name: p_values[name]
    )
    adjusted, highest = dict.fromkeys(p_values, float("nan")), 0.0
    for place, name in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * p_values[name]))
        adjusted[name] = highest
    return adjusted


@dataclass(frozen=True)
class Guard:
    """What must not be lost for a gain, and whether it was: by a margin named beforehand."""

    name: str
    change: float
    ci95: tuple[float, float]
    margin: float
    """The least that the change may be."""
    unit: Literal["difference", "ratio"]
    """Tuned − base, or tuned / base."""

    @property
    def verdict(self) -> Verdict:
        """`kept` if the whole interval lies above the margin, `lost` if it lies below."""
        low, high = self.ci95
        return "kept" if low >= self.margin else "lost" if high < self.margin else "not shown"


def guard(
    name: str,
    base: Sequence[float],
    tuned: Sequence[float],
    scene: Sequence[Hashable],
    *,
    margin: float,
    unit: Literal["difference", "ratio"] = "difference",
    seed: int = 0,
) -> Guard:
    """Hold `tuned` against `base` in what must not be lost; pairs that lack a value are left out.

    Args:
        margin: a difference such as −0.02, or a ratio such as 0.8 (of the sums over scenes).
    """
    measured = [
        (a, b, one)
        for a, b, one in zip(base, tuned, scene, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    if not measured:
        return Guard(name, math.nan, (math.nan, math.nan), margin, unit)
    base, tuned, scene = (list(column) for column in zip(*measured, strict=True))
    if unit == "difference":
        gain = paired_gain(base, tuned, scene, seed=seed)
        return Guard(name, gain.mean, gain.ci95, margin, unit)
    change, ci95 = paired_ratio(tuned, base, scene, seed=seed)
    return Guard(name, change, ci95, margin, unit)


def paired_ratio(
    above: Sequence[float], below: Sequence[float], scene: Sequence[Hashable], *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Σ above / Σ below over scenes, with a 95 % interval of the bootstrap over scenes; NaN for what is
    divided by 0 or less, and for the interval of a single scene."""
    both_S2 = scene_means(np.stack([above, below], axis=1).astype(np.float64), scene)
    ratio = _ratio(both_S2.mean(axis=0)).item()
    count = len(both_S2)
    if count < 2 or not math.isfinite(ratio):
        return ratio, (math.nan, math.nan)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    ratios = _ratio(draws @ both_S2)
    if not np.isfinite(ratios).all():  # the divisor's own interval reaches 0: any ratio is possible
        return ratio, (math.nan, math.nan)
    tail = interval_tail(count)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return ratio, (float(low), float(high))


def _ratio(sums_N2: np.ndarray) -> np.ndarray:
    above, below = sums_N2[..., 0], sums_N2[..., 1]
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def scenes_needed(gain: float, spread: float, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """How many scenes show a true gain of this size with this probability, two-sided at `alpha`.

    The paired t-test's number by the normal points, with Guenther's correction z²/2 for the unknown spread:
    equal to the noncentral t's to one scene. None for no gain, which no number of scenes can show.

    Args:
        spread: standard deviation of a scene's difference (`Gain.spread`); more seeds lower it, to the
            scenes' own.
    """
    if not (math.isfinite(gain) and math.isfinite(spread)) or gain == 0:
        return None
    size, normal = abs(gain) / max(spread, 1e-12), NormalDist()
    z_alpha, z_power = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    # Below six scenes a sign-flip test cannot reach 0.05 at all: 2 / 2⁵ is more.
    fewest = math.floor(1 - math.log2(alpha)) + 1
    return max(fewest, math.ceil(((z_alpha + z_power) / size) ** 2 + z_alpha**2 / 2))


def least_gain(scenes: int, spread: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true gain that so many scenes show with this probability; `scenes_needed` turned round.
    NaN where the scenes are too few for any."""
    normal = NormalDist()
    z_alpha, z_power = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    free = scenes - z_alpha**2 / 2
    if free <= 0 or 2.0 ** (1 - scenes) > alpha:
        return math.nan
    return spread * (z_alpha + z_power) / math.sqrt(free)
