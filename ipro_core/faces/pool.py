"""Face pools: every face of a real clip as an embedding, the references of FSM (Section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import FacePool as FacePool
from ..types import FaceTrack
from .detector import Detector
from .recognizer import Recognizer
from .tracks import Choose, embed_faces, find_person


@dataclass(frozen=True)
class PoolFigures:
    """What a person wants to know of a pool."""

    faces: int
    frames: int
    """Of the clip."""
    coverage: float
    """Share of the frames that show the face."""
    face_px: tuple[float, float, float]
    """The shorter side of the face's box: smallest, median, largest."""
    self_similarity: float
    """Mean cosine between two faces; mixed people give 0.2 to 0.35, a clean pool 0.8 and more."""
    ceiling: float
    """The highest reward (Eq. 6) this pool can give."""
    recognizer: str
    source: str


def build_pool(
    frames_TCHW: Tensor,
    detector: Detector,
    recognizer: Recognizer,
    *,
    choose: Choose = "tracked",
    reference_D: Tensor | None = None,
    min_face: float = 24.0,
    keep_first: bool = True,
    source: str = "",
    track: FaceTrack | None = None,
) -> FacePool:
    """The pool of one person of a real clip.

    Args:
        frames_TCHW: in [0, 1].
        choose, reference_D: who, see `track_person`.
        min_face: the least shorter side of a face's box, in pixels: below 24 the recogniser sees noise.
        keep_first: False leaves frame 0, the condition in image-to-video, out as the authors' code does.
        source: the clip's name, for people to read.
        track: where the person is, if the caller knows.

    Raises:
        ValueError: the clip shows no face, or none large enough.
    """
    if track is None:
        track = find_person(frames_TCHW, detector, recognizer, choose=choose, reference_D=reference_D)
    clip, frames = source or "the clip", len(frames_TCHW)
    if not track.seen_T.any():
        raise ValueError(f"None of the {frames} frames of {clip} shows a face: choose a clip that shows one.")
    wanted_T = track.seen_T.clone()
    if not keep_first:
        wanted_T[:1] = False
    if not wanted_T.any():
        raise ValueError(
            f"Only frame 0 of {clip} shows a face, and it is left out: keep it, or choose another."
        )
    size_T = _face_px(track.boxes_T4)
    kept_T = wanted_T & (size_T >= min_face)
    if not kept_T.any():
        largest = size_T[wanted_T].max().item()
        raise ValueError(
            f"The faces of {clip} are too small for a pool, at most {largest:.0f} px where {min_face:.0f} px "
            "are wanted: choose a closer clip, or lower the limit."
        )
    frames_P = kept_T.nonzero()[:, 0]
    return FacePool(
        embed_faces(frames_TCHW, frames_P, track.points_T52[frames_P], recognizer),
        frames_P,
        track.seen_T,
        track.boxes_T4[frames_P],
        recognizer.name,
        source,
    )


def merge_pools(pools: Sequence[FacePool]) -> FacePool:
    """One person's pool from several clips, frames counted on from clip to clip.

    Raises:
        ValueError: no pool, or pools of different recognisers.
    """
    if not pools:
        raise ValueError("There is no pool to merge: give one or more.")
    recognizers = sorted({pool.recognizer for pool in pools})
    if len(recognizers) > 1:
        raise ValueError(
            f"Pools of different recognisers do not compare ({' and '.join(recognizers)}): "
            "build them all with the same face pack."
        )
    merged, *others = pools
    for pool in others:
        merged = replace(
            merged,
            embeddings_PD=torch.cat([merged.embeddings_PD, pool.embeddings_PD]),
            frames_P=torch.cat([merged.frames_P, pool.frames_P + len(merged.seen_T)]),
            seen_T=torch.cat([merged.seen_T, pool.seen_T]),
            boxes_P4=torch.cat([merged.boxes_P4, pool.boxes_P4]),
            source=", ".join(source for source in (merged.source, pool.source) if source),
        )
    return merged


def inspect_pool(pool: FacePool) -> PoolFigures:
    """A pool's figures, for the command line and the nodes."""
    sizes = _face_px(pool.boxes_P4)
    spread = (sizes.min(), sizes.median(), sizes.max()) if len(sizes) else [torch.tensor(torch.nan)] * 3
    smallest, median, largest = (round(size.item(), 1) for size in spread)
    return PoolFigures(
        len(pool.embeddings_PD),
        len(pool.seen_T),
        pool.coverage,
        (smallest, median, largest),
        pool.self_similarity,
        pool.ceiling,
        pool.recognizer,
        pool.source,
    )


def _face_px(boxes_N4: Tensor) -> Tensor:
    return (boxes_N4[:, 2:] - boxes_N4[:, :2]).amin(dim=1)
