"""A box of one video through Wan's decoder, forwards and backwards, one latent frame at a time.

For the way back there wait on the host either the causal caches at the borders between latent frames, and
each is decoded once more for its graph; or the graphs themselves: 10 GiB for a face of 100 px that stays in
its place for 121 frames of TI2V-5B.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .vae_decoder import CausalDecoder, Window

GROUP = 4
"""Frames of every latent frame but the first, which is one."""


class Shelf:
    """Where caches and graphs wait for the way back, beside the device where the work is done."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """device: the host, whose memory torch pins: the device's then does not grow with the frames."""
        self.device = torch.device(device)

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor on the shelf."""
        return tensor.to(self.device, non_blocking=True)

    def take(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A tensor on the shelf, back where it is used."""
        return tensor.to(device, non_blocking=True)


class VideoBox:
    """The frames of one video inside a box of pixels, and the way back. Reads no value of a tensor."""

    def __init__(
        self,
        decoder: CausalDecoder,
        z_BCTHW: Tensor,
        box: Window,
        *,
        margin: int | None,
        graph_bytes: int,
        shelf: Shelf,
    ) -> None:
        """
        Args:
            z_BCTHW: latents of a batch of one, not normalised.
            margin, graph_bytes, shelf: see `WanVae`.
        """
        height, width = z_BCTHW.shape[-2:]
        self._decoder, self._z, self._shelf = decoder, z_BCTHW, shelf
        self.windows = decoder.windows(box, height, width, margin)
        self.graph_bytes = decoder.chunk_size(height, width, self.windows).graph * z_BCTHW.element_size()
        """Of one latent frame."""
        self._sparing = self.graph_bytes > graph_bytes
        top, bottom, left, right = (decoder.patch * side for side in self.windows[-1])
        self._beside = (box[2] - left, right - box[3], box[0] - top, bottom - box[1])
        """Pixels that the last window has beyond the box: left, right, above, below."""
        self._borders: list[list[Tensor]] = [[]]
        self._chunks: list[Tensor] = []

    def decode(self, *, keep: bool = False) -> Tensor:
        """(1, T, 3, H, W) of the box, in about [-1, 1].

        Args:
            keep: keep the graph on the shelf, so that `pull` decodes nothing again.
        """
        if keep:
            self._chunks = self._decode_with_graph()
            chunks = [chunk.detach() for chunk in self._chunks]
        else:
            chunks = [self._advance(index) for index in range(self._z.shape[2])]
        left, right, above, below = self._beside
        frames_BCTHW = torch.cat(chunks, dim=2)
        height, width = frames_BCTHW.shape[-2:]
        return frames_BCTHW[..., above : height - below, left : width - right].transpose(1, 2)

    def pull(self, gradient_BTCHW: Tensor) -> Tensor:
        """d/dz of ⟨gradient, the first frames of `decode()`⟩, as many as the gradient has. Once only."""
        count = latent_frames(gradient_BTCHW.shape[1])
        beyond = (0, GROUP * count - GROUP + 1 - gradient_BTCHW.shape[1])  # to the latent frame's end
        gradient_BCTHW = F.pad(gradient_BTCHW.transpose(1, 2).to(self._z), (*self._beside, *beyond))
        wanted = [gradient_BCTHW[:, :, frames_of(index)] for index in range(count)]
        if self._chunks:
            return torch.autograd.grad(self._chunks[:count], self._z, wanted)[0]
        for index in range(len(self._borders) - 1, count - 1):
            self._advance(index)
        del self._borders[count:]
        pulled_T: list[Tensor] = []
        carried: list[Tensor] = []
        for index in reversed(range(count)):
            z = self._z[:, :, index : index + 1]
            pulled, *carried = self._pull_chunk(z, self._borders.pop(), [wanted.pop(), *carried])
            pulled_T.append(pulled)
        pulled_BCTHW = torch.cat(pulled_T[::-1], dim=2)
        return F.pad(pulled_BCTHW, (0, 0, 0, 0, 0, self._z.shape[2] - count))

    @torch.no_grad()
    def _advance(self, index: int) -> Tensor:
        """Decode a latent frame; its caches are left at the border behind it."""
        caches = [self._shelf.take(cache, self._z.device) for cache in self._borders[index]]
        chunk, caches = self._decoder(self._z[:, :, index : index + 1], caches, self.windows)
        self._borders.append([self._shelf.put(cache) for cache in caches])
        return chunk

    def _decode_with_graph(self) -> list[Tensor]:
        """All latent frames as one graph, of which the shelf holds what is saved."""
        chunks, caches = [], []
        hooks = saved_tensors_hooks(self._shelf.put, partial(self._shelf.take, device=self._z.device))
        self._z = self._z.detach().requires_grad_()
        with torch.enable_grad(), hooks:
            for z in self._z.split(1, dim=2):
                chunk, caches = self._decoder(z, caches, self.windows, sparing=self._sparing)
                chunks.append(chunk)
        return chunks

    def _pull_chunk(self, z: Tensor, caches: list[Tensor], gradients: list[Tensor]) -> tuple[Tensor, ...]:
        """The gradients of one latent frame and of the caches it was given, from those of what it gave."""
        z = z.detach().requires_grad_()
        caches = [self._shelf.take(cache, z.device).detach().requires_grad_() for cache in caches]
        with torch.enable_grad():
            chunk, kept = self._decoder(z, list(caches), self.windows, sparing=self._sparing)
        # The last latent frame's caches are wanted by nobody; some of the first one's are mere zeros.
        pairs = zip([chunk, *kept], gradients, strict=False)
        given, wanted = zip(*((part, wish) for part, wish in pairs if part.requires_grad), strict=True)
        return torch.autograd.grad(given, [z, *caches], wanted)


def latent_frames(frames: int) -> int:
    """How many latent frames it takes for these."""
    return (frames + GROUP - 2) // GROUP + 1


def frames_of(index: int) -> slice:
    """The frames of a latent frame."""
    return slice(GROUP * index - 3, GROUP * index + 1) if index else slice(0, 1)
