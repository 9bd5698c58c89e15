"""Small models, codecs and scores with known mathematics, for tests of sampling and training."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from ipro_core.models.base import AdaptedModel, pullback_by_autograd
from ipro_core.models.lora import LowRank
from ipro_core.models.wan import WanCondition
from ipro_core.models.wan_files import save_wan_file
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


def tiny_wan(seed: int = 0):
    """Wan's architecture at its smallest: 4 latent channels, 4 of mask, 4 of image; two heads of 16."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=12, out_channels=4,
            text_dim=8, freq_dim=16, ffn_dim=48, num_layers=2,
        )  # fmt: skip


def save_tiny_wan(path: Path, seed: int = 0) -> Path:
    """The file of `tiny_wan`, which `load_video_model` opens."""
    save_wan_file(tiny_wan(seed), path)
    return path


def tiny_adapter(model: AdaptedModel, seed: int = 4) -> dict[str, LowRank]:
    """A LoRA of rank 2 on every layer of the blocks, neither half of it zero."""
    return {
        name: LowRank(
            0.1 * draw(2, linear.in_features, seed=seed), 0.1 * draw(linear.out_features, 2, seed=seed + 1), 2
        )
        for name, linear in model.linears.items()
        if name.startswith("blocks.")
    }


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WAN_X = draw(2, 4, 3, 4, 4, seed=1)
WAN_CONDITION = WanCondition(draw(2, 5, 8, seed=2), draw(2, 8, 3, 4, 4, seed=3))
