"""Small models, codecs and scores with known mathematics, for tests of sampling and training."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from ipro_core.models.base import pullback_by_autograd
from ipro_core.types import RewardScore


class ToyModel:
    """v_ref = tanh(W x) + sigma b + condition over the channels; v_θ adds tanh(sigma + up down x).

    Nonlinear in x and θ, so that a wrong chain rule shows. `condition` is a tensor that adds to v, or None.
    `spread` 0 starts the adapter at zero effect, as a LoRA does.
    """

    def __init__(
        self,
        dim: int = 4,
        *,
        rank: int = 2,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        spread: float = 0.3,
    ):
        generator = torch.Generator().manual_seed(seed)
        # Drawn in float64 and rounded, so that one seed is one model in every precision.
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
        self.base = draw(dim, dim) / dim**0.5
        self.bias = draw(dim)
        self.down = Parameter(draw(rank, dim) / dim**0.5)
        self.up = Parameter(spread * draw(dim, rank))

    def velocity(self, x: Tensor, sigma: float, condition: Tensor | None = None) -> Tensor:
        adapted = torch.einsum("or,ri,bithw->bothw", self.up, self.down, x)
        return self.frozen_velocity(x, sigma, condition) + torch.tanh((1 + sigma) * adapted)

    def frozen_velocity(self, x: Tensor, sigma: float, condition: Tensor | None = None) -> Tensor:
        v = torch.tanh(torch.einsum("oi,bithw->bothw", self.base, x)) + sigma * self.bias[:, None, None, None]
        return v if condition is None else v + condition

    def adapter_parameters(self) -> Mapping[str, Parameter]:
        return {"down": self.down, "up": self.up}


class ToyCodec:
    """Latents of 3 channels and more ↔ frames of the same size: pixel = (1 + tanh(M latent)) / 2.

    decode(encode(frames)) gives the frames back, for frames inside (0, 1).
    """

    def __init__(self, dim: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.mix = torch.randn(3, dim, generator=generator, dtype=torch.float64).to(dtype)

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        return torch.einsum("cp,btphw->bcthw", torch.linalg.pinv(self.mix), torch.atanh(2 * frames_BTCHW - 1))

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.tanh(torch.einsum("pc,bcthw->btphw", self.mix, latents_BCTHW))

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        return pullback_by_autograd(self, latents_BCTHW, gradient_BTCHW)


def toy_score(frames_TCHW: Tensor, index: int = 0) -> RewardScore:
    """Minus the squared distance to a grey of 0.75, best (zero) when every pixel is 0.75."""
    per_frame_T = -(frames_TCHW - 0.75).square().mean(dim=(1, 2, 3))
    return RewardScore(per_frame_T.mean(), per_frame_T, torch.ones(len(frames_TCHW), dtype=torch.bool))
