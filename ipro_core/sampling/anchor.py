"""The multi-step KL anchor to the frozen model (Eq. 7)."""

from torch import Tensor

from ..types import AnchorWeighting


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
