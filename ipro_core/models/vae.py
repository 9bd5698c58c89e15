"""Wan's video autoencoders as a VideoCodec: 2.1 (16 channels) and 2.2 (48 channels, TI2V-5B).

Plain autograd through the decoder would keep 311 GiB for 81 frames of 480x832. `pullback` gives the same
gradient to rounding. It works out from the gradient which frames were scored and which pixels, decodes the
box around them up to the last scored frame without a graph, keeping the causal caches at the borders between
latent frames, and walks back over them: one latent frame's graph alive, its caches inputs and outputs whose
gradients are carried on. Latent frames after the last scored one are not touched.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Judge, Result
from .vae_box import GROUP, Shelf, VideoBox, frames_of
from .vae_decoder import CausalDecoder, Window
from .vae_files import check_vae, named_vae, read_vae, statistics

LARGE = 0.2
"""Share of a video that a box must see for its gradient to cost as much as the whole video's: the box is
decoded twice more, and its inner stages see more than their share."""


def load_vae(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    **options: Any,
) -> "WanVae":
    """Open ComfyUI's file (official names, with or without a prefix) or diffusers' file or folder.

    Args:
        dtype: of the weights and of the work; None: as in the file.
        options: of `WanVae`.

    Raises:
        ValueError: the file is missing, damaged, quantised, or not one of Wan's autoencoders.
    """
    tensors, config = read_vae(path)
    return _opened(path, tensors, config, device, dtype, **options)


def adopt_vae(
    tensors: Mapping[str, Tensor], path: Path, device: torch.device | str, dtype: torch.dtype
) -> "WanVae":
    """On tensors by official names that somebody else has opened, in their memory where place and type agree.

    Raises:
        ValueError: they are not one of Wan's autoencoders; `path` names them.
    """
    return _opened(path, *named_vae(path, tensors), device, dtype)


def _opened(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    config: Any,
    device: Any,
    dtype: torch.dtype | None,
    **options: Any,
) -> "WanVae":
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    with torch.device("meta"):
        network = AutoencoderKLWan(**config)
    check_vae(path, tensors, network.state_dict())
    dtype = dtype or tensors["decoder.conv_in.weight"].dtype
    tensors = {key: tensor.to(device, dtype) for key, tensor in tensors.items()}
    network.load_state_dict(tensors, strict=True, assign=True)
    return WanVae(network.eval().requires_grad_(False), **options)


class WanVae:
    """`VideoCodec` for 1 + 4k frames with sides that 8 (Wan 2.2: 16) divides."""

    def __init__(
        self,
        network: Any,
        *,
        margin: int | None = None,
        graph_bytes: int = 2 << 30,
        kept_bytes: int = 16 << 30,
        shelf: Shelf | None = None,
    ) -> None:
        """
        Args:
            network: diffusers' AutoencoderKLWan, frozen.
            margin: let `pullback` see at most so many latents around the scored pixels; None: all that they
                depend on, which is 13 at most. Relative error on random weights with 10, 8 and 4: 2e-5, 4e-3
                and 2.2 for Wan 2.1; 9e-7, 1e-4 and 2e-2 for Wan 2.2.
            graph_bytes: above these a latent frame's graph keeps half, for one more pass of each block.
            kept_bytes: up to these `look` keeps the graphs of all latent frames, and decodes once.
            shelf: where caches and such graphs wait; None: on the host.
        """
        self.network = network
        self.margin = margin
        self.graph_bytes = graph_bytes
        self.kept_bytes = kept_bytes
        self.shelf = shelf or Shelf()
        self.decoder = CausalDecoder(network)

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.network.config.z_dim

    @torch.no_grad()
    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames in [0, 1] → normalised latents (B, C, 1 + k, H/8, W/8), Wan 2.2: H/16, W/16.

        Raises:
            ValueError: not 1 + 4k frames, or sides that 8 (16) does not divide.
        """
        count, _, height, width = frames_BTCHW.shape[1:]
        if count % GROUP != 1 or height % self.decoder.scale or width % self.decoder.scale:
            raise ValueError(
                f"Wan's autoencoder takes 1, 5, 9, … frames with sides that {self.decoder.scale} divides, "
                f"not {count} frames of {width}x{height}: cut or pad the clip."
            )
        frames_BCTHW = (2 * frames_BTCHW - 1).transpose(1, 2).to(self._weight)
        z = self.network.encode(frames_BCTHW, return_dict=False)[0].mode().to(frames_BTCHW)
        mean, std = statistics(self.channels, z)
        return (z - mean) / std

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Normalised latents → frames (B, 1 + 4k, 3, H, W) in about [0, 1], of the latents' type and place.

        Not clamped, and without a graph: `pullback` is the gradient.
        """
        batch, _, count, height, width = latents_BCTHW.shape
        scale = self.decoder.scale
        frames_BTCHW = latents_BCTHW.new_empty(batch, GROUP * count - 3, 3, scale * height, scale * width)
        z, caches = self._denormalised(latents_BCTHW), []
        for index in range(count):
            chunk_BCTHW, caches = self.decoder(z[:, :, index : index + 1], caches)
            frames_BTCHW[:, frames_of(index)] = (chunk_BCTHW.to(frames_BTCHW.dtype) / 2 + 0.5).transpose(1, 2)
        return frames_BTCHW

    @torch.no_grad()
    def pull(self, latents_BCTHW: Tensor, judge: Judge[Result]) -> tuple[Result, Tensor]:
        """See `base.pull`. Of a video so small that a box of one pixel sees much of it all graphs are kept,
        if they may be: it is decoded once."""
        height, width = (self.decoder.scale * side for side in latents_BCTHW.shape[-2:])
        whole = (0, height, 0, width)
        pixel = (height // 2, height // 2 + 1, width // 2, width // 2 + 1)
        all_bytes, least_bytes = (self._box(latents_BCTHW, box).graph_bytes for box in (whole, pixel))
        if least_bytes < LARGE * all_bytes or latents_BCTHW.shape[2] * all_bytes > self.kept_bytes:
            result, gradient_BTCHW = judge(self.decode(latents_BCTHW))
            return result, self.pullback(latents_BCTHW, gradient_BTCHW)
        frames_BTCHW, pull_back = self.look(latents_BCTHW, whole)
        result, gradient_BTCHW = judge(frames_BTCHW)
        scored_T = (gradient_BTCHW[0] != 0).flatten(1).any(1)
        if not scored_T.any():
            return result, torch.zeros_like(latents_BCTHW)
        return result, pull_back(gradient_BTCHW[:, : _extent(scored_T)[1]])

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        """d/d latents of ⟨gradient, decode(latents)⟩, exact where `margin` is None.

        Its cost follows the frames and the pixels where the gradient is not zero: time goes with the last
        such frame, memory with the box around them, over all frames of one video.
        """
        pairs = zip(latents_BCTHW.split(1), gradient_BTCHW.split(1), strict=True)
        return torch.cat([self._pullback(latents, gradient) for latents, gradient in pairs])

    @torch.no_grad()
    def _pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        scored_THW = (gradient_BTCHW[0] != 0).any(dim=1)  # NaN counts, and comes out as NaN
        pulled_BCTHW = torch.zeros_like(latents_BCTHW)
        if scored_THW.any():
            _, last_frame = _extent(scored_THW.flatten(1).any(1))
            box = (*_extent(scored_THW.any(0).any(1)), *_extent(scored_THW.any(0).any(0)))
            pulled_BCTHW = self.pull_box(latents_BCTHW, gradient_BTCHW[:, :last_frame], box)
        return pulled_BCTHW

    @torch.no_grad()
    def pull_box(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor, box: Window) -> Tensor:
        """`pullback` where it is known up to which frame the gradient goes, and that it is zero outside the
        box (in pixels). Reads no value, so fake tensors can count its memory."""
        top, bottom, left, right = box
        gradient_BTCHW = gradient_BTCHW[..., top:bottom, left:right]
        return self._pull(latents_BCTHW, self._box(latents_BCTHW, box), gradient_BTCHW)

    @torch.no_grad()
    def look(self, latents_BCTHW: Tensor, box: Window) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """One video's frames inside the box (in pixels), and what pulls a gradient on its first frames, as
        many as it has, back to the latents; once. Reads no value."""
        seen = self._box(latents_BCTHW, box)
        frames_BTCHW = seen.decode(keep=seen.graph_bytes * latents_BCTHW.shape[2] <= self.kept_bytes)
        frames_BTCHW = frames_BTCHW.to(latents_BCTHW.dtype) / 2 + 0.5
        return frames_BTCHW, lambda gradient_BTCHW: self._pull(latents_BCTHW, seen, gradient_BTCHW)

    def _box(self, latents_BCTHW: Tensor, box: Window) -> VideoBox:
        options = {"margin": self.margin, "graph_bytes": self.graph_bytes, "shelf": self.shelf}
        return VideoBox(self.decoder, self._denormalised(latents_BCTHW), box, **options)

    def _pull(self, latents_BCTHW: Tensor, seen: VideoBox, gradient_BTCHW: Tensor) -> Tensor:
        # The product is linear in the gradient; float16 has no room for small ones.
        low, high = torch.aminmax(gradient_BTCHW)
        largest = torch.maximum(-low, high)
        _, std = statistics(self.channels, latents_BCTHW)
        # Half, because frames are x / 2 + 1 / 2.
        return seen.pull(gradient_BTCHW / largest).to(latents_BCTHW) * std * largest / 2

    @property
    def _weight(self) -> Tensor:
        return self.network.post_quant_conv.weight

    def _denormalised(self, latents_BCTHW: Tensor) -> Tensor:
        mean, std = statistics(self.channels, latents_BCTHW)
        return (latents_BCTHW * std + mean).to(self._weight)


def _extent(where: Tensor) -> tuple[int, int]:
    """First and one past last place where a row of booleans is true."""
    places = where.nonzero()
    return int(places[0]), int(places[-1]) + 1
