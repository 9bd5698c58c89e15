"""What each way to save passes does to the gradient: its bias and its variance, measured on the tiny world.

Draw i is one scene and one noise. Its adapter gradient is taken with the full settings, f_i, and with a knob
set, g_i. From n draws, with d_i = g_i - f_i, the products of different draws estimate without bias

    ||E d||²  by  mean of d_i · d_j over i ≠ j  (a plain mean of d, squared, would count its noise as bias),

and likewise ||E f||² and E g · E f. Were there no bias, that estimate would scatter around 0 with the
variance 2 E(d_i · d_j)² / n(n-1): its root is the standard error that goes with it.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.wan import WanVideoModel
from ..training.base import TrainingSample
from ..training.ipro import IproObjective
from ..training.loop import Draw

RECALLED = 0.36
"""Of a forward pass: a block run again whose attention was kept, as `ipro bench --count` has it for A14B."""
AGAIN, BACKWARD = 0.52, 1.81
"""Of a forward pass: a block run again for its gradient without its attention, and its gradient. Multiplied
out for A14B at 480x832x81: attention is 52 % of a pass, its gradient 2.5 times itself."""

KNOBS: Mapping[str, Mapping[str, Any]] = {
    "frames 3 of 9": {"gradient_frames": 3},
    "frames 1 of 9": {"gradient_frames": 1},
    "reference at 1 step of 4": {"reference_steps": 1},
    "reference in half the videos": {"reference_chance": 0.5},
    "K at random, 1 to 4": {"estimator": "alignprop"},
    "K = 2": {"grad_steps": 2},
    "K = 1": {"grad_steps": 1},
    "DRaFT-LV, 2 ends": {"estimator": "draft-lv", "renoised_ends": 2},
    "KL through x_t as the authors": {"kl_through": "biased"},
}
"""Changes of settings with K = 4, by a name for the table."""


@dataclass(frozen=True)
class KnobEffect:
    """One row of the table. Everything relative is so to the full settings' gradient."""

    name: str
    bias: float
    """||E g - E f|| / ||E f||; 0 where the estimate of its square is negative."""
    noise: float
    """The bias that would lie one standard error above none at all, with these draws."""
    deviations: float
    """The estimate of the bias, squared, in standard errors: up to 2 or so may be chance."""
    variance: float
    """From draw to draw, as a multiple of the full gradient's."""
    cosine: float
    """Between E g and E f; NaN where there are too few draws to tell."""
    forwards: float
    """What a draw costs, in forward passes of A14B's network, the steps before the first tuned one not
    counted: those are cached (`sampling/boundary.py`)."""
    cost: float
    """Forward passes for a gradient as sure as the full one: `forwards` · `variance`, over the full's."""
    seconds: float
    """Of one core, a draw."""
    draws: int


def measure_knobs(
    model: WanVideoModel,
    objective: IproObjective,
    samples: Sequence[TrainingSample],
    knobs: Mapping[str, Mapping[str, Any]] = KNOBS,
    seed: int = 0,
) -> Iterator[KnobEffect]:
    """The objective's own row, then each knob's; one draw of every sample.

    Args:
        model: the objective's, with blocks that are run again, as large networks have them.
    """
    assert model is objective.model and model.stack.recompute
    full_ND, *spent = _gradients(model, objective, samples, seed)
    yield _effect("all", full_ND, full_ND, spent, spent)
    for name, change in knobs.items():
        some_ND, *some_spent = _gradients(model, objective.changed(**change), samples, seed)
        yield _effect(name, full_ND, some_ND, spent, some_spent)


def _gradients(
    model: WanVideoModel, objective: IproObjective, samples: Sequence[TrainingSample], seed: int
) -> tuple[Tensor, float, float]:
    """Each draw's gradient; then a draw's forward passes and seconds."""
    visits = model.stack.visits
    parameters, gradients = list(model.adapter_parameters().values()), []
    visits.clear()
    began = time.process_time()
    for number, sample in enumerate(samples):
        # The noise is the first that is drawn: one seed is one video whatever the knob draws after it.
        draw = Draw(sample, torch.Generator().manual_seed(seed * 1_000_003 + number))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for _ in objective.gradients([draw]):
            pass
        gradients.append(torch.cat([parameter.grad.flatten().double() for parameter in parameters]))  # type: ignore[union-attr]
    seconds = time.process_time() - began
    passes = visits["forward"] + RECALLED * visits["recalled"]
    passes += AGAIN * visits["again"] + BACKWARD * visits["backward"]
    per_draw = len(samples) * len(model.stack.weights.blocks)
    return (
        torch.stack(gradients),
        passes / per_draw - objective.settings.first_tuned_step,
        seconds / len(samples),
    )


def _effect(
    name: str, full_ND: Tensor, some_ND: Tensor, spent: Sequence[float], some_spent: Sequence[float]
) -> KnobEffect:
    count, moved_ND = len(full_ND), some_ND - full_ND
    norm_squared = _product(full_ND, full_ND)
    moved = _product(moved_ND, moved_ND) / norm_squared
    products_NN = (moved_ND @ moved_ND.T / norm_squared).fill_diagonal_(0)
    error = (2 * products_NN.square().sum()).sqrt().item() / (count * (count - 1))
    variance = (some_ND.var(dim=0).sum() / full_ND.var(dim=0).sum()).item()
    squared = _product(some_ND, some_ND) * norm_squared
    return KnobEffect(
        name=name,
        bias=max(moved, 0.0) ** 0.5,
        noise=error**0.5,
        deviations=moved / error if error else 0.0,
        variance=variance,
        cosine=_product(some_ND, full_ND) / squared**0.5 if squared > 0 else math.nan,
        forwards=some_spent[0],
        cost=variance * some_spent[0] / spent[0],
        seconds=some_spent[1],
        draws=count,
    )


def _product(a_ND: Tensor, b_ND: Tensor) -> float:
    """E a · E b, from the products of different draws."""
    count = len(a_ND)
    products_NN = a_ND @ b_ND.T
    return ((products_NN.sum() - products_NN.diagonal().sum()) / (count * (count - 1))).item()
