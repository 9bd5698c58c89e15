"""What may be claimed: Holm by hand, guards by their margins, how many scenes by the noncentral t."""

import math

import numpy as np
import pytest

from ipro_core.evaluation.claims import guard, holm, least_gain, paired_ratio, scenes_needed
from ipro_core.evaluation.statistics import paired_gain

NAN = float("nan")


def test_holm_by_hand():
    # Sorted: 0.01 × 4, 0.02 × 3, 0.03 × 2 = 0.06 not below the one before, 0.5 × 1.
    adjusted = holm({"a": 0.03, "b": 0.01, "c": 0.5, "d": 0.02})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.5, "d": 0.06})
    assert holm({"a": 0.04}) == {"a": 0.04}
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0
    untested = holm({"a": 0.04, "b": NAN})
    assert untested["a"] == 0.04 and math.isnan(untested["b"])


def test_holm_keeps_all_claims_together_at_5_of_100():
    # 4 outcomes without any effect, 2000 evaluations: 5 ± 3 · 0.5 of 100 may claim anything at all.
    p_values = np.random.default_rng(0).uniform(size=(2000, 4))
    claimed = [min(holm(dict(enumerate(row))).values()) < 0.05 for row in p_values]
    assert 0.035 < np.mean(claimed) < 0.065
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.15, "each on its own: 1 − 0.95⁴ = 0.185"


def test_a_guard_holds_only_if_its_whole_interval_does():
    scenes = list(range(40))
    noise = np.random.default_rng(0).normal(0, 0.02, 40)
    noise -= noise.mean()  # an interval of about ± 0.0065
    base = np.full(40, 0.9)
    verdicts = {
        change: guard("coverage", base, base + change + noise, scenes, margin=-0.02).verdict
        for change in (0.0, -0.01, -0.018, -0.05)
    }
    assert verdicts == {0.0: "kept", -0.01: "kept", -0.018: "not shown", -0.05: "lost"}
    few = guard("coverage", base[:1], base[:1], scenes[:1], margin=-0.02)
    assert few.verdict == "not shown", "one scene shows nothing"
    none = guard("coverage", [NAN], [0.5], [0], margin=-0.02)
    assert none.verdict == "not shown" and math.isnan(none.change)


def test_a_ratio_is_of_sums_with_an_interval_by_scene():
    base, tuned = [0.2, 0.4, NAN, 0.6], [0.1, 0.3, 9.0, 0.5]
    motion = guard("motion", base, tuned, ["a", "a", "a", "b"], margin=0.8, unit="ratio")
    # Scene a: 0.3 and 0.2, scene b: 0.6 and 0.5; (0.2 + 0.5) / (0.3 + 0.6).
    assert motion.change == pytest.approx(0.7 / 0.9)
    # Drawing one scene twice gives 0.2 / 0.3 or 0.5 / 0.6, a quarter of the draws each.
    assert motion.ci95 == pytest.approx((0.2 / 0.3, 0.5 / 0.6))
    assert motion.verdict == "not shown"
    constant = guard("motion", [0.2, 0.4], [0.19, 0.38], [0, 1], margin=0.8, unit="ratio")
    assert constant.ci95 == pytest.approx((0.95, 0.95)) and constant.verdict == "kept"
    assert math.isnan(paired_ratio([1.0, 1.0], [0.0, 0.0], [0, 1])[0])
    uncertain = paired_ratio([1.0, 1.0], [3.0, -1.0], [0, 1])
    assert uncertain[0] == 1.0 and math.isnan(uncertain[1][0]), "a divisor that may be 0 bounds nothing"


def power_of_t(scenes: int, size: float) -> float:
    """Of the two-sided paired t-test at 0.05, by the noncentral t."""
    from scipy import stats

    critical, centre = stats.t.ppf(0.975, scenes - 1), size * math.sqrt(scenes)
    return stats.nct.sf(critical, scenes - 1, centre) + stats.nct.cdf(-critical, scenes - 1, centre)


@pytest.mark.parametrize("size", [0.2, 0.3, 0.5, 0.8, 1.2])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_the_number_of_scenes_is_the_noncentral_ts_to_one(size, power):
    exact = next(count for count in range(3, 2000) if power_of_t(count, size) >= power)
    needed = scenes_needed(size * 0.1, 0.1, power=power)
    assert abs(needed - exact) <= 1
    # Turned round it is the same law: so many scenes show the gain, one fewer does not.
    assert least_gain(needed, 0.1, power=power) <= size * 0.1 < least_gain(needed - 1, 0.1, power=power)


def test_the_sign_flip_test_finds_a_gain_as_often_as_promised():
    generator, needed = np.random.default_rng(1), scenes_needed(0.1, 0.1)
    assert needed == 10  # as tables of the paired t-test have it for an effect of one spread
    gains = generator.normal(0.1, 0.1, (200, needed))
    p_values = [paired_gain(np.zeros(needed), one, range(needed)).p_value for one in gains]
    # 0.8 within three standard errors of 0.028.
    assert np.mean([p < 0.05 for p in p_values]) == pytest.approx(0.8, abs=0.085)


def test_what_no_number_of_scenes_can_show_has_none():
    assert scenes_needed(0.0, 0.1) is None
    assert scenes_needed(0.1, NAN) is None
    # However large the gain: five scenes have 2⁵ patterns of signs, so no p below 2/32.
    assert scenes_needed(1.0, 0.001) == 6
    assert math.isnan(least_gain(5, 0.1)) and math.isfinite(least_gain(6, 0.1))
