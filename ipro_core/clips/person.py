"""One person's pictures and a list of prompts as scenes, where nothing was filmed (PersonalVideo)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..files import fingerprint
from ..types import Framing
from .scenes import fit
from .video import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LARGEST = 1024
"""Longer side that pictures are kept at, in pixels."""


@dataclass(frozen=True, eq=False)
class PersonScene:
    """A prompt for the person; in image-to-video one of the pictures is the first frame."""

    name: str
    prompt: str
    framing: Framing
    pictures: tuple[Tensor, ...]
    """(3, H, W) in [0, 1], each of any size."""
    told: str
    """Tells them from any others."""
    shown: int | None
    """Which of them is the first frame; None: there is none, in text-to-video."""

    def key(self) -> dict[str, Any]:
        return {"pictures": self.told, "first": self.shown, "size": [self.framing.width, self.framing.height]}

    def first(self) -> Tensor:
        """The first frame; without one a picture to compare with, whole, black beside it."""
        if self.shown is not None:
            return fit(self.pictures[self.shown][None], self.framing)[0]
        return whole(self.pictures[0], self.framing)

    def frames(self) -> Tensor:
        raise ValueError(f"{self.name} is no clip: there are only pictures of the person.")

    def pieces(self) -> Iterator[Tensor]:
        """The pictures one by one: the person's faces are found in them as in a clip's frames."""
        yield from (picture[None] for picture in self.pictures)


def person_scenes(
    pictures: Sequence[Tensor], prompts: Sequence[str], framing: Framing, *, with_first: bool
) -> list[PersonScene]:
    """A scene for each prompt.

    Args:
        with_first: the pictures are first frames, in turn; else there is none, as in text-to-video.
    """
    told = fingerprint({f"{n:04d}": picture for n, picture in enumerate(pictures)})
    return [
        PersonScene(
            f"prompt {n}", prompt, framing, tuple(pictures), told, n % len(pictures) if with_first else None
        )
        for n, prompt in enumerate(prompts)
    ]


def read_pictures(places: Sequence[Path | str]) -> list[Tensor]:
    """The pictures among the places and in the folders among them, none larger than `LARGEST`.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    return [_shrunk(read_image(path)) for path in find_pictures(places)]


def find_pictures(places: Sequence[Path | str]) -> list[Path]:
    """See `read_pictures`."""
    pictures = []
    for place in map(Path, places):
        found = sorted(path for path in place.glob("*") if path.suffix.lower() in SUFFIXES)
        if place.is_dir() and not found:
            raise ValueError(f"{place} holds no picture ({', '.join(SUFFIXES)}): give a folder of pictures.")
        pictures += found if place.is_dir() else [place]
    return pictures


def whole(picture_CHW: Tensor, framing: Framing) -> Tensor:
    """The whole picture at the size wanted, black beside it."""
    height, width = picture_CHW.shape[1:]
    seen_CHW = _sized(picture_CHW, min(framing.height / height, framing.width / width))
    tall, wide = framing.height - seen_CHW.shape[1], framing.width - seen_CHW.shape[2]
    return F.pad(seen_CHW, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))


def _shrunk(picture_CHW: Tensor) -> Tensor:
    share = LARGEST / max(picture_CHW.shape[1:])
    return picture_CHW if share >= 1 else _sized(picture_CHW, share)


def _sized(picture_CHW: Tensor, share: float) -> Tensor:
    size = [max(1, round(side * share)) for side in picture_CHW.shape[1:]]
    return F.interpolate(picture_CHW[None], size, mode="bilinear", antialias=True)[0]
