"""The frozen high-noise expert's part of the rollout, made once (5.1: only the low-noise expert is trained).

What it hands over at the boundary is a function of first frame, prompt and seed alone. Kept on disk, it
spares training the expert itself, 28 GB, and 3 of the 8 steps.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cache import TensorCache
from ..models.base import VideoModel
from .rollout import sample


def boundary_key(
    expert: str, condition: str, shape: Sequence[int], seed: int, sigmas: Tensor
) -> dict[str, Any]:
    """What boundary latents depend on.

    Args:
        expert: identifies the high-noise expert's weights and all adapters on it.
        condition: identifies first frame and prompt as the expert is told them (`cache.fingerprint`).
        shape: (C, T, H, W) of the latents.
        sigmas: the schedule from 1 down to the boundary.
    """
    levels = [round(sigma, 6) for sigma in sigmas.tolist()]
    return {"boundary": levels, "expert": expert, "condition": condition, "shape": list(shape), "seed": seed}


def boundary_noise(condition: str, shape: Sequence[int], seed: int) -> Tensor:
    """x_T, (C, T, H, W): one noise for one condition and seed, on every device."""
    digest = hashlib.sha256(f"{condition} {seed}".encode()).digest()
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:4], "little")))


def make_boundary_latents(
    cache: TensorCache,
    model: VideoModel,
    expert: str,
    conditions: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    seeds: Sequence[int],
    sigmas: Tensor,
    device: torch.device | str = "cpu",
) -> Iterator[Mapping[str, Any]]:
    """Fill the cache, yielding each entry's key when it is there; entries already made cost nothing.

    Args:
        conditions, shapes: by the condition's fingerprint; a condition has batch size 1.
        sigmas: the schedule from 1 down to the boundary, the `sigmas[: switch + 1]` of `switch_step`.
        device: where the model is.
    """
    for name, condition in conditions.items():
        for seed in seeds:
            key = boundary_key(expert, name, shapes[name], seed, sigmas)
            if cache.load(key) is None:
                noise = boundary_noise(name, shapes[name], seed)[None].to(device)
                cache.save(key, {"latents": sample(model, noise, condition, sigmas, frozen=True)[0]})
            yield key
