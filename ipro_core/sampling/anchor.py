"""The multi-step KL anchor to the frozen model (Eq. 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..types import AnchorWeighting

if TYPE_CHECKING:
    from ..models.base import VideoModel


def anchor_weight(sigma: float, weighting: AnchorWeighting = "sigma") -> float:
    """w'_t of Eq. 7, which the paper leaves open.

    "sigma": 1 / (2 sigma²), the authors' released code. "uniform": 1.
    """
    if weighting == "sigma":
        return 1 / (2 * sigma**2)
    if weighting == "uniform":
        return 1.0
    raise ValueError(f'The anchor is weighted by "sigma" or "uniform", not by "{weighting}".')


def kl_anchor(v: Tensor, v_ref: Tensor, sigma: float, weighting: AnchorWeighting = "sigma") -> Tensor:
    """One term of Eq. 7: w'_t ||v_θ − v_ref||², a scalar, differentiable in both velocities.

    The square is averaged over elements, not summed, as the authors do: the anchor's weight then does not
    depend on the video's size.
    """
    return anchor_weight(sigma, weighting) * (v - v_ref).square().mean()


def both_velocities(model: VideoModel, x: Tensor, sigma: float, condition: Any) -> tuple[Tensor, Tensor]:
    """v_θ(x), and v_ref(x) without a gradient: in one visit of the weights, where the model can."""
    together = getattr(model, "velocities", None)
    if together is not None:
        v, _, v_ref = together(x, sigma, condition, fork=False, through_reference=False)
        return v, v_ref
    return model.velocity(x, sigma, condition), model.frozen_velocity(x.detach(), sigma, condition).detach()
