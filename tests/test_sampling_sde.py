"""Noisy steps: exact probabilities, Euler's step without noise, and the flow's own marginals with it."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from toys import ToyModel

from ipro_core.sampling.flow import euler_step, shifted_sigmas
from ipro_core.sampling.rollout import sample
from ipro_core.sampling.sde import noisy_sample, noisy_step

MEAN, SPREAD = 1.5, 0.5
"""Of the toy's data: N(1.5, 0.5²) in every element."""


class Bell:
    """The exact velocity of normal data: E[ε − x0 | x], by the conditional mean of jointly normal numbers."""

    def velocity(self, x, sigma, condition=None):
        variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
        away = (x - (1 - sigma) * MEAN) / variance
        return sigma * away - (MEAN + (1 - sigma) * SPREAD**2 * away)

    frozen_velocity = velocity

    def adapter_parameters(self):
        return {}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_steps_of_both_forms_are_their_formulas():
    # From 0.8 to 0.6 with a = 0.5: g² = 0.25 · 0.8 / 0.2 = 1, g² / (2 · 0.8) · 0.2 = 0.125, std = √0.2.
    step = noisy_step(0.8, 0.6, 0.5)
    assert (step.removed, step.std) == (pytest.approx(0.125), pytest.approx(math.sqrt(0.2)))
    # x + (s' − s) v − removed (x + (1 − s) v) at x = 2, v = 3: 2 − 0.6 − 0.125 · 2.6 = 1.075.
    assert step.mean(torch.tensor(2.0), torch.tensor(3.0)).item() == pytest.approx(1.075)
    # a = 1/3 is an angle of 30°: half of the 0.6 is new, and √(0.6² − 0.3²) = 0.6 cos 30° of it stays.
    cps = noisy_step(0.8, 0.6, 1 / 3, "cps")
    assert (cps.std, 0.6 - cps.removed) == (pytest.approx(0.3), pytest.approx(0.6 * math.sqrt(0.75)))
    with pytest.raises(ValueError, match='"flow" or "cps"'):
        noisy_step(0.8, 0.6, 0.5, "other")  # pyright: ignore[reportArgumentType]


def test_at_the_highest_level_the_next_one_stands_in():
    # s / (1 − s) is infinite at 1: with s' = 0.9, g² = a² · 1 / 0.1 = 10 a², std = g √0.1 = a.
    assert noisy_step(1.0, 0.9, 0.7).std == pytest.approx(0.7)


