"""The truncated reward gradient with its KL anchor, taken step by step (Eq. 3, 4, 7).

Plain autograd would keep the graphs of K network passes, the decoder and the reward at once. Here the rollout
keeps x_t and no graph but its last step's; the reward's gradient is pulled back through the codec to
a_N = dL/dx_N; then the K steps are walked backwards, one step's graph alive at a time:

    x_{i+1} = x_i + dt_i v(x_i)
    dL/dθ  += (∂v/∂θ)ᵀ dt_i a_{i+1}
    a_i     = a_{i+1} + (∂v/∂x_i)ᵀ dt_i a_{i+1}

The K steps are the last ones, or lie earlier: those after them then carry a_i alone, with nothing for θ. It
equals plain autograd to rounding, and its memory does not grow with K. Passes of the network per call, N
steps, L of them after the K, R of the K compared with the frozen model, M passes of the rollout kept for the
gradient (1, or as many as memory has room for): N + K + L - M + R forward and K + L backward. "detached" adds
up to R backward, which cost a model that offers `velocities` no second run of its blocks; of the K + L - M
passes that are run twice, a model that offers `recalling` may spare itself a part.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..models.base import VideoCodec, VideoModel, pull, recalling
from ..types import AnchorWeighting, KLThrough, RewardScore, Rollout
from .anchor import kl_anchor
from .flow import euler_step
from .rollout import steps

Score = Callable[[Tensor, int], RewardScore]
"""score(frames_TCHW, index in the batch), differentiable in the frames."""


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass of the network, with its graph."""

    x_t: Tensor
    """Wants a gradient where there is a step before it in the chain."""
    v: Tensor
    """v_θ(x_t), through which the reward's gradient goes."""
    v_anchor: Tensor
    """The same for the anchor; a tensor of its own where that leads to θ alone."""
    v_ref: Tensor | None
    """v_ref(x_t), at anchored steps."""


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
    first_grad_step: int | None = None,
    reward_weight: float = 0.1,
    kl_weight: float = 1.0,
    kl_weighting: AnchorWeighting = "sigma",
    kl_through: KLThrough = "detached",
    anchored: Sequence[int] | None = None,
    kept_passes: int = 1,
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
        grad_steps: K; all other steps get no gradient (Eq. 4).
        first_grad_step: the first of the K; None: they are the last (Table 5's "low noise").
        kl_through: the anchor's way through x_t. "detached": none, x_t counts as given. "exact": through
            v_θ(x_t) and v_ref(x_t). "biased": through v_θ(x_t) only, as in the authors' code; 5 to 9 % off.
        anchored: which of the K steps, from 0, are compared with the frozen model; None: all. A random choice
            gives the anchor's gradient in expectation and saves the other steps' frozen passes.
        kept_passes: M, of the rollout's passes that are walked backwards, counted from the end, how many keep
            their graph instead of being run again for it. The last one's costs nothing but that it is there
            while the video is decoded; each further one costs what a pass keeps.
        scale: for gradient accumulation: the share of this call in the whole batch.

    Returns:
        The rollout with its drift at the anchored steps, and each sample's score, detached. A reward that is
        NaN makes the gradient NaN: stopping is the trainer's business.
    """
    num_steps = len(sigmas) - 1
    if not 1 <= grad_steps <= num_steps:
        raise ValueError(f"Of {num_steps} steps 1 to {num_steps} may carry gradients, not {grad_steps}.")
    first = num_steps - grad_steps if first_grad_step is None else first_grad_step
    if not 0 <= first <= num_steps - grad_steps:
        raise ValueError(
            f"Of {num_steps} steps the {grad_steps} that carry gradients begin at 0 to "
            f"{num_steps - grad_steps}, not at {first}."
        )
    if kl_through not in ("detached", "exact", "biased"):
        raise ValueError(f'The KL term runs through x_t "detached", "exact" or "biased", not "{kl_through}".')
    levels, end = sigmas.tolist(), first + grad_steps
    anchored = [first + k for k in sorted(range(grad_steps) if anchored is None else anchored)]
    way = kl_through if kl_weight else "biased"

    def run(i: int, x_t: Tensor) -> _Pass:
        # What lies before the first gradient step is cut off: its x_t is given.
        x_t = x_t.detach().requires_grad_(i > first)
        with _adapter_held(model, i >= end):
            return _run(model, x_t, levels[i], condition, way, i in anchored)

    x = x.to(torch.promote_types(x.dtype, torch.float32))
    kept_from = num_steps - min(kept_passes, num_steps - first)
    states, kept, twice = [x, *steps(model, x, condition, sigmas[: first + 1])], [], recalling(model)
    for i in range(first, num_steps):
        if i < kept_from:
            with twice(i):
                v = model.velocity(states[i], levels[i], condition)
        else:
            kept.append(run(i, states[i]))
            v = kept[-1].v.detach()
        states.append(euler_step(states[i], v, levels[i], levels[i + 1]))

    latents = states.pop()
    carried, scores = pull_reward(codec, score, latents)
    carried = -reward_weight * scale * carried  # a_N
    drift: dict[int, Tensor] = {}

    @torch.enable_grad()
    def step_back(i: int, step: _Pass, carried: Tensor) -> Tensor:
        """Step i backwards: θ's part goes to `.grad`, a_{i+1} becomes a_i."""
        reward_part = (levels[i + 1] - levels[i]) * (carried * step.v).sum()  # its gradient is the chain's
        kl_part = torch.zeros_like(reward_part)
        if step.v_ref is not None:
            weight = kl_weight * scale / len(anchored)
            kl_part = weight * kl_anchor(step.v_anchor, step.v_ref, levels[i], kl_weighting)
            drift[i] = (step.v - step.v_ref).detach().square().mean()
        if not step.x_t.requires_grad:
            (reward_part + kl_part).backward()
            return carried
        if way == "detached" and kl_part.requires_grad and step.v_anchor is step.v:
            # Parameters want both parts' gradients, x_t the reward's alone: two passes of one graph.
            reward_part.backward(retain_graph=True)
            carried = carried + _gradient(step.x_t)
            kl_part.backward()
            return carried
        (reward_part + kl_part).backward()
        return carried + _gradient(step.x_t)

    def run_again(i: int) -> _Pass:
        with twice(i):
            return run(i, states[i])

    for i in reversed(range(first, num_steps)):
        with _adapter_held(model, i >= end):
            # Made in the call, so that nobody else holds the graph.
            carried = step_back(i, kept.pop() if kept else run_again(i), carried)

    levels_R = torch.tensor([levels[i] for i in anchored], dtype=sigmas.dtype)
    drift_R = torch.stack([drift[i] for i in anchored]) if anchored else levels_R
    return Rollout(latents, levels_R, drift_R), scores


@contextmanager
def _adapter_held(model: VideoModel, held: bool) -> Iterator[None]:
    """Within, if held, the adapter is on and gets no gradient: forwards, and backwards, where blocks that are
    run again ask once more who wants one."""
    # Those that are not held already: one within another gives nothing free.
    parameters = [p for p in model.adapter_parameters().values() if held and p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def pull_reward(codec: VideoCodec, score: Score, latents_BCTHW: Tensor) -> tuple[Tensor, list[RewardScore]]:
    """d(mean reward)/d latents and the scores, one video in memory at a time."""
    pulled, scores = [], []
    for index, latents_CTHW in enumerate(latents_BCTHW):
        judge = partial(_judge, score, index)
        result, pulled_CTHW = pull(codec, latents_CTHW[None], judge)
        pulled.append(pulled_CTHW)
        scores.append(result)
    return torch.cat(pulled) / len(latents_BCTHW), scores


def _judge(score: Score, index: int, frames_BTCHW: Tensor) -> tuple[RewardScore, Tensor]:
    """A video's score, detached, and its gradient with respect to the frames."""
    frames_TCHW = frames_BTCHW[0].detach().requires_grad_()
    with torch.enable_grad():
        result = score(frames_TCHW, index)
    gradient_TCHW = torch.zeros_like(frames_TCHW)
    if result.value.requires_grad:  # not where no frame could be scored
        (gradient_TCHW,) = torch.autograd.grad(
            result.value, frames_TCHW, allow_unused=True, materialize_grads=True
        )
    result = replace(result, value=result.value.detach(), per_frame_T=result.per_frame_T.detach())
    return result, gradient_TCHW[None]


@torch.enable_grad()
def _run(
    model: VideoModel, x_t: Tensor, sigma: float, condition: Any, kl_through: KLThrough, anchored: bool
) -> _Pass:
    """v_θ for the chain, v_θ for the anchor and v_ref.

    A model that has `velocities` gives all three at once; the anchor's v_θ then keeps its gradient from x_t
    where it has to.
    """
    if not anchored:
        v = model.velocity(x_t, sigma, condition)
        return _Pass(x_t, v, v, None)
    together = getattr(model, "velocities", None)
    if together is not None:
        ways = {"fork": kl_through == "detached", "through_reference": kl_through == "exact"}
        return _Pass(x_t, *together(x_t, sigma, condition, **ways))
    v = model.velocity(x_t, sigma, condition)
    with torch.set_grad_enabled(kl_through == "exact"):
        return _Pass(x_t, v, v, model.frozen_velocity(x_t, sigma, condition))


def _gradient(x: Tensor) -> Tensor:
    assert x.grad is not None, "the velocity does not depend on x"
    return x.grad
