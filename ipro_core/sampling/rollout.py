"""sample(θ, x_T): the rollout whose end the reward judges (Eq. 3), without gradients."""

from collections import deque
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.base import VideoModel
from .flow import euler_step


@torch.no_grad()  # as a decorator: a `with` inside a generator would leak into whoever iterates
def steps(
    model: VideoModel, x: Tensor, condition: Any, sigmas: Tensor, *, frozen: bool = False
) -> Iterator[Tensor]:
    """Yield x after each step from sigmas[0] to sigmas[-1]; stop iterating to cancel.

    Args:
        x: latents (B, C, T, H, W) at sigmas[0]; kept in float32 at least between steps, because rounding them
            to bfloat16 costs four times the error that bfloat16 weights make.
        sigmas: noise levels, falling. A two-expert model is sampled in two calls: the high-noise expert takes
            `sigmas[: s + 1]`, the low-noise expert goes on from there with `sigmas[s:]` (s = `switch_step`).
        frozen: sample v_ref, our adapter off.
    """
    velocity = model.frozen_velocity if frozen else model.velocity
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x = euler_step(x, velocity(x, sigma, condition), sigma, sigma_next)
        yield x


def sample(model: VideoModel, x: Tensor, condition: Any, sigmas: Tensor, *, frozen: bool = False) -> Tensor:
    """The latents at sigmas[-1]; x itself where there is no step to take. See `steps`."""
    return deque(chain([x], steps(model, x, condition, sigmas, frozen=frozen)), maxlen=1).pop()
