"""The work that is benched: networks of random weights in Wan's shapes, sizes of videos, a face to score."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.memory import BlockStates, Placement
from ..models.taehv import DraftCodec, TinyAutoencoder
from ..models.vae import GROUP, WanVae
from ..models.vae_box import Shelf
from ..models.vae_files import STATISTICS
from ..models.wan import WanCondition, WanVideoModel
from ..models.wan_kinds import RELEASED
from ..types import RewardScore

KINDS = ("I2V-A14B", "TI2V-5B", "T2V-1.3B")


@dataclass(frozen=True)
class Size:
    """A video as one kind of model has it."""

    kind: str
    width: int
    height: int
    frames: int

    @property
    def is_5b(self) -> bool:
        """Wan 2.2's autoencoder instead of 2.1's."""
        return self.kind == "TI2V-5B"

    @property
    def latents(self) -> tuple[int, int, int, int, int]:
        """Their shape, (1, C, T, H, W)."""
        channels, scale = (48, 16) if self.is_5b else (16, 8)
        return 1, channels, (self.frames - 1) // GROUP + 1, self.height // scale, self.width // scale

    @property
    def tokens(self) -> int:
        """Patches of 1 × 2 × 2 latents."""
        return prod(self.latents[2:]) // 4

    def condition(self, text_dim: int = 4096, make: Any = torch.empty) -> WanCondition:
        """What the network is told; make(*shape) gives the tensors."""
        _, channels, *grid = self.latents
        text_BLD = make(1, 512, text_dim)
        if self.kind == "I2V-A14B":
            return WanCondition(text_BLD, make(1, channels + 4, *grid))
        if self.is_5b:
            return WanCondition(text_BLD, first_BC1HW=make(1, channels, 1, *grid[1:]))
        return WanCondition(text_BLD)

    def __str__(self) -> str:
        return f"{self.kind} {self.width}×{self.height}×{self.frames}"


@dataclass(frozen=True)
class Width:
    """How large the networks are made."""

    heads: int
    head_dim: int
    ffn: int
    layers: int
    decoder: int
    """Channels of the decoder's last stage, 96 in Wan 2.1's."""


@dataclass(frozen=True)
class StandingFace:
    """The score of a face that stands still: a small differentiable function of the box's pixels."""

    box: tuple[int, int, int, int]
    """top, bottom, left, right; in pixels."""

    @classmethod
    def of(cls, size: Size) -> "StandingFace":
        """A fifth of the height, above the middle: 96 pixels of 480."""
        side, top, left = size.height // 5, size.height // 4, size.width // 2
        return cls((top, top + side, left, left + side))

    def __call__(self, frames_TCHW: Tensor, index: int = 0) -> RewardScore:
        top, bottom, left, right = self.box
        face_TCHW = frames_TCHW[:, :, top:bottom, left:right]
        per_frame_T = -(face_TCHW - 0.75).square().mean(dim=(1, 2, 3))
        return RewardScore(per_frame_T.mean(), per_frame_T, torch.ones_like(per_frame_T, dtype=torch.bool))


def random_model(
    kind: str,
    width: Width,
    placement: Placement | None = None,
    rank: int = 4,
    states: BlockStates | None = None,
) -> WanVideoModel:
    """A network in that model's shape, both halves of its adapter random; the same numbers every time."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    wanted: dict[str, Any] = RELEASED[kind] | {
        "num_attention_heads": width.heads, "attention_head_dim": width.head_dim, "ffn_dim": width.ffn,
        "num_layers": width.layers, "text_dim": 64, "freq_dim": 32,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WanTransformer3DModel(**wanted).eval()
        model = WanVideoModel(network, Path(kind), placement, states=states)
        model.new_adapter(rank)
        for parameter in model.adapter_parameters().values():
            nn.init.normal_(parameter, std=0.02)
    return model


def random_vae(kind: str, width: int, shelf: Shelf | None = None) -> WanVae:
    """An autoencoder whose frames stay within (0, 1), so that nothing is clamped; a graph of 16 MB counts as
    large in it, as one of 2 GB does in a true one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _vae_network(kind, width)
        network.decoder.conv_out.weight.data *= 0.2
    return WanVae(network.eval().requires_grad_(False), graph_bytes=16 << 20, shelf=shelf)


def true_vae(kind: str) -> Any:
    """The decoder's network in its true width, bfloat16."""
    network = _vae_network(kind, None)
    del network.encoder, network.quant_conv
    _cast(network, torch.bfloat16)
    return network


def true_draft(kind: str) -> DraftCodec:
    """taew2_2, for the others taew2_1; float16 as its file is."""
    network = TinyAutoencoder(48, patch=2) if kind == "TI2V-5B" else TinyAutoencoder(16, patch=1)
    _cast(network, torch.float16)
    return DraftCodec(network, raw=False)


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    # Not network.to, which does not change the parameters of fake tensors in place.
    for part in network.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


def _vae_network(kind: str, width: int | None) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    if kind != "TI2V-5B":
        return AutoencoderKLWan(base_dim=width or 96)
    mean, std = STATISTICS[48]
    return AutoencoderKLWan(
        base_dim=width or 160, decoder_base_dim=2 * width if width else 256, z_dim=48, is_residual=True,
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
        latents_mean=list(mean), latents_std=list(std),
    )  # fmt: skip


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
