"""Harm done to who is who, stronger or weaker, to real clips: pairs without annotators (Identity-GRPO's
synthetic distortions; what each of them looks like is ours, since that data is not released).

Every function takes frames in [0, 1], the tracks of the people, a strength in (0, 1] and a generator, and
leaves frame 0, the input, as it is.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.alignment import crop_faces
from ..types import FaceTrack
from .corruptions import CROP, lay_faces

Distortion = Callable[[Tensor, Sequence[FaceTrack], float, torch.Generator], Tensor]


def swap(
    frames_TCHW: Tensor, tracks: Sequence[FaceTrack], strength: float, generator: torch.Generator
) -> Tensor:
    """Two people become each other, for the last `strength` of the clip."""
    shares_T = (torch.arange(len(frames_TCHW)) >= round((1 - strength) * len(frames_TCHW))).float()
    return _mixed(frames_TCHW, *_two(tracks, generator), shares_T)


def blend(
    frames_TCHW: Tensor, tracks: Sequence[FaceTrack], strength: float, generator: torch.Generator
) -> Tensor:
    """Two people look alike: at strength 1 both are the mean of both."""
    shares_T = torch.full((len(frames_TCHW),), strength / 2)
    return _mixed(frames_TCHW, *_two(tracks, generator), shares_T)


def drift(
    frames_TCHW: Tensor, tracks: Sequence[FaceTrack], strength: float, generator: torch.Generator
) -> Tensor:
    """One person turns into another little by little, who stays as well: at strength 1 wholly."""
    one, other = _two(tracks, generator)
    return _mixed(frames_TCHW, one, other, torch.linspace(0, strength, len(frames_TCHW)), both=False)


def warp(
    frames_TCHW: Tensor, tracks: Sequence[FaceTrack], strength: float, generator: torch.Generator
) -> Tensor:
    """Every face is bent, more and more: at strength 1 by up to a fifth of its crop."""
    growth_T11 = torch.linspace(0, 1, len(frames_TCHW))[:, None, None, None]
    for track in tracks:
        coarse = 2 * torch.rand(1, 2, 4, 4, generator=generator) - 1
        field_HW2 = F.interpolate(coarse, (CROP, CROP), mode="bicubic", align_corners=True)[0].permute(
            1, 2, 0
        )
        grid_THW2 = _straight() + 0.4 * strength * growth_T11 * field_HW2  # the crop is 2 wide
        crops = crop_faces(frames_TCHW, track.points_T52, CROP)
        bent = F.grid_sample(crops.float(), grid_THW2, padding_mode="border", align_corners=False)
        frames_TCHW = lay_faces(frames_TCHW, bent, track.points_T52)
    return frames_TCHW


DISTORTIONS: dict[str, Distortion] = {"swap": swap, "blend": blend, "drift": drift, "warp": warp}
ALONE = ("warp",)
"""Those that one person can suffer."""


def _two(tracks: Sequence[FaceTrack], generator: torch.Generator) -> tuple[FaceTrack, FaceTrack]:
    first, second = torch.randperm(len(tracks), generator=generator)[:2].tolist()
    return tracks[first], tracks[second]


def _mixed(
    frames_TCHW: Tensor, one: FaceTrack, other: FaceTrack, shares_T: Tensor, *, both: bool = True
) -> Tensor:
    """The share of the other's face in one person's, and the other way round."""
    faces = [crop_faces(frames_TCHW, track.points_T52, CROP) for track in (one, other)]
    shares = shares_T.view(-1, 1, 1, 1)
    out = lay_faces(frames_TCHW, torch.lerp(faces[0], faces[1], shares), one.points_T52)
    return lay_faces(out, torch.lerp(faces[1], faces[0], shares), other.points_T52) if both else out


def _straight() -> Tensor:
    """The grid that bends nothing, (H, W, 2)."""
    places = (2 * torch.arange(CROP) + 1) / CROP - 1
    return torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1)
