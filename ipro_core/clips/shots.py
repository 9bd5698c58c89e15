"""One quick look over a whole video: where it cuts, and by what each shot is known again (Section 5.1).

PySceneDetect finds the cuts where it is installed; without it, a cut is a change that stands out from the
changes around it, so that a moving camera is none. Fades and dissolves are not found by the latter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .luma import luma
from .video import frame_times, iterate_frames

SMALL = 96
"""Pixels of the longer side: enough to see a cut."""
LEAST_SHOT = 0.5
"""Seconds: a cut that comes sooner after another is none."""
AROUND = 2
"""Frames on each side that a change is compared with ..."""
STANDS_OUT = 1.8
"""... it is a cut from this many times the largest of them on: a flash is two changes of one size ..."""
LEAST_CHANGE = 0.09
"""... and where pixels change by this much in the mean, of 1: a lively talker changes by up to 0.08, cuts
on a dark stage by 0.108."""
SAMPLED = 8
"""Frames of a shot that it is known by."""
HASH_BITS = 64 * SAMPLED
FLAT = 1 / 64
"""Neighbours that differ by less are equal: noise of a codec is no picture."""


@dataclass(frozen=True)
class Shot:
    """A stretch of a video without a cut."""

    first_frame: int
    """Of the file's own frames."""
    frames: int
    start: float
    """Seconds after the file's first frame."""
    end: float
    """Seconds: when the next shot begins, or the file ends."""
    hashes: tuple[str, ...]
    """dHash of eight frames, evenly apart: 16 hexadecimal digits each."""


def find_shots(path: Path | str, fps: float, *, longest: float = 0.0) -> list[Shot]:
    """The shots of a video in their order.

    Args:
        fps: the file's own mean rate, see `probe`.
        longest: seconds; longer shots are cut into equal pieces that are not longer; 0: never.

    Raises:
        ValueError: the file is missing, no video, or damaged.
    """
    finder: _CutFinder = _SceneDetect(fps) if cut_finder() == "PySceneDetect" else _StandingOut()
    hashes: list[str] = []
    for piece_TCHW in iterate_frames(path, max_side=SMALL):
        finder.look(piece_TCHW)
        hashes += dhash(piece_TCHW)
    shown = frame_times(path)
    times = [time - shown[0] for time in shown]
    if len(times) != len(hashes):  # a file whose table of contents is wrong
        times = [frame / fps for frame in range(len(hashes))]
    times.append(times[-1] + 1 / fps)
    edges = [0]
    for cut in finder.cuts():
        if min(cut - edges[-1], len(hashes) - cut) >= LEAST_SHOT * fps:
            edges.append(cut)
    edges.append(len(hashes))
    shots = []
    for begin, end in pairwise(edges):
        seconds = times[end] - times[begin]
        pieces = min(end - begin, -int(-seconds // longest)) if longest else 1
        inner = [begin + round((end - begin) * k / pieces) for k in range(pieces + 1)]
        for first, last in pairwise(inner):
            sampled = torch.linspace(first, last - 1, SAMPLED).round().long().tolist()
            told = tuple(hashes[frame] for frame in sampled)
            shots.append(Shot(first, last - first, times[first], times[last], told))
    return shots


def cut_finder() -> str:
    """Who finds the cuts here."""
    return "PySceneDetect" if find_spec("scenedetect") else "changes"


def dhash(frames_TCHW: Tensor) -> list[str]:
    """Whether each of 8 x 8 places is brighter than its left neighbour: 64 bits that survive another size,
    another encoding and another light."""
    grey_T1HW = luma(frames_TCHW)[:, None]
    small_TRC = interpolate(grey_T1HW, (8, 9), mode="bilinear", antialias=True)[:, 0]
    brighter_TB = (small_TRC[:, :, 1:] - small_TRC[:, :, :-1] > FLAT).flatten(1).tolist()
    return [f"{sum(bit << place for place, bit in enumerate(bits)):016x}" for bits in brighter_TB]


def hash_bits(hashes: Sequence[str]) -> Tensor:
    """The bits of a shot's hashes in a row, as 1 and -1."""
    words = [int(one, 16) for one in hashes]
    return torch.tensor([1.0 if word >> place & 1 else -1.0 for word in words for place in range(64)])


def hash_distance(bits_B: Tensor, others_NB: Tensor) -> Tensor:
    """From one shot to others, (N,): bits of 64 that differ, in the mean over their sampled frames."""
    return 32 * (1 - others_NB @ bits_B / len(bits_B))


class _CutFinder(Protocol):
    def look(self, frames_TCHW: Tensor) -> None:
        """The next frames, small ones."""
        ...

    def cuts(self) -> list[int]:
        """The first frame of every shot but the first, too close ones among them."""
        ...


class _StandingOut:
    def __init__(self) -> None:
        self.changes, self.last = [0.0], None

    def look(self, frames_TCHW: Tensor) -> None:
        known_TCHW = frames_TCHW if self.last is None else torch.cat([self.last, frames_TCHW])
        self.changes += (known_TCHW[1:] - known_TCHW[:-1]).abs().mean(dim=(1, 2, 3)).tolist()
        self.last = frames_TCHW[-1:]

    def cuts(self) -> list[int]:
        found = []
        for frame, change in enumerate(self.changes):
            near = self.changes[max(1, frame - AROUND) : frame] + self.changes[frame + 1 : frame + 1 + AROUND]
            if change >= max(LEAST_CHANGE, STANDS_OUT * max(near, default=0.0)):
                found.append(frame)
        return found


class _SceneDetect:
    def __init__(self, fps: float) -> None:
        from scenedetect import AdaptiveDetector  # pyright: ignore[reportMissingImports]

        self.detector: Any = AdaptiveDetector()
        self.fps, self.frame, self.found = float(fps), 0, list[int]()

    def look(self, frames_TCHW: Tensor) -> None:
        from scenedetect import FrameTimecode  # pyright: ignore[reportMissingImports]

        levels_THWC = frames_TCHW.flip(1).mul(255).round().byte().movedim(1, -1).contiguous().numpy()
        for picture in levels_THWC:
            told = self.detector.process_frame(FrameTimecode(self.frame, self.fps), picture)
            self.found += [cut.frame_num for cut in told]
            self.frame += 1

    def cuts(self) -> list[int]:
        return [cut for cut in self.found if cut]
