"""Shares of clips with their uncertainty, and a judge's share corrected by its errors on clips of known
truth."""

import math
from dataclasses import dataclass

import numpy as np

LEAST_YOUDEN = 0.3
"""Hit rate less false alarms, below which a judge tells nothing."""
DRAWS = 20_000
Z = 1.959964


@dataclass(frozen=True)
class Rate:
    """`count` of `of` clips."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else math.nan

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's interval; NaN without a clip."""
        if not self.of:
            return math.nan, math.nan
        share, spread = self.share, Z**2 / self.of
        middle = (share + spread / 2) / (1 + spread)
        half = Z / (1 + spread) * math.sqrt(share * (1 - share) / self.of + spread / (4 * self.of))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class CorrectedRate:
    """What share of the clips is truly so, given how often the judge is wrong."""

    value: float | None
    ci95: tuple[float, float]
    reason: str = ""
    """Why there is no value."""


def corrected_rate(said: Rate, hits: Rate, false_alarms: Rate, *, seed: int = 0) -> CorrectedRate:
    """Rogan and Gladen's estimate, (said − false alarms) / (hits − false alarms), kept within [0, 1].

    Args:
        said: clips of which the judge said so.
        hits: of control clips of which it is true.
        false_alarms: of control clips of which it is not.
    """
    nothing = math.nan, math.nan
    if not (said.of and hits.of and false_alarms.of):
        return CorrectedRate(None, nothing, "The judge gave no usable answer on clips or on controls.")
    youden = hits.share - false_alarms.share
    if youden < LEAST_YOUDEN:
        return CorrectedRate(
            None,
            nothing,
            f"The judge cannot tell: it finds {hits.share:.0%} of the damaged control clips and suspects "
            f"{false_alarms.share:.0%} of the real ones (a difference of {LEAST_YOUDEN} is wanted).",
        )
    # Jeffreys' distribution of each of the three rates: small controls give a wide interval.
    generator = np.random.default_rng(seed)
    drawn, hit, alarm = (
        generator.beta(rate.count + 0.5, rate.of - rate.count + 0.5, DRAWS)
        for rate in (said, hits, false_alarms)
    )
    apart = hit - alarm > 0.05
    values = np.clip((drawn - alarm)[apart] / (hit - alarm)[apart], 0, 1)
    low, high = np.quantile(values, [0.025, 0.975])
    value = min(1.0, max(0.0, (said.share - false_alarms.share) / youden))
    return CorrectedRate(value, (float(low), float(high)))
