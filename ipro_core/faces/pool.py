"""Face pools: every face of a real clip as an embedding, the references of FSM (Section 4.2)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import FacePool as FacePool
from .clip_face import ClipFace
from .detector import Detector
from .recognizer import Recognizer
from .tracks import Choose, follow_person, see_faces


class NoFace(ValueError):
    """A clip shows no face that a pool could be made of."""


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
    frames_TCHW: Tensor | Iterable[Tensor],
    detector: Detector,
    recognizer: Recognizer | ClipFace,
    *,
    choose: Choose = "tracked",
    reference_D: Tensor | None = None,
    min_face: float = 24.0,
    keep_first: bool = True,
    source: str = "",
) -> FacePool:
    """The pool of one person of a real clip.

    Args:
        frames_TCHW: in [0, 1]; or such pieces of the clip one after the other, if it is long.
        choose, reference_D: who, see `track_person`.
        min_face: the least shorter side of a face's box, in pixels: below 24 the recogniser sees noise.
        keep_first: False leaves frame 0, the condition in image-to-video, out as the authors' code does.
        source: the clip's name, for people to read.

    Raises:
        NoFace: the clip shows no face, or none large enough.
    """
    seen = see_faces(frames_TCHW, detector, recognizer)
    followed = follow_person(seen.detections, seen.embeddings, choose=choose, reference_D=reference_D)
    clip, frames = source or "the clip", len(seen.detections)
    if not followed:
        raise NoFace(f"None of the {frames} frames of {clip} shows a face: choose a clip that shows one.")
    boxes = {t: seen.detections[t][face].box_4 for t, face in sorted(followed.items()) if t or keep_first}
    if not boxes:
        raise NoFace(f"Only frame 0 of {clip} shows a face, and it is left out: keep it, or choose another.")
    size_N = _face_px(torch.stack(list(boxes.values())))
    kept = [t for t, size in zip(boxes, size_N.tolist(), strict=True) if size >= min_face]
    if not kept:
        raise NoFace(
            f"The faces of {clip} are too small for a pool, at most {size_N.max():.0f} px where "
            f"{min_face:.0f} px are wanted: choose a closer clip, or lower the limit."
        )
    return FacePool(
        torch.stack([seen.compared[t][followed[t]] for t in kept]),
        torch.tensor(kept),
        torch.tensor([t in followed for t in range(frames)]),
        torch.stack([boxes[t] for t in kept]),
        recognizer.name,
        source,
    )


def empty_pool(recognizer: Recognizer, frames: int, source: str = "") -> FacePool:
    """The pool of a clip that shows no face."""
    none_P, unseen_T = torch.zeros(0, dtype=torch.int64), torch.zeros(frames, dtype=torch.bool)
    embeddings_PD = torch.zeros(0, recognizer.dim)
    return FacePool(embeddings_PD, none_P, unseen_T, torch.zeros(0, 4), recognizer.name, source)


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
