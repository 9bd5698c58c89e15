"""Tiny autoencoders for Wan's latents, as a draft VideoCodec: TAEW2.1, TAEW2.2 and their "light" retrainings.

Written from the published architecture (github.com/madebyollin/taehv): convolutions of 64 to 256 channels, in
blocks that see a frame and the one before it. They cost a tenth to a sixteenth of Wan's own decoder.
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import pullback_by_autograd
from .vae_files import STATISTICS, check_shapes, read_tensors, statistics

GROUP = 4
"""Frames of a latent frame; the first latent frame's first three are thrown away."""

PIECE = 4
"""Latent frames that are decoded at a time: at 704x1280 each holds 0.1 GiB in every layer."""

_POOLED = (2, 2, 1)
_GROWN = (1, 2, 2)
"""In time, of the three stages of encoder and decoder; in space each stage halves or doubles."""
_WHAT = "tiny autoencoder"
_ADVICE = "choose taew2_1, lighttaew2_1 or taew2_2 as .safetensors"


def load_draft_codec(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    latents: Literal["normalised", "raw"] | None = None,
) -> "DraftCodec":
    """Open a tiny autoencoder. **Draft quality only, and never the default**: see `DraftCodec`.

    Args:
        dtype: of the weights and of the work; None: as in the file.
        latents: what the network was trained on, which its tensors do not tell: the latents as Wan's network
            works in them (madebyollin's), or as Wan's encoder gives them (LightX2V's). None: raw if "light"
            is in the file's name.

    Raises:
        ValueError: the file is missing, damaged, quantised, or none for Wan's latents.
    """
    path = Path(path)
    tensors = read_tensors(path, _WHAT, _ADVICE)
    mark = tensors.get("decoder.1.weight"), tensors.get("decoder.22.weight")
    kind = None if mark[0] is None or mark[1] is None else (mark[0].shape[1], mark[1].shape[0])
    if kind not in ((16, 3), (48, 12)):
        raise ValueError(f"{path.name} is no {_WHAT} for Wan's latents of 16 or 48 channels: {_ADVICE}.")
    with torch.device("meta"):
        network = TinyAutoencoder(kind[0], patch=2 if kind[0] == 48 else 1)
    check_shapes(path, tensors, network.state_dict(), _ADVICE)
    dtype = dtype or tensors["decoder.1.weight"].dtype
    tensors = {key: tensor.to(device, dtype) for key, tensor in tensors.items()}
    network.load_state_dict(tensors, strict=True, assign=True)
    latents = latents or ("raw" if "light" in path.name.lower() else "normalised")
    return DraftCodec(network.eval().requires_grad_(False), raw=latents == "raw")


class DraftCodec:
    """`VideoCodec` by a tiny autoencoder, for previews and for finding faces.

    A reward on it can be hacked: what raises a face's score through this decoder need not do so through Wan's
    own, and ripples are known to appear in its dark regions (taehv #17). Whoever trains on it measures the
    result on videos that Wan's own decoder made.
    """

    def __init__(self, network: "TinyAutoencoder", *, raw: bool) -> None:
        self.network = network
        self.raw = raw

    @torch.no_grad()
    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames in [0, 1] → normalised latents (B, C, 1 + k, H/8, W/8), Wan 2.2: H/16, W/16.

        Raises:
            ValueError: not 1 + 4k frames, or sides that 8 (16) does not divide.
        """
        count, _, height, width = frames_BTCHW.shape[1:]
        scale = 8 * self.network.patch
        if count % GROUP != 1 or height % scale or width % scale:
            raise ValueError(
                f"The tiny autoencoder takes 1, 5, 9, … frames with sides that {scale} divides, not {count} "
                f"frames of {width}x{height}: cut or pad the clip."
            )
        padded = torch.cat([frames_BTCHW, frames_BTCHW[:, -1:].expand(-1, GROUP - 1, -1, -1, -1)], dim=1)
        latents_BTCHW = self.network.encode(padded.to(self._weight))
        latents_BCTHW = latents_BTCHW.transpose(1, 2).to(frames_BTCHW)
        mean, std = self._statistics(latents_BCTHW)
        return (latents_BCTHW - mean) / std

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Normalised latents → frames (B, 1 + 4k, 3, H, W) in about [0, 1], not clamped."""
        mean, std = self._statistics(latents_BCTHW)
        latents_BTCHW = (latents_BCTHW * std + mean).transpose(1, 2).to(self._weight)
        before: list[Tensor] = []
        pieces = [
            self.network.decode(piece, before).to(latents_BCTHW)
            for piece in latents_BTCHW.split(PIECE, dim=1)
        ]
        return torch.cat(pieces, dim=1)[:, GROUP - 1 :]

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        """d/d latents of ⟨gradient, decode(latents)⟩; its memory grows with the frames."""
        return pullback_by_autograd(self, latents_BCTHW, gradient_BTCHW)

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.network.channels

    @property
    def _weight(self) -> Tensor:
        return next(self.network.decoder.parameters())

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.raw:
            return statistics(self.network.channels, like)
        return like.new_zeros(()), like.new_ones(())


