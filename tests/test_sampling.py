"""Schedule, rollout and anchor against ComfyUI's formula, closed forms and Eq. 7."""

import pytest
import torch
from toys import ToyModel

from ipro_core.sampling.anchor import kl_anchor
from ipro_core.sampling.flow import euler_step, shifted_sigmas, switch_step
from ipro_core.sampling.rollout import sample, steps


def test_eight_steps_at_shift_five_are_the_lightning_schedule():
    # t = 7/8: 5 · 0.875 / (1 + 4 · 0.875) = 4.375 / 4.5 = 0.9722; t = 1/8: 0.625 / 1.5 = 0.4167.
    expected = [1, 4.375 / 4.5, 3.75 / 4, 3.125 / 3.5, 2.5 / 3, 1.875 / 2.5, 1.25 / 2, 0.625 / 1.5, 0]
    assert shifted_sigmas(8, 5.0).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("num_steps", [4, 5, 8, 10, 20, 50])
def test_the_schedule_is_comfyuis_simple_one_where_steps_divide_1000(num_steps, shift):
    # ModelSamplingSD3 keeps a table sigma(t) = shift t / (1 + (shift - 1) t) at t = 1/1000 … 1000/1000;
    # `simple` reads it from the end: table[-(1 + int(i · 1000 / steps))], and appends 0.
    table = [shift * (n / 1000) / (1 + (shift - 1) * (n / 1000)) for n in range(1, 1001)]
    simple = [table[-(1 + int(i * len(table) / num_steps))] for i in range(num_steps)] + [0.0]
    assert shifted_sigmas(num_steps, shift).tolist() == pytest.approx(simple, abs=1e-7)


@pytest.mark.parametrize(
    "shift, boundary, expected",
    [
        (5.0, 0.9, 3),  # .9375 ≥ .9 > .8929
        (5.0, 0.875, 4),  # .8929 ≥ .875 > .8333
        (8.0, 0.9, 4),  # 8 · .625 / 5.375 = .9302 ≥ .9 > 4 / 4.5 = .8889
        (3.0, 0.9, 3),  # sigma_2 = 3 · .75 / 2.5 = .9 exactly: t = 900 is not below 900
    ],
)
def test_the_low_noise_expert_takes_over_below_the_boundary(shift, boundary, expected):
    for sigmas in (shifted_sigmas(8, shift), shifted_sigmas(8, shift).double()):
        assert switch_step(sigmas, boundary) == expected


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        shifted_sigmas(0, 5.0)


def test_a_constant_velocity_moves_x_by_minus_v():
    # From sigma 1 to 0 the steps sum to −1, whatever the schedule.
    x = torch.zeros(1, 1, 1, 1, 1)
    for sigma, sigma_next in ((1.0, 0.7), (0.7, 0.2), (0.2, 0.0)):
        x = euler_step(x, torch.ones_like(x), sigma, sigma_next)
    assert x.item() == pytest.approx(-1)


def noise(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 4, 2, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_a_rollout_may_be_cut_at_the_expert_boundary():
    model, sigmas = ToyModel(), shifted_sigmas(8, 5.0)
    whole = sample(model, noise(), None, sigmas)
    boundary = sample(model, noise(), None, sigmas[: 3 + 1])
    assert torch.equal(sample(model, boundary, None, sigmas[3:]), whole)
    assert torch.equal(sample(model, noise(), None, sigmas[:1]), noise())


def test_steps_can_be_watched_and_left_without_touching_grad_mode():
    rollout = steps(ToyModel(), noise(), None, shifted_sigmas(8, 5.0))
    x = next(rollout)
    assert torch.is_grad_enabled() and not x.requires_grad
    rollout.close()


def test_the_frozen_rollout_ignores_the_adapter():
    tuned, untouched, sigmas = ToyModel(spread=0.3), ToyModel(spread=0.0), shifted_sigmas(4, 5.0)
    frozen = sample(tuned, noise(), None, sigmas, frozen=True)
    torch.testing.assert_close(frozen, sample(untouched, noise(), None, sigmas))
    assert not torch.allclose(frozen, sample(tuned, noise(), None, sigmas))


def test_latents_stay_in_float32_between_steps():
    x = sample(ToyModel(dtype=torch.float32), noise().bfloat16(), None, shifted_sigmas(2, 5.0))
    assert x.dtype == torch.float32


def test_the_anchor_is_the_mean_square_over_two_sigma_squared():
    v, v_ref = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])
    # (1 + 4) / 2 = 2.5; over 2 · 0.5² = 0.5: 5.
    assert kl_anchor(v, v_ref, 0.5).item() == 5.0
    assert kl_anchor(v, v_ref, 0.5, weighting="uniform").item() == 2.5
    with pytest.raises(ValueError, match='"sigma" or "uniform"'):
        kl_anchor(v, v_ref, 0.5, weighting="other")  # pyright: ignore[reportArgumentType]
