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
from .manifest import MANIFEST, Split, kept_clips, words_of
from .video import TIME_ROUNDING, first_shown, iterate_frames, probe, read_frames, read_image

Place = Path | str | Clip
"""A video file, a folder of them, a manifest; or a clip that was found already."""
MANIFEST_SUFFIX = Path(MANIFEST).suffix
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

    @property
    def first_frame(self) -> int:
        """Of the frames at the model's pace."""
        return first_shown(self.clip.start, self.framing.fps)

    def key(self) -> dict[str, Any]:
        size = [self.framing.width, self.framing.height, self.framing.frames, self.framing.fps]
        return {"video": sha256(self.clip.video), "first_frame": self.first_frame, "size": size}

    def first(self) -> Tensor:
        return fit(read_frames(self.clip.video, self.first_frame, 1, fps=self.framing.fps), self.framing)[0]

    def frames(self) -> Tensor:
        """Raises ValueError if the clip is missing, unreadable or too short."""
        wanted = self.framing
        frames_TCHW = read_frames(self.clip.video, self.first_frame, wanted.frames, fps=wanted.fps)
        if len(frames_TCHW) < wanted.frames:
            raise ValueError(
                f"{self.clip.video} is too short: {wanted.frames} frames at {wanted.fps:g} per second are "
                f"wanted, {len(frames_TCHW)} are there; choose a longer clip, or fewer frames."
            )
        return fit(frames_TCHW, wanted)

    def pieces(self) -> Iterator[Tensor]:
        first, count, fps = self.first_frame, self.framing.frames, self.framing.fps
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


@dataclass(frozen=True)
class PreferredScene:
    """Two videos of one image and prompt, of which people preferred one: that is what the scene shows."""

    preferred: ClipScene
    rejected: ClipScene
    image: Path | None
    """The input image; None: the preferred video's first frame."""

    @property
    def name(self) -> str:
        return self.preferred.name

    @property
    def prompt(self) -> str:
        return self.preferred.prompt

    def key(self) -> dict[str, Any]:
        image = sha256(self.image) if self.image else ""
        return {**self.preferred.key(), "rejected": self.rejected.key(), "image": image}

    def first(self) -> Tensor:
        if self.image is None:
            return self.preferred.first()
        return fit(read_image(self.image)[None], self.preferred.framing)[0]

    def frames(self) -> Tensor:
        return self.preferred.frames()

    def pieces(self) -> Iterator[Tensor]:
        return self.preferred.pieces()


def clip_scenes(places: Sequence[Place], framing: Framing) -> list[ClipScene]:
    """The scenes of `find_clips`.

    Raises:
        ValueError: a place is missing, unreadable, holds no video, or a clip is too short.
    """
    clips = find_clips(places)
    files = Counter(video.stem for video in {clip.video for clip in clips})
    scenes = []
    for clip in clips:
        facts, video = probe(clip.video), clip.video
        end = facts.duration if clip.end is None else min(clip.end, facts.duration)
        last = (first_shown(clip.start, framing.fps) + framing.frames - 1) / framing.fps
        if last >= end - TIME_ROUNDING:
            raise ValueError(
                f"{clip} is too short, {end - clip.start:.1f} seconds: {framing.frames} frames at "
                f"{framing.fps:g} per second are wanted; choose a longer clip, or fewer frames."
            )
        # Two folders' clips of one name are two scenes, and so are two shots of one file.
        name = video.stem if files[video.stem] == 1 else f"{video.parent.name} {video.stem}"
        whole = not clip.start and clip.end is None
        scenes.append(ClipScene(clip, framing, name if whole else f"{name} {clip.start:.1f}s"))
    return scenes


def find_clips(places: Sequence[Place], split: Split = "tuning") -> list[Clip]:
    """Clips from video files and from all those of folders, with `clip.txt` beside `clip.mp4` as prompt; and
    what a manifest of `ipro curate` keeps of a split.

    Raises:
        ValueError: a folder holds no video, or a file is no manifest.
    """
    clips = []
    for place in places:
        if not isinstance(place, Clip) and Path(place).suffix == MANIFEST_SUFFIX:
            clips += kept_clips(Path(place), split)
        else:
            clips += map(clip_of, [place] if isinstance(place, Clip) else find_videos([place]))
    return clips


def clip_of(video: Path | Clip) -> Clip:
    """A whole file with its prompt; a clip stays what it is."""
    return video if isinstance(video, Clip) else Clip(video, words_of(video))


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
