"""What saving passes does to the gradient: the estimates on known ones, then two knobs on the tiny world."""

from dataclasses import replace

import pytest
import torch

from ipro_core.bench.knobs import _effect, measure_knobs
from ipro_core.job import Samples
from ipro_core.tinyworld import open_tiny_world
from ipro_core.tinyworld.scenes import tiny_scenes
from ipro_core.training.ipro import IproObjective
from ipro_core.training.presets import TINY


def draws(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_is_not_taken_for_bias_and_bias_is_found_in_noise():
    # f = 1 + noise in 300 places, ||E f||² = 300. A knob adds noise of twice the variance: 1 + 2 = 3 times as
    # much in all. Another adds 0.3 everywhere as well: a bias of 0.3, a cosine of 1.
    full = 1 + draws(40, seed=0)
    noisy = full + 2**0.5 * draws(40, seed=1)
    unbiased = _effect("", full, noisy, [10, 0], [5, 0])
    assert abs(unbiased.deviations) < 2 and unbiased.bias < 2 * unbiased.noise
    assert unbiased.variance == pytest.approx(3, rel=0.05)
    assert unbiased.cost == pytest.approx(1.5, rel=0.05)  # half the passes, three times the draws
    assert (noisy - full).mean(dim=0).norm() / 300**0.5 > 2 * unbiased.bias  # what a plain mean would say
    biased = _effect("", full, noisy + 0.3, [10, 0], [5, 0])
    assert biased.bias == pytest.approx(0.3, rel=0.1) and biased.deviations > 5
    assert biased.cosine == pytest.approx(1, abs=0.02)


def test_a_fair_choice_has_no_bias_and_the_authors_anchor_has():
    torch.manual_seed(0)
    studio = open_tiny_world()
    model = studio.model.open()
    model.stack.recompute = True
    model.new_adapter(4)
    for name, parameter in model.adapter_parameters().items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    settings = replace(TINY.method, steps=3, first_tuned_step=0, grad_steps=3, kl_weight=3.0)
    settings = replace(settings, reference_steps=0, kept_passes=1)
    scenes = list(tiny_scenes("tuning", 1)) * 8  # eight noises of one scene: their gradients have a mean
    for work in studio.prepare(scenes, settings, ()):
        assert len(list(work.items)) == 8
    samples = Samples(studio, scenes, settings, ())
    objective = IproObjective(model, studio.codec.open(), *studio.faces.open(), TINY.reward, settings)
    knobs = {"reference": {"reference_steps": 1}, "biased": {"kl_through": "biased"}}
    full, reference, biased = measure_knobs(model, objective, samples, knobs)
    # 3 steps, of which 1 is kept: 5 passes of v_θ, 3 of v_ref; 3 again; 3 backward and 2 for the anchor.
    assert full.forwards == pytest.approx(8 + 3 * 0.52 + 5 * 1.81) and full.bias == 0
    # One reference pass instead of 3; its second backward pass in 2 of 3 cases.
    assert reference.forwards == pytest.approx(6 + 3 * 0.52 + 3 * 1.81 + 1.81 * 2 / 3, abs=1.81 * 2 / 3)
    assert biased.forwards == pytest.approx(8 + 3 * 0.52 + 3 * 1.81)
    assert abs(reference.deviations) < 2 < biased.deviations and biased.bias > 2 * biased.noise
