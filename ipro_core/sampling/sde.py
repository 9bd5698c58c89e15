"""Sampling by chance: the flow's step with noise in it, how likely what it took was, and how far two models'
steps lie apart (Flow-GRPO, Liu et al. 2025, arXiv:2505.05470, Section 4).

The flow's x = (1 − s) x0 + s ε has the velocity v = E[ε − x0 | x]. Hence E[ε | x] = x + (1 − s) v, and the
score of its marginal is −E[ε | x] / s. Walking s from 1 down to 0, an SDE of any diffusion g has the
marginals of the flow's ODE if its drift takes g² / 2 of the score away (Anderson 1982), in Flow-GRPO's words:

    dx = [v + g² / (2 s) · (x + (1 − s) v)] ds + g dw,   g = a sqrt(s / (1 − s))

Whatever the form, a step from s to s' is the Euler step less a share of the expected noise, in whose place
fresh noise comes: a normal distribution whose mean is linear in x and v.

    x' = x + (s' − s) v − removed · (x + (1 − s) v) + std · z

"flow" is the Euler–Maruyama step of the SDE: right for many steps, while few leave more noise than the next
level has. "cps" (coefficients-preserving sampling, Wang and Yu 2025, arXiv:2509.05952) makes s' sin(a π/2) of
the noise at s' anew and keeps the rest, so that the level has the noise it should however few the steps; it
is exact where one x0 lies behind the noise. Both are the Euler step for a = 0.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ..models.base import VideoModel
from .flow import euler_step

NoiseForm = Literal["flow", "cps"]


@dataclass(frozen=True)
class NoisyStep:
    """The distribution of one step from `sigma` to `sigma_next`."""

    sigma: float
    sigma_next: float
    removed: float
    std: float

    def mean(self, x: Tensor, v: Tensor) -> Tensor:
        """Differentiable in both."""
        return euler_step(x, v, self.sigma, self.sigma_next) - self.removed * (x + (1 - self.sigma) * v)

    def draw(self, x: Tensor, v: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """x at sigma_next, each video by a generator of its own, so that neither device nor batch counts."""
        noise = [torch.randn(x.shape[1:], generator=generator) for generator in generators]
        return self.mean(x, v) + self.std * torch.stack(noise).to(x)

    def log_probability(self, x: Tensor, v: Tensor, x_next: Tensor) -> Tensor:
        """log p(x_next | x) under the velocity v, (B,), in float64: a sum of millions of elements, of which
        small differences count."""
        away = (x_next - self.mean(x, v)).double() / self.std
        constant = math.log(self.std) + 0.5 * math.log(2 * math.pi)
        return -(away.square() / 2 + constant).flatten(1).sum(dim=1)

    def divergence(self, v: Tensor, v_ref: Tensor) -> Tensor:
        """KL(p_θ || p_ref) of the step under two velocities at one x, (B,), in float64: two normal
        distributions of one width."""
        along = self.sigma_next - self.sigma - self.removed * (1 - self.sigma)
        return (along * (v - v_ref).double() / self.std).square().flatten(1).sum(dim=1) / 2


def noisy_step(sigma: float, sigma_next: float, noise_level: float, form: NoiseForm = "flow") -> NoisyStep:
    """The step from sigma to sigma_next with the noise level a.

    Raises:
        ValueError: there is no such form.
    """
    if form == "cps":
        angle = noise_level * math.pi / 2
        std = sigma_next * math.sin(angle)
        return NoisyStep(sigma, sigma_next, sigma_next - sigma_next * math.cos(angle), std)
    if form != "flow":
        raise ValueError(f'Noise is added by "flow" or "cps", not by "{form}".')
    # g is infinite at s = 1; like Flow-GRPO's code, the next level stands in for it there.
    clean = 1 - (sigma if sigma < 1 else sigma_next)
    diffusion, length = noise_level * math.sqrt(sigma / clean), sigma - sigma_next
    return NoisyStep(sigma, sigma_next, diffusion**2 / (2 * sigma) * length, diffusion * math.sqrt(length))


@dataclass(frozen=True, eq=False)
class Passage:
    """One noisy step as it was taken: what its gradient is made of, later."""

    index: int
    """Of the step, in the schedule."""
    x: Tensor
    """(B, C, T, H, W), before."""
    x_next: Tensor
    log_probability_B: Tensor
    """Under the model that took it, float64."""


@torch.no_grad()
def noisy_sample(
    model: VideoModel,
    x: Tensor,
    condition: Any,
    sigmas: Tensor,
    *,
    noisy: Collection[int],
    noise_level: float,
    form: NoiseForm = "flow",
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, list[Passage]]:
    """`sample` with noise in some steps, the others being Euler's; without gradients.

    Args:
        noisy: which steps, from 0.
        generators: on the CPU, one for each video of the batch.

    Returns:
        The latents at sigmas[-1], and the noisy steps.
    """
    x, passages = x.to(torch.promote_types(x.dtype, torch.float32)), []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        v = model.velocity(x, sigma, condition)
        if index not in noisy:
            x = euler_step(x, v, sigma, sigma_next)
            continue
        step = noisy_step(sigma, sigma_next, noise_level, form)
        x_next = step.draw(x, v, generators)
        passages.append(Passage(index, x, x_next, step.log_probability(x, v, x_next)))
        x = x_next
    return x, passages
