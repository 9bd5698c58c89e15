"""Paired statistics: closed forms, a bootstrap by hand, and how often the interval holds the truth."""

import numpy as np
import pytest

from ipro_core.evaluation.statistics import bootstrap_interval, paired_gain, scene_means


def test_a_constant_difference_has_an_interval_of_no_width():
    base = [0.25, 0.5, 0.125, 0.75]
    gain = paired_gain(base, [value + 0.125 for value in base], ["a", "a", "b", "c"])
    assert gain.mean == 0.125
    assert gain.ci95 == (0.125, 0.125)
    assert (gain.share_improved, gain.scenes, gain.pairs) == (1.0, 3, 4)
    # 2³ patterns of signs; only + + + and − − − are as far from 0: 2/8.
    assert gain.p_value == 0.25


def test_every_scene_weighs_the_same_however_many_seeds_it_has():
    # Scene a gains 0 on three seeds, scene b gains 1 on one: the mean is 1/2, not 1/4.
    gain = paired_gain([0, 0, 0, 0], [0, 0, 0, 1], ["a", "a", "a", "b"])
    assert gain.mean == 0.5
    assert gain.share_improved == 0.5
    assert scene_means(np.array([1.0, 2.0, 6.0]), ["b", "a", "b"]).tolist() == [3.5, 2.0]


def test_no_gain_at_all_gives_p_of_one():
    gain = paired_gain([0.5] * 20, [0.5] * 20, list(range(20)))
    assert (gain.mean, gain.ci95, gain.share_improved, gain.p_value) == (0, (0, 0), 0, 1)


def test_the_interval_is_the_bootstrap_done_by_hand():
    generator = np.random.default_rng(3)
    gains = generator.normal(0.1, 0.2, 25)
    means = [gains[generator.integers(0, 25, 25)].mean() for _ in range(20_000)]
    # Expanded percentile for 25 scenes: Φ(−√(25/24) · t(0.975, 24)) with t = 2.0639 is 0.0176.
    low, high = np.quantile(means, [0.0176, 1 - 0.0176])
    gain = paired_gain(np.zeros(25), gains, range(25))
    # A quantile of 10 000 means scatters by about 0.0012 here.
    assert gain.ci95 == pytest.approx((low, high), abs=0.005)
    assert gain == paired_gain(np.zeros(25), gains, range(25)), "the same values give the same interval"


def test_seeds_of_one_scene_do_not_narrow_the_interval_as_scenes_do():
    generator = np.random.default_rng(0)
    effect_S = generator.normal(0.05, 0.1, 30)
    gains = effect_S.repeat(4)
    scenes = np.arange(30).repeat(4).tolist()
    clustered = paired_gain(np.zeros(120), gains, scenes)
    independent = paired_gain(np.zeros(120), gains, range(120))
    widths = [gain.ci95[1] - gain.ci95[0] for gain in (clustered, independent)]
    # Four equal seeds look like four times the scenes: half the width.
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("scenes", "low", "high"), [(8, 0.915, 0.955), (32, 0.935, 0.965)])
def test_the_interval_holds_the_truth_about_95_times_of_100(scenes, low, high):
    # 2000 evaluations at once, as columns; the standard error of the share is 0.005.
    values = np.random.default_rng(1).normal(0.3, 1, (scenes, 2000))
    lower, upper = bootstrap_interval(values, resamples=1000)
    assert low < ((lower < 0.3) & (upper > 0.3)).mean() < high


def test_the_sign_flip_test_is_uniform_without_an_effect():
    generator = np.random.default_rng(2)
    p_values = [paired_gain(np.zeros(9), generator.normal(size=9), range(9)).p_value for _ in range(150)]
    assert np.mean([p_value < 0.05 for p_value in p_values]) == pytest.approx(0.05, abs=0.05)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.07)  # three standard errors


def test_one_scene_has_no_interval_and_none_is_an_error():
    gain = paired_gain([0.5, 0.5], [0.6, 0.7], ["a", "a"])
    assert gain.mean == pytest.approx(0.15)
    assert np.isnan(gain.ci95).all()
    with pytest.raises(ValueError, match="no pair"):
        paired_gain([], [], [])
