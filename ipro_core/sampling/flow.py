"""The sampler's arithmetic: noise levels, the expert boundary, one Euler step of the flow."""

import torch
from torch import Tensor


def shifted_sigmas(steps: int, shift: float) -> Tensor:
    """The steps + 1 noise levels 1 → 0 of Wan's distilled schedule, float32.

    Equal steps in time, then sigma = shift t / (1 + (shift − 1) t): what Lightning and the authors sample
    with, and what ComfyUI's `simple` scheduler with ModelSamplingSD3 gives for step counts that divide 1000.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"A schedule takes at least 1 step and a positive shift, not {steps} and {shift}.")
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * t / (1 + (shift - 1) * t)).float()


def switch_step(sigmas: Tensor, boundary: float) -> int:
    """The first step that the low-noise expert takes: the first with 1000 sigma < 1000 boundary.

    A sigma that is the boundary but for rounding (shift 3, step 2: 0.9) still belongs to the high-noise one.
    """
    return int((sigmas >= boundary - 1e-6).sum())


def expert_switch(steps: int, shift: float, boundary: float) -> int:
    """`switch_step` of a schedule for two experts.

    Raises:
        ValueError: it leaves the low-noise expert nothing to do.
    """
    switch = switch_step(shifted_sigmas(steps, shift), boundary)
    if switch >= steps:
        raise ValueError(
            f"{steps} steps at shift {shift:g} leave nothing to the low-noise expert, which begins below "
            f"noise level {boundary:g}: take more steps or a smaller shift."
        )
    return switch


def euler_step(x: Tensor, v: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x at sigma_next, along the velocity v = dx/dsigma at sigma."""
    return x + (sigma_next - sigma) * v