@pytest.mark.parametrize("form", ["flow", "cps"])
def test_probability_and_divergence_are_those_of_normal_distributions(form):
    step = noisy_step(0.8, 0.6, 0.7, form)
    x, v, v_ref, x_next = (draw(2, 4, 3, 5, 5, seed=seed).double() for seed in range(4))
    policy, frozen = (Normal(step.mean(x, velocity), step.std) for velocity in (v, v_ref))
    expected = policy.log_prob(x_next).flatten(1).sum(dim=1)
    torch.testing.assert_close(step.log_probability(x, v, x_next), expected, rtol=1e-12, atol=1e-9)
    # In float32, as models give it: of each of the 300 elements less than 1e-6.
    rounded = step.log_probability(x.float(), v.float(), x_next.float())
    assert ((rounded - expected) / 300).abs().max() < 1e-6
    divergence = kl_divergence(policy, frozen).flatten(1).sum(dim=1)
    torch.testing.assert_close(step.divergence(v, v_ref), divergence, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("form", ["flow", "cps"])
def test_without_noise_it_is_the_euler_step_bit_for_bit(form):
    x, v = draw(1, 4, 2, 3, 3), draw(1, 4, 2, 3, 3, seed=1)
    for sigma, sigma_next in ((1.0, 0.9), (0.7, 0.3), (0.3, 0.0)):
        step = noisy_step(sigma, sigma_next, 0.0, form)
        assert step.std == 0 and torch.equal(step.mean(x, v), euler_step(x, v, sigma, sigma_next))
    model, sigmas = ToyModel(dtype=torch.float32), shifted_sigmas(5, 3.0)
    latents, _ = noisy_sample(model, x, None, sigmas, noisy=(), noise_level=0.7, form=form, generators=())
    assert torch.equal(latents, sample(model, x, None, sigmas))


def variance_after(steps: int, form: str = "flow", noise_level: float = 0.7, spread: float = SPREAD) -> float:
    """Of the noise and the data that are left at 0.25, walked to in so many steps from 0.75: the step is
    linear in x, so that its share of x and its noise give the variance exactly."""
    levels = torch.linspace(0.75, 0.25, steps + 1, dtype=torch.float64).tolist()
    variance = 0.25**2 * spread**2 + 0.75**2
    for sigma, sigma_next in pairwise(levels):
        step = noisy_step(sigma, sigma_next, noise_level, form)  # pyright: ignore[reportArgumentType]
        slope = (sigma - (1 - sigma) * spread**2) / ((1 - sigma) ** 2 * spread**2 + sigma**2)
        share = step.mean(torch.tensor(1.0).double(), torch.tensor(slope).double()).item()
        variance = share**2 * variance + step.std**2
    return variance


def test_the_sde_keeps_the_flows_variance_to_first_order():
    wanted = 0.75**2 * SPREAD**2 + 0.25**2
    errors = [variance_after(steps) - wanted for steps in (40, 80, 160)]
    for error, half in pairwise(errors):
        assert error / half == pytest.approx(2, rel=0.05)
    assert abs(errors[-1]) < 0.01 * wanted


def test_few_steps_of_the_sde_leave_noise_and_preserved_coefficients_do_not():
    # Data of no spread: at 0.25 the noise has the variance 0.25².
    assert variance_after(2, "cps", spread=0.0) == pytest.approx(0.25**2)
    assert variance_after(2, "flow", spread=0.0) > 1.3 * 0.25**2


@pytest.mark.parametrize(("noise_level", "stop"), [(0.7, 200), (0.7, 150), (0.3, 200)])
def test_noisy_samples_have_the_marginals_of_the_exact_flow(noise_level, stop):
    chains, sigmas = 20000, shifted_sigmas(200, 1.0)[: stop + 1]
    x, passages = noisy_sample(
        Bell(), draw(1, 1, chains, 1, 1), None, sigmas,
        noisy=range(199), noise_level=noise_level, generators=[torch.Generator().manual_seed(1)],
    )  # fmt: skip
    last = sigmas[-1].item()
    mean, variance = (1 - last) * MEAN, (1 - last) ** 2 * SPREAD**2 + last**2
    # Four standard errors of a mean and of a variance, and a step's length for the discretisation.
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / chains) + 1 / 200)
    assert x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / chains) + 3 / 200)
    assert [passage.index for passage in passages] == list(range(min(stop, 199)))


def test_what_was_taken_is_kept_as_it_was():
    model, sigmas = ToyModel(dtype=torch.float32), shifted_sigmas(6, 5.0)
    latents, (first, second) = noisy_sample(
        model, draw(2, 4, 2, 3, 3), None, sigmas,
        noisy=(2, 3), noise_level=0.7, generators=[torch.Generator().manual_seed(seed) for seed in (2, 3)],
    )  # fmt: skip
    assert (first.index, second.index) == (2, 3) and torch.equal(first.x_next, second.x)
    assert torch.equal(first.x, sample(model, draw(2, 4, 2, 3, 3), None, sigmas[:3]))
    assert torch.equal(latents, sample(model, second.x_next, None, sigmas[4:]))
    levels = sigmas.tolist()
    step = noisy_step(levels[2], levels[3], 0.7)
    v = model.velocity(first.x, levels[2])
    assert torch.equal(first.log_probability_B, step.log_probability(first.x, v, first.x_next))
