"""The frozen high-noise expert's part of the rollout, made once (5.1: only the low-noise expert is trained).

What it hands over at the boundary is a function of first frame, prompt and seed alone. Kept on disk, it
spares training the expert itself, 28 GB, and 3 of the 8 steps.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cache import Stage
from ..models.base import VideoModel
from .rollout import sample


@dataclass(frozen=True, eq=False)
class Start:
    """Where one rollout starts."""

    name: str
    """Identifies what the model is told: first frame and prompt as they were encoded."""
    shape: tuple[int, ...]
    """(C, T, H, W) of the latents."""
    seed: int
    condition: Callable[[], Any]
    """What the model is told, of batch size 1; asked for when it is needed."""

    def noise(self) -> Tensor:
        """x_T, (C, T, H, W): one noise for one name and seed, on every device."""
        return start_noise(self.name, self.shape, self.seed)


def start_noise(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """See `Start.noise`."""
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:4], "little")))


def boundary_stage(
    made_by: str, open_expert: Callable[[], VideoModel], sigmas: Tensor, device: torch.device | str = "cpu"
) -> Stage[Start]:
    """`latents`: (C, T, H, W) where the trained expert takes over.

    Args:
        made_by: identifies the high-noise expert's weights and all adapters on it.
        sigmas: the schedule from 1 down to the boundary, the `sigmas[: switch + 1]` of `switch_step`.
        device: where the expert is.
    """
    levels = [round(sigma, 6) for sigma in sigmas.tolist()]

    def key(start: Start) -> dict[str, Any]:
        told = {"condition": start.name, "shape": list(start.shape), "seed": start.seed}
        return {"stage": "boundary", "made_by": made_by, "sigmas": levels, **told}

    def make() -> Callable[[Start], Mapping[str, Tensor]]:
        expert = open_expert()

        def hand_over(start: Start) -> dict[str, Tensor]:
            noise = start.noise()[None].to(device)
            return {"latents": sample(expert, noise, start.condition(), sigmas, frozen=True)[0]}

        return hand_over

    return Stage("boundary latents", key, make)
