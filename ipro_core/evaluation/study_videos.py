"""The videos of one scene made alike, so that nothing but what they show tells them apart; and one spoilt."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ..clips.video import probe, read_frames

MOST_PIXELS = 1 << 27
"""Of all frames of one video: 121 frames of 1280x704 fit, and it takes 1.6 GB while it is read."""
SAME_SHAPE = 0.03
"""Two methods may round a height differently."""


@dataclass(frozen=True)
class Take:
    """A video that is no file."""

    frames_TCHW: Tensor
    fps: float


def spoilt(frames_TCHW: Tensor) -> Tensor:
    """The same video as nobody could prefer it: in coarse blocks, its colours turned, one frame of four."""
    count, _, height, width = frames_TCHW.shape
    side = max(1, min(height, width) // 8)
    blocks = adaptive_avg_pool2d(frames_TCHW.float(), (max(1, height // side), max(1, width // side)))
    return 1 - interpolate(blocks, size=(height, width))[torch.arange(count) // 4 * 4]


def alike(videos: Mapping[str, Path | Take], max_side: int) -> dict[str, Take]:
    """All of one size, pace and length, that of the smallest and the shortest, so that none stands out."""
    takes = {method: _read(video, max_side) for method, video in videos.items()}
    fps = max(take.fps for take in takes.values())
    paced = {method: _paced(take, fps) for method, take in takes.items()}
    length = min(map(len, paced.values()))
    sizes = sorted((tuple(frames.shape[2:]) for frames in paced.values()), key=lambda size: size[0] * size[1])
    shapes = [width / height for height, width in sizes]
    if max(shapes) > (1 + SAME_SHAPE) * min(shapes):
        told = ", ".join(f"{method} {frames.shape[3]}x{frames.shape[2]}" for method, frames in paced.items())
        raise ValueError(f"The videos of one scene must have one shape, not {told}: cut them alike.")
    return {method: Take(_sized(frames[:length], sizes[0]), fps) for method, frames in paced.items()}


def _read(video: Path | Take, max_side: int) -> Take:
    if isinstance(video, Take):
        count, _, height, width = video.frames_TCHW.shape
        _check_size("A video", count, width, height, max_side)
        return replace(video, frames_TCHW=shrunk(video.frames_TCHW, max_side))
    facts = probe(video)
    _check_size(str(video), facts.frames, facts.width, facts.height, max_side)
    own = facts.fps if facts.variable_rate else None
    return Take(read_frames(video, fps=own, max_side=max_side), facts.fps)


def _check_size(name: str, frames: int, width: int, height: int, max_side: int) -> None:
    shrink = min(1.0, max_side / max(width, height))
    if frames * width * height * shrink**2 > MOST_PIXELS:
        raise ValueError(
            f"{name} has {frames} frames of {width}x{height}, too many for a page: cut it, or give a smaller "
            "--max-side."
        )


def _paced(take: Take, fps: float) -> Tensor:
    """The frames on show at 0, 1, 2, … of 1/fps seconds."""
    if abs(take.fps - fps) < 1e-3 * fps:
        return take.frames_TCHW
    count = round(len(take.frames_TCHW) / take.fps * fps)
    on_show = (torch.arange(count) * (take.fps / fps) + 1e-6).long()
    return take.frames_TCHW[on_show.clamp_max(len(take.frames_TCHW) - 1)]


def shrunk(frames_TCHW: Tensor, max_side: int) -> Tensor:
    height, width = frames_TCHW.shape[2:]
    shrink = min(1.0, max_side / max(height, width))
    return _sized(frames_TCHW, (max(1, round(height * shrink)), max(1, round(width * shrink))))


def _sized(frames_TCHW: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(frames_TCHW.shape[2:]) == size:
        return frames_TCHW
    return interpolate(frames_TCHW.float(), size=size, mode="bilinear", antialias=True)