class TinyAutoencoder(nn.Module):
    """TAEHV's two stacks of layers, under its files' names."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        assert channels in STATISTICS
        self.channels, self.patch = channels, patch
        layers: list[nn.Module] = [_conv(3 * patch**2, 64), nn.ReLU()]
        for stride in _POOLED:
            layers += [_Pool(64, stride), _conv(64, 64, stride=2, bias=False)]
            layers += [_Remembering(64) for _ in range(3)]
        self.encoder = nn.Sequential(*layers, _conv(64, channels))

        layers = [_SoftClamp(), _conv(channels, 256), nn.ReLU()]
        for stride, width, next_width in zip(_GROWN, (256, 128, 64), (128, 64, 64), strict=True):
            layers += [_Remembering(width) for _ in range(3)]
            layers += [
                nn.Upsample(scale_factor=2),
                _Grow(width, stride),
                _conv(width, next_width, bias=False),
            ]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(64, 3 * patch**2))

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """4k frames → k latent frames."""
        return _run(self.encoder, F.pixel_unshuffle(frames_BTCHW, self.patch), [])

    def decode(self, latents_BTCHW: Tensor, before: list[Tensor]) -> Tensor:
        """k latent frames → 4k frames.

        Args:
            before: what the blocks remember of the latent frames before these, nothing at the beginning; is
                brought up to date.
        """
        return F.pixel_shuffle(_run(self.decoder, latents_BTCHW, before), self.patch)


class _Remembering(nn.Module):
    """A residual block that sees a frame and the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class _Pool(nn.Module):
    """Consecutive frames become one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unflatten(0, (-1, self.stride)).flatten(1, 2))


class _Grow(nn.Module):
    """One frame becomes consecutive ones."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).unflatten(1, (self.stride, -1)).flatten(0, 1)


class _SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _conv(channels: int, width: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=bias)


def _run(layers: nn.Sequential, x_BTCHW: Tensor, remembered: list[Tensor]) -> Tensor:
    """All frames through one layer after the other; a gradient computes the inside of blocks again.

    `remembered`: of each remembering block its last input frame, (B, 1, C, H, W).
    """
    batch, x = len(x_BTCHW), x_BTCHW.flatten(0, 1)
    last_seen = iter(tuple(remembered))
    remembered.clear()
    for layer in layers:
        if isinstance(layer, _Remembering):
            frames = x.unflatten(0, (batch, -1))
            first = next(last_seen, torch.zeros_like(frames[:, :1]))
            remembered.append(frames[:, -1:].clone())  # a view would keep the whole
            before = torch.cat([first, frames[:, :-1]], dim=1).flatten(0, 1)
            x = checkpoint(layer, x, before, use_reentrant=False, preserve_rng_state=False)
        else:
            x = layer(x)
    return x.unflatten(0, (batch, -1))
