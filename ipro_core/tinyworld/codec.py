"""A linear causal video codec: what a Wan VAE is to Wan, with matrices for a network.

The first frame is encoded alone, then every group of four frames, as Wan's VAE does in time; in space 4x4 px
make one latent pixel. Principal components take the place of a network, hence decoding is exactly linear and
its gradient (`pullback`) is the transposed matrix.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

CHANNELS = 16
GROUP = 4
PATCH = 4


class LinearCodec:
    """`VideoCodec` for frames (B, 1 + 4k, 3, H, W), H and W multiples of 4; latents (B, 16, 1 + k, H/4,
    W/4)."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "LinearCodec":
        """Read the file that `save` wrote."""
        return cls(load_file(path, device=str(device)))

    def save(self, path: Path | str) -> None:
        """Write the two bases, their means and their scales."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path)

    @classmethod
    def fit(cls, frames_NTCHW: Tensor, weights_NTHW: Tensor) -> "LinearCodec":
        """Principal components of patches; a weight (N, T, H/4, W/4) says how much a patch counts.

        A channel is divided by the root of its standard deviation: whitening it wholly would make the network
        spend itself on noise, leaving it as it is would hide the fine channels.
        """
        tensors: dict[str, Tensor] = {}
        groups = weights_NTHW[:, 1:].unflatten(1, (-1, GROUP)).mean(2)
        for name, patches, weights in (
            ("first", _patches(frames_NTCHW[:, :1]), weights_NTHW[:, :1]),
            ("group", _patches(frames_NTCHW[:, 1:]), groups),
        ):
            rows = patches.movedim(1, -1).flatten(0, -2).double()
            weight = weights.flatten().double()[:, None] / weights.double().sum()
            mean = (rows * weight).sum(0)
            _, vectors = torch.linalg.eigh((rows - mean).T @ ((rows - mean) * weight))
            basis = vectors.flip(1)[:, :CHANNELS].T
            basis = (
                basis * basis.sum(1, keepdim=True).sign()
            )  # an eigenvector's sign is arbitrary; this fixes it
            spread = ((rows - mean) @ basis.T).std(0)
            tensors[f"{name}.mean"] = mean.float()
            tensors[f"{name}.basis"] = basis.float()
            tensors[f"{name}.scale"] = spread.sqrt().float()
        return cls(tensors)

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames in [0, 1] → latents (B, 16, 1 + k, H/4, W/4)."""
        count = frames_BTCHW.shape[1]
        if count % GROUP != 1 or frames_BTCHW.shape[-1] % PATCH or frames_BTCHW.shape[-2] % PATCH:
            raise ValueError(
                f"The tiny codec takes 1, 5, 9, … frames with sides that 4 divides, not {count} frames of "
                f"{frames_BTCHW.shape[-1]}x{frames_BTCHW.shape[-2]}: cut or pad the clip."
            )
        return torch.cat([self._project(*part) for part in self._parts(frames_BTCHW)], dim=2)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Latents → frames (B, 1 + 4k, 3, H, W), not clamped."""
        first = self._restore("first", latents_BCTHW[:, :, :1])
        groups = self._restore("group", latents_BCTHW[:, :, 1:])
        return torch.cat((first, groups), dim=1)

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        """decode's transpose; the same whatever the latents are."""
        first, groups = _patches(gradient_BTCHW[:, :1]), _patches(gradient_BTCHW[:, 1:])
        pulled = [
            torch.einsum(
                "bptyx,cp,c->bctyx",
                patches,
                self._get(name, "basis", patches),
                self._get(name, "scale", patches),
            )
            for name, patches in (("first", first), ("group", groups))
        ]
        return torch.cat(pulled, dim=2)

    def _get(self, part: str, what: str, like: Tensor) -> Tensor:
        return self.tensors[f"{part}.{what}"].to(like)

    def _parts(self, frames_BTCHW: Tensor):
        return ("first", frames_BTCHW[:, :1]), ("group", frames_BTCHW[:, 1:])

    def _project(self, part: str, frames_BTCHW: Tensor) -> Tensor:
        patches = _patches(frames_BTCHW)
        centred = patches - self._get(part, "mean", patches).view(1, -1, 1, 1, 1)
        latents = torch.einsum("bptyx,cp->bctyx", centred, self._get(part, "basis", patches))
        return latents / self._get(part, "scale", patches).view(1, -1, 1, 1, 1)

    def _restore(self, part: str, latents_BCTHW: Tensor) -> Tensor:
        basis, scale = self._get(part, "basis", latents_BCTHW), self._get(part, "scale", latents_BCTHW)
        patches = torch.einsum("bctyx,cp,c->bptyx", latents_BCTHW, basis, scale)
        patches = patches + self._get(part, "mean", patches).view(1, -1, 1, 1, 1)
        frames = patches.shape[1] // (3 * PATCH * PATCH)
        flat = patches.movedim(1, 2).flatten(0, 1).unflatten(1, (frames, -1))
        return pixel_shuffle(flat, PATCH).unflatten(0, (len(patches), -1)).flatten(1, 2)


def _patches(frames_BTCHW: Tensor) -> Tensor:
    """(B, T, 3, H, W) → (B, P, T', H/4, W/4): one frame alone has P = 48, a group of four P = 192."""
    frames = 1 if frames_BTCHW.shape[1] == 1 else GROUP
    patches = pixel_unshuffle(frames_BTCHW, PATCH)
    return patches.unflatten(1, (-1, frames)).flatten(2, 3).movedim(2, 1)
