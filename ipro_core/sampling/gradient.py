"""The truncated reward gradient with its KL anchor, taken step by step (Eq. 3, 4, 7).

Plain autograd would keep the graphs of K network passes, the decoder and the reward at once. Here the rollout
runs without a graph and keeps x_t only; the reward's gradient is pulled back through the codec to
a_N = dL/dx_N; then the K steps are walked backwards, one step's graph alive at a time:

    x_{i+1} = x_i + dt_i v(x_i)
    dL/dθ  += (∂v/∂θ)ᵀ dt_i a_{i+1}
    a_i     = a_{i+1} + (∂v/∂x_i)ᵀ dt_i a_{i+1}

It equals plain autograd to rounding, and its memory does not grow with K. Passes of the network per call, N
steps, R of them compared with the frozen model: N + K + R forward and K backward; "detached" adds up to R,
which cost a model that offers `velocities` no second run of its blocks.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from ..models.base import VideoCodec, VideoModel
from ..types import RewardScore, Rollout
from .anchor import AnchorWeighting, kl_anchor
from .rollout import steps

Score = Callable[[Tensor, int], RewardScore]
"""score(frames_TCHW, index in the batch), differentiable in the frames."""

KLThrough = Literal["detached", "exact", "biased"]


@torch.no_grad()
def reward_gradient(
    model: VideoModel,
    codec: VideoCodec,
    score: Score,
    x: Tensor,
    condition: Any,
    sigmas: Tensor,
    *,
    grad_steps: int = 4,
    reward_weight: float = 0.1,
    kl_weight: float = 1.0,
    kl_weighting: AnchorWeighting = "sigma",
    kl_through: KLThrough = "detached",
    anchored: Sequence[int] | None = None,
    scale: float = 1.0,
) -> tuple[Rollout, list[RewardScore]]:
    """Sample from x and add dL/dθ to the `.grad` of the model's adapter parameters, where

        L = scale · mean over the batch of (−reward_weight · R + kl_weight · mean over the `kl_anchor`s).

    The paper sums the anchor over the K steps; the authors' code takes the mean, as here (for the sum, give K
    times the weight).

    Args:
        score: called once for every sample, with its decoded frames.
        x: latents (B, C, T, H, W) at sigmas[0]: noise, or where a frozen high-noise expert left off.
        condition: what the model wants, of x's batch size.
        grad_steps: K, counted from the end; the steps before it get no gradient (Eq. 4).
        kl_through: the anchor's way through x_t. "detached": none, x_t counts as given. "exact": through
            v_θ(x_t) and v_ref(x_t). "biased": through v_θ(x_t) only, as in the authors' code; 5 to 9 % off.
        anchored: which of the K steps, from 0, are compared with the frozen model; None: all. A random choice
            gives the anchor's gradient in expectation and saves the other steps' frozen passes.
        scale: for gradient accumulation: the share of this call in the whole batch.

    Returns:
        The rollout with its drift at the anchored steps, and each sample's score, detached. A reward that is
        NaN makes the gradient NaN: stopping is the trainer's business.
    """
    num_steps = len(sigmas) - 1
    if not 1 <= grad_steps <= num_steps:
        raise ValueError(f"The last K of {num_steps} steps carry gradients; K = {grad_steps} does not fit.")
    if kl_through not in ("detached", "exact", "biased"):
        raise ValueError(f'The KL term runs through x_t "detached", "exact" or "biased", not "{kl_through}".')

    x = x.to(torch.promote_types(x.dtype, torch.float32))
    states = deque(chain([x], steps(model, x, condition, sigmas)), maxlen=grad_steps + 1)
    latents = states.pop()
    carried, scores = _pull_reward(codec, score, latents)
    carried = -reward_weight * scale * carried

    levels = sigmas[-grad_steps - 1 :].tolist()
    anchored = sorted(range(grad_steps) if anchored is None else anchored)
    drift: dict[int, Tensor] = {}
    for i in reversed(range(grad_steps)):
        sigma, sigma_next = levels[i], levels[i + 1]
        chained = i > 0  # the first gradient step's x_t is given: what lies before it is cut off
        x_t = states[i].detach().requires_grad_(chained)
        with torch.enable_grad():
            if i in anchored:
                way = kl_through if kl_weight else "biased"
                v, v_anchor, v_ref = _velocities(model, x_t, sigma, condition, way)
                kl_part = kl_weight * scale / len(anchored) * kl_anchor(v_anchor, v_ref, sigma, kl_weighting)
                drift[i] = (v - v_ref).detach().square().mean()
            else:
                v = v_anchor = model.velocity(x_t, sigma, condition)
                kl_part = torch.zeros((), device=v.device)
            reward_part = (sigma_next - sigma) * (carried * v).sum()  # its gradient is the chain's
            if kl_through == "detached" and chained and kl_part.requires_grad and kl_weight and v_anchor is v:
                # Parameters want both parts' gradients, x_t the reward's alone: two passes of one graph.
                reward_part.backward(retain_graph=True)
                carried = carried + _gradient(x_t)
                kl_part.backward()
            else:
                (reward_part + kl_part).backward()
                carried = carried + _gradient(x_t) if chained else carried
        del v, v_anchor, reward_part, kl_part  # or the next step's graph would be built beside this one's

    levels_R = torch.tensor([levels[i] for i in anchored], dtype=sigmas.dtype)
    drift_R = torch.stack([drift[i] for i in anchored]) if anchored else levels_R
    return Rollout(latents, levels_R, drift_R), scores


def _pull_reward(codec: VideoCodec, score: Score, latents_BCTHW: Tensor) -> tuple[Tensor, list[RewardScore]]:
    """d(mean reward)/d latents and the scores, one video in memory at a time."""
    pulled, scores = [], []
    for index, latents_CTHW in enumerate(latents_BCTHW):
        frames_TCHW = codec.decode(latents_CTHW[None])[0].detach().requires_grad_()
        with torch.enable_grad():
            result = score(frames_TCHW, index)
        gradient_TCHW = torch.zeros_like(frames_TCHW)
        if result.value.requires_grad:  # not where no frame could be scored
            (gradient_TCHW,) = torch.autograd.grad(
                result.value, frames_TCHW, allow_unused=True, materialize_grads=True
            )
        pulled.append(codec.pullback(latents_CTHW[None], gradient_TCHW[None]))
        scores.append(replace(result, value=result.value.detach(), per_frame_T=result.per_frame_T.detach()))
    return torch.cat(pulled) / len(latents_BCTHW), scores


def _velocities(
    model: VideoModel, x_t: Tensor, sigma: float, condition: Any, kl_through: KLThrough
) -> tuple[Tensor, Tensor, Tensor]:
    """v_θ for the chain, v_θ for the anchor and v_ref.

    A model that has `velocities` gives all three at once; the anchor's v_θ then keeps its gradient from x_t
    where it has to.
    """
    together = getattr(model, "velocities", None)
    if together is not None:
        ways = {"fork": kl_through == "detached", "through_reference": kl_through == "exact"}
        return together(x_t, sigma, condition, **ways)
    v = model.velocity(x_t, sigma, condition)
    with torch.set_grad_enabled(kl_through == "exact"):
        return v, v, model.frozen_velocity(x_t, sigma, condition)


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None, "the velocity does not depend on x"
    return x.grad
