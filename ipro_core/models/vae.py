"""Wan's video autoencoders as a VideoCodec: 2.1 (16 channels) and 2.2 (48 channels, TI2V-5B).

Plain autograd through the decoder would keep 311 GiB for 81 frames of 480x832. `pullback` gives the same
gradient to rounding. It works out from the gradient which frames were scored and which pixels, decodes up to
the last scored frame without a graph, keeping the causal caches at the borders between latent frames, and
walks back over them: one latent frame's graph alive, its caches inputs and outputs whose gradients are
carried on. Latent frames after the last scored one are not touched.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .vae_decoder import CausalDecoder, Window
from .vae_files import check_vae, read_vae, statistics

GROUP = 4
"""Frames of every latent frame but the first, which is one."""


def load_vae(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> "WanVae":
    """Open ComfyUI's file (official names, with or without a prefix) or diffusers' file or folder.

    Args:
        dtype: of the weights and of the work; None: as in the file.

    Raises:
        ValueError: the file is missing, damaged, quantised, or not one of Wan's autoencoders.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    tensors, config = read_vae(path)
    with torch.device("meta"):
        network = AutoencoderKLWan(**config)
    check_vae(path, tensors, network.state_dict())
    dtype = dtype or tensors["decoder.conv_in.weight"].dtype
    tensors = {key: tensor.to(device, dtype) for key, tensor in tensors.items()}
    network.load_state_dict(tensors, strict=True, assign=True)
    return WanVae(network.eval().requires_grad_(False))


class WanVae:
    """`VideoCodec` for 1 + 4k frames with sides that 8 (Wan 2.2: 16) divides."""

    def __init__(
        self,
        network: Any,
        *,
        margin: int | None = None,
        graph_bytes: int = 2 << 30,
        caches_on_host: bool = True,
    ) -> None:
        """
        Args:
            network: diffusers' AutoencoderKLWan, frozen.
            margin: let `pullback` see at most so many latents around the scored pixels; None: all that they
                depend on, which is 13 at most. Relative error on random weights with 10, 8 and 4: 2e-5, 4e-3
                and 2.2 for Wan 2.1; 9e-7, 1e-4 and 2e-2 for Wan 2.2.
            graph_bytes: above these a latent frame's graph keeps half, for one more pass of each block.
            caches_on_host: keep the caches at the borders in pinned host memory, so that the device's memory
                does not grow with the frames; without a device there is no difference.
        """
        self.network = network
        self.margin = margin
        self.graph_bytes = graph_bytes
        self.caches_on_host = caches_on_host
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
            frames_BTCHW[:, _frames_of(index)] = (chunk_BCTHW.to(frames_BTCHW.dtype) / 2 + 0.5).transpose(
                1, 2
            )
        return frames_BTCHW

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
            count = (last_frame + GROUP - 2) // GROUP + 1
            pulled_BCTHW[:, :, :count] = self.pull_box(latents_BCTHW[:, :, :count], gradient_BTCHW, box)
        return pulled_BCTHW

    @torch.no_grad()
    def pull_box(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor, box: Window) -> Tensor:
        """`pullback` where it is known that all latent frames given are wanted, and that the gradient is zero
        outside the box (in pixels). Reads no value, so fake tensors can count its memory."""
        height, width = latents_BCTHW.shape[-2:]
        windows = self.decoder.windows(box, height, width, self.margin)
        top, bottom, left, right = (self.decoder.patch * side for side in windows[-1])
        # The product is linear in the gradient; float16 has no room for small ones.
        low, high = torch.aminmax(gradient_BTCHW)
        largest = torch.maximum(-low, high)

        z_T = self._denormalised(latents_BCTHW).split(1, dim=2)
        borders: list[list[Tensor]] = [[]]
        caches: list[Tensor] = []
        for z in z_T[:-1]:
            _, caches = self.decoder(z, caches, windows)
            borders.append([cache.to(self._shelf, non_blocking=True) for cache in caches])
        del caches
        pulled_T, carried = [], []
        for index in reversed(range(len(z_T))):
            gradient_BTCHW_ = gradient_BTCHW[:, _frames_of(index), :, top:bottom, left:right] / largest
            pulled, *carried = self._pull_chunk(
                z_T[index], borders.pop(), windows, [gradient_BTCHW_.transpose(1, 2), *carried]
            )
            pulled_T.append(pulled)
        _, std = statistics(self.channels, latents_BCTHW)
        # Half, because frames are x / 2 + 1 / 2.
        return torch.cat(pulled_T[::-1], dim=2).to(latents_BCTHW) * std * largest / 2

    def _pull_chunk(
        self, z: Tensor, caches: list[Tensor], windows: Sequence[Window], gradients: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """The gradients of one latent frame and of the caches it was given, from those of what it gave."""
        z = z.detach().requires_grad_()
        caches = [cache.to(z.device, non_blocking=True).detach().requires_grad_() for cache in caches]
        height, width = z.shape[-2:]
        size = self.decoder.chunk_size(height, width, windows)
        sparing = size.graph * z.element_size() > self.graph_bytes
        with torch.enable_grad():
            chunk, kept = self.decoder(z, caches, windows, sparing=sparing)
        # The last latent frame's caches are wanted by nobody; some of the first one's are mere zeros.
        pairs = zip([chunk, *kept], gradients, strict=False)
        given, wanted = zip(*((part, wish) for part, wish in pairs if part.requires_grad), strict=True)
        return torch.autograd.grad(given, [z, *caches], [wish.to(chunk) for wish in wanted])

    @property
    def _weight(self) -> Tensor:
        return self.network.post_quant_conv.weight

    @property
    def _shelf(self) -> torch.device:
        return torch.device("cpu") if self.caches_on_host else self._weight.device

    def _denormalised(self, latents_BCTHW: Tensor) -> Tensor:
        mean, std = statistics(self.channels, latents_BCTHW)
        return (latents_BCTHW * std + mean).to(self._weight)


def _frames_of(index: int) -> slice:
    """The frames of a latent frame."""
    return slice(GROUP * index - 3, GROUP * index + 1) if index else slice(0, 1)


def _extent(where: Tensor) -> tuple[int, int]:
    """First and one past last place where a row of booleans is true."""
    places = where.nonzero()
    return int(places[0]), int(places[-1]) + 1
