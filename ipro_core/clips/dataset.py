"""Clips made ready for training: prompt, first frame and faces, each encoded once and kept (Section 5.1).

Three stages, each with a network of its own, which is in memory only while its stage runs: text encoder,
video autoencoder, face networks. Training reads what they left. A stage that was broken off goes on.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..cache import TensorCache
from ..faces.detector import Detector
from ..faces.pool import build_pool
from ..faces.recognizer import Recognizer
from ..types import Clip, FacePool
from .video import iterate_frames, read_frames


@dataclass(frozen=True)
class Framing:
    """What a model makes of a clip: its size, length and pace."""

    width: int
    height: int
    frames: int
    fps: float

    def fit(self, frames_TCHW: Tensor) -> Tensor:
        """The largest middle part of the frames that has the aspect wanted, at the size wanted."""
        height, width = frames_TCHW.shape[-2:]
        share = min(height / self.height, width / self.width)
        tall, wide = round(self.height * share), round(self.width * share)
        top, left = (height - tall) // 2, (width - wide) // 2
        part_TCHW = frames_TCHW[..., top : top + tall, left : left + wide]
        return F.interpolate(part_TCHW, (self.height, self.width), mode="bilinear", antialias=True)

    def read(self, clip: Clip) -> Tensor:
        """The clip's frames, (T, 3, H, W) in [0, 1].

        Raises:
            ValueError: the clip is missing, unreadable or too short.
        """
        frames_TCHW = read_frames(clip.video, clip.first_frame, self.frames, fps=self.fps)
        if len(frames_TCHW) < self.frames:
            raise ValueError(
                f"{clip.video} is too short: {self.frames} frames at {self.fps:g} per second are wanted, "
                f"{len(frames_TCHW)} are there; choose a longer clip, or fewer frames."
            )
        return self.fit(frames_TCHW)

    def read_first(self, clip: Clip) -> Tensor:
        """The input image, (3, H, W)."""
        return self.fit(read_frames(clip.video, clip.first_frame, 1, fps=self.fps))[0]


@dataclass(frozen=True)
class Stage:
    """One way of encoding clips."""

    made_by: str
    """Identifies the network's weights; part of the key."""
    key: Callable[[Clip], Mapping[str, Any]]
    """What the result depends on besides."""
    make: Callable[[Clip], Mapping[str, Tensor]]

    def load(self, cache: TensorCache, clip: Clip) -> Mapping[str, Tensor] | None:
        """What was kept of this clip; None if the stage has not got to it."""
        return cache.load(self.whole_key(clip))

    def run(self, cache: TensorCache, clips: Sequence[Clip]) -> Iterator[Clip]:
        """Encode the clips, yielding each once its entry is there.

        Raises:
            ValueError: a clip cannot be encoded; what was done before is kept.
        """
        for clip in clips:
            cache.load_or_make(self.whole_key(clip), lambda clip=clip: self.make(clip))
            yield clip

    def whole_key(self, clip: Clip) -> dict[str, Any]:
        return {"made_by": self.made_by, **self.key(clip)}


def text_stage(made_by: str, embed_prompt: Callable[[str], Tensor]) -> Stage:
    """`text`: the prompt's embedding, (L, D)."""
    return Stage(
        made_by,
        lambda clip: {"stage": "text", "prompt": clip.prompt},
        lambda clip: {"text": embed_prompt(clip.prompt)},
    )


def image_stage(made_by: str, encode_image: Callable[[Tensor, int], Tensor], framing: Framing) -> Stage:
    """`image`: what the model is told of the first frame, (C, T, H, W).

    Args:
        encode_image: (first frames (1, 3, H, W), number of frames) → (1, C, T, H, W).
    """

    def make(clip: Clip) -> dict[str, Tensor]:
        return {"image": encode_image(framing.read_first(clip)[None], framing.frames)[0]}

    return Stage(made_by, lambda clip: {"stage": "image", **_place(clip, framing)}, make)


def faces_stage(
    detector: Detector, recognizer: Recognizer, framing: Framing, *, min_face: float = 24.0
) -> Stage:
    """The clip's face pool, seen at the clip's own size (at most 1920 px); see `pool_of`."""

    def make(clip: Clip) -> dict[str, Tensor]:
        pieces = iterate_frames(
            clip.video, clip.first_frame, framing.frames, fps=framing.fps, max_side=1920, chunk=16
        )
        pool = build_pool(pieces, detector, recognizer, source=clip.video.name, min_face=min_face)
        return {
            "embeddings": pool.embeddings_PD,
            "frames": pool.frames_P,
            "seen": pool.seen_T,
            "boxes": pool.boxes_P4,
        }

    made_by = f"{detector.name}, {recognizer.name}"
    return Stage(made_by, lambda clip: {"stage": "faces", "min": min_face, **_place(clip, framing)}, make)


def pool_of(entry: Mapping[str, Tensor], clip: Clip, recognizer: str) -> FacePool:
    """The pool that `faces_stage` kept."""
    return FacePool(
        entry["embeddings"], entry["frames"], entry["seen"], entry["boxes"], recognizer, clip.video.name
    )


def _place(clip: Clip, framing: Framing) -> dict[str, Any]:
    """The stretch of which video, at which size."""
    return {
        "video": _sha256(clip.video),
        "first_frame": clip.first_frame,
        "size": [framing.width, framing.height, framing.frames, framing.fps],
    }


@cache
def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"There is no video at {path}: give an existing file.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
