"""Face pools: every face of a real clip as an embedding, the references of FSM (Section 4.2)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..types import Face
from ..types import FacePool as FacePool
from .clip_face import ClipFace
from .detector import Detector
from .people import clip_people
from .recognizer import Recognizer
from .tracks import Choose, SeenFaces, follow_person, see_faces

PERSON_SHARE = 0.2
"""Share of a clip's frames from which somebody beside the subject is one of its people."""


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
    asked = {"choose": choose, "reference_D": reference_D, "min_face": min_face, "keep_first": keep_first}
    return build_pools(frames_TCHW, detector, recognizer, most=1, source=source, **asked)[0]


def build_pools(
    frames_TCHW: Tensor | Iterable[Tensor],
    detector: Detector,
    recognizer: Recognizer | ClipFace,
    *,
    most: int = 0,
    choose: Choose = "tracked",
    reference_D: Tensor | None = None,
    min_face: float = 24.0,
    keep_first: bool = True,
    source: str = "",
) -> list[FacePool]:
    """The pools of the people of a real clip: the subject's, then the others' by how large and how often they
    are seen. Others whose pool would hold fewer faces than PERSON_SHARE of the frames are left out.

    Args:
        most: how many people; 0: everybody.
        choose: "largest" takes each frame's largest face for one person.

    The other arguments and the error are those of `build_pool`, whose person is the subject.
    """
    seen = see_faces(frames_TCHW, detector, recognizer)
    if choose == "largest":
        people = [follow_person(seen.detections, choose=choose)]
    else:
        people = clip_people(seen, reference_D=reference_D)
    clip, frames = source or "the clip", len(seen.detections)
    if not people or not people[0]:
        raise NoFace(f"None of the {frames} frames of {clip} shows a face: choose a clip that shows one.")
    subject, *others = (_pool(seen, person, min_face, keep_first, recognizer, source) for person in people)
    if not len(subject.frames_P):
        looked_at = [seen.detections[t][face] for t, face in people[0].items() if t or keep_first]
        if not looked_at:
            raise NoFace(
                f"Only frame 0 of {clip} shows a face, and it is left out: keep it, or choose another."
            )
        raise NoFace(
            f"The faces of {clip} are too small for a pool, at most {max(map(_size, looked_at)):.0f} px "
            f"where {min_face:.0f} px are wanted: choose a closer clip, or lower the limit."
        )
    if seen.encoded is not None:
        most = 1  # to CLIP all faces are alike: others could not be followed
    others = [pool for pool in others if len(pool.frames_P) >= PERSON_SHARE * frames]
    return [subject, *others][: most or None]


def _pool(
    seen: SeenFaces,
    person: Mapping[int, int],
    min_face: float,
    keep_first: bool,
    recognizer: Recognizer | ClipFace,
    source: str,
) -> FacePool:
    """Of the faces that are large enough, maybe of none."""
    faces = {t: seen.detections[t][face] for t, face in sorted(person.items()) if t or keep_first}
    kept = [t for t, face in faces.items() if _size(face) >= min_face]
    pool = empty_pool(recognizer, len(seen.detections), source)
    pool.seen_T[list(person)] = True
    if not kept:
        return pool
    return replace(
        pool,
        embeddings_PD=torch.stack([seen.compared[t][person[t]] for t in kept]),
        frames_P=torch.tensor(kept),
        boxes_P4=torch.stack([faces[t].box_4 for t in kept]),
    )


def _size(face: Face) -> float:
    """Of a face's box the shorter side, in pixels."""
    return (face.box_4[2:] - face.box_4[:2]).min().item()


def empty_pool(recognizer: Recognizer | ClipFace, frames: int, source: str = "") -> FacePool:
    """The pool of a clip that shows no face."""
    none_P, unseen_T = torch.zeros(0, dtype=torch.int64), torch.zeros(frames, dtype=torch.bool)
    embeddings_PD = torch.zeros(0, recognizer.dim)
    return FacePool(embeddings_PD, none_P, unseen_T, torch.zeros(0, 4), recognizer.name, source)


def in_first_frame(pool: FacePool) -> Tensor | None:
    """The face of frame 0, the input image, (D,); None if the pool holds none."""
    return pool.embeddings_PD[0] if len(pool.frames_P) and pool.frames_P[0] == 0 else None


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
