"""Scenes: a first frame, a prompt, and what was really filmed, as a model of some size and pace sees them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from ..files import fingerprint, sha256
from ..types import Clip, Framing
from .video import iterate_frames, probe, read_frames

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


class Scene(Protocol):
    """One clip and what is asked of its first frame; frames are read when they are wanted."""

    @property
    def name(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    def key(self) -> Mapping[str, Any]:
        """What tells its frames from all others'."""
        ...

    def first(self) -> Tensor:
        """The input image, (3, H, W) in [0, 1], of the model's size."""
        ...

    def frames(self) -> Tensor:
        """The real clip, (T, 3, H, W), of the model's size, length and pace."""
        ...

    def pieces(self) -> Iterable[Tensor]:
        """The same frames as large as they were filmed, a few at a time."""
        ...


@dataclass(frozen=True)
class ClipScene:
    """A stretch of a video file."""

    clip: Clip
    framing: Framing
    name: str

    @property
    def prompt(self) -> str:
        return self.clip.prompt

    def key(self) -> dict[str, Any]:
        size = [self.framing.width, self.framing.height, self.framing.frames, self.framing.fps]
        return {"video": sha256(self.clip.video), "first_frame": self.clip.first_frame, "size": size}

    def first(self) -> Tensor:
        return fit(
            read_frames(self.clip.video, self.clip.first_frame, 1, fps=self.framing.fps), self.framing
        )[0]

    def frames(self) -> Tensor:
        """Raises ValueError if the clip is missing, unreadable or too short."""
        wanted = self.framing
        frames_TCHW = read_frames(self.clip.video, self.clip.first_frame, wanted.frames, fps=wanted.fps)
        if len(frames_TCHW) < wanted.frames:
            raise ValueError(
                f"{self.clip.video} is too short: {wanted.frames} frames at {wanted.fps:g} per second are "
                f"wanted, {len(frames_TCHW)} are there; choose a longer clip, or fewer frames."
            )
        return fit(frames_TCHW, wanted)

    def pieces(self) -> Iterator[Tensor]:
        first, count, fps = self.clip.first_frame, self.framing.frames, self.framing.fps
        return iterate_frames(self.clip.video, first, count, fps=fps, max_side=1920, chunk=16)


@dataclass(frozen=True, eq=False)
class ShownScene:
    """Frames at hand, of the model's size."""

    name: str
    prompt: str
    frames_TCHW: Tensor

    def key(self) -> dict[str, Any]:
        return {"frames": fingerprint({"frames": self.frames_TCHW})}

    def first(self) -> Tensor:
        return self.frames_TCHW[0]

    def frames(self) -> Tensor:
        return self.frames_TCHW

    def pieces(self) -> Iterator[Tensor]:
        yield self.frames_TCHW


def clip_scenes(places: Sequence[Path | str], framing: Framing) -> list[ClipScene]:
    """Scenes from video files, and from all those of folders; `clip.txt` beside `clip.mp4` is its prompt.

    Raises:
        ValueError: a place is missing, unreadable, holds no video, or a clip is too short.
    """
    videos = find_videos(places)
    common = Counter(video.stem for video in videos)
    scenes = []
    for video in videos:
        facts = probe(video)
        if facts.duration * framing.fps <= framing.frames - 1:
            raise ValueError(
                f"{video} is too short, {facts.duration:.1f} seconds: {framing.frames} frames at "
                f"{framing.fps:g} per second are wanted; choose a longer clip, or fewer frames."
            )
        words = video.with_suffix(".txt")
        prompt = words.read_text(encoding="utf-8").strip() if words.exists() else ""
        # Two folders' clips of one name are two scenes.
        name = video.stem if common[video.stem] == 1 else f"{video.parent.name} {video.stem}"
        scenes.append(ClipScene(Clip(video, prompt), framing, name))
    return scenes


def fit(frames_TCHW: Tensor, framing: Framing) -> Tensor:
    """The largest middle part of the frames that has the aspect wanted, at the size wanted."""
    height, width = frames_TCHW.shape[-2:]
    share = min(height / framing.height, width / framing.width)
    tall, wide = round(framing.height * share), round(framing.width * share)
    top, left = (height - tall) // 2, (width - wide) // 2
    part_TCHW = frames_TCHW[..., top : top + tall, left : left + wide]
    return F.interpolate(part_TCHW, (framing.height, framing.width), mode="bilinear", antialias=True)


def find_videos(places: Sequence[Path | str]) -> list[Path]:
    """The files among the places, and those in the folders among them.

    Raises:
        ValueError: a folder holds no video.
    """
    videos = []
    for place in map(Path, places):
        found = sorted(path for path in place.glob("*") if path.suffix.lower() in SUFFIXES)
        if place.is_dir() and not found:
            raise ValueError(f"{place} holds no video ({', '.join(SUFFIXES)}): give a folder of clips.")
        videos += found if place.is_dir() else [place]
    return videos
