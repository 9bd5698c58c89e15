"""One person through one video: which of the detected faces is theirs, and their embeddings (φ in Eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ..types import Choose, Face, FacePool, FaceTrack, PersonFaces
from ..types import SeenFaces as SeenFaces
from .alignment import crop_corners, crop_faces

if TYPE_CHECKING:
    from .clip_face import ClipFace
    from .detector import Detector
    from .recognizer import Recognizer

SAME_PERSON = 0.35
"""Cosine from which a face is the subject wherever it appears; other people stay below 0.34 (300 pairs)."""
SAME_PLACE = 0.3
"""Overlap (intersection over union) with the subject's last box from which a face may be the subject's ..."""
OTHER_PERSON = 0.15
"""... unless its cosine says that someone else stands there now."""


def follower_of(recognizer: Recognizer | ClipFace) -> Recognizer:
    """Who tells people apart where this one's embeddings are compared."""
    return getattr(recognizer, "follower", cast("Recognizer", recognizer))


def see_faces(
    frames: Tensor | Iterable[Tensor],
    detector: Detector,
    recognizer: Recognizer | ClipFace,
    *,
    threshold: float = 0.5,
) -> SeenFaces:
    """Detect and embed every face, without gradients.

    Args:
        frames: (T, 3, H, W) in [0, 1], or such pieces of a video one after the other.
    """
    follower = follower_of(recognizer)
    seen = SeenFaces([], [], None if follower is recognizer else [])
    for piece_TCHW in [frames] if isinstance(frames, Tensor) else frames:
        detections = detector.detect(piece_TCHW, threshold)
        counts = [len(faces) for faces in detections]
        frames_F = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        points = [face.points_52 for faces in detections for face in faces]
        points_F52 = torch.stack(points) if points else torch.zeros(0, 5, 2)
        seen.detections.extend(detections)
        for network, embeddings in ((follower, seen.embeddings), (recognizer, seen.encoded)):
            if embeddings is not None:
                embeddings.extend(embed_faces(piece_TCHW, frames_F, points_F52, network).split(counts))
    return seen


def track_person(
    detections: Sequence[Sequence[Face]],
    embeddings: Sequence[Tensor] | None = None,
    *,
    choose: Choose = "tracked",
    reference_D: Tensor | None = None,
) -> FaceTrack:
    """Follow one person.

    Args:
        detections: the faces of every frame.
        embeddings: of the same faces, (F, D) a frame, unit length; without them only the place decides.
        choose: "tracked" follows the subject, who is the face most like the reference or, without one, the
            largest face of the first frame that shows a face; "largest" takes the largest face of every
            frame, whoever that is.
        reference_D: the subject's embedding.

    Returns:
        The track. Frames without the subject carry boxes and points of the seen frames around them.
    """
    followed = follow_person(detections, embeddings, choose=choose, reference_D=reference_D)
    return track_of({t: detections[t][face] for t, face in followed.items()}, len(detections))


def follow_person(
    detections: Sequence[Sequence[Face]],
    embeddings: Sequence[Tensor] | None = None,
    *,
    choose: Choose = "tracked",
    reference_D: Tensor | None = None,
) -> dict[int, int]:
    """Which face of which frame is the person's: frame → index. See `track_person`."""
    with_faces = [t for t, faces in enumerate(detections) if faces]
    if choose == "largest" or not with_faces:
        return {t: max(range(len(detections[t])), key=lambda f: _area(detections[t][f])) for t in with_faces}
    features = embeddings or [torch.zeros(len(faces), 1) for faces in detections]
    anchor, subject = _anchor(detections, features, with_faces, reference_D)
    likeness = features[anchor][subject] if reference_D is None else reference_D.to(features[anchor])
    chosen = {anchor: subject}
    for order in (range(anchor + 1, len(detections)), range(anchor - 1, -1, -1)):
        last, last_D = detections[anchor][subject], features[anchor][subject]
        for t in order:
            if not detections[t]:
                continue
            place_F = torch.stack([overlap(last, face) for face in detections[t]])
            # Also like the last face: a person may drift away from the reference, step by step.
            person_F = torch.maximum(features[t] @ likeness, features[t] @ last_D)
            if embeddings is None:
                person_F = torch.full_like(place_F, OTHER_PERSON)
            is_subject_F = (person_F >= SAME_PERSON) | ((place_F >= SAME_PLACE) & (person_F >= OTHER_PERSON))
            best = int((person_F + place_F).where(is_subject_F, torch.tensor(-torch.inf)).argmax())
            if is_subject_F[best]:
                chosen[t] = best
                last, last_D = detections[t][best], features[t][best]
    return chosen


def follow_people(
    detections: Sequence[Sequence[Face]],
    embeddings: Sequence[Tensor],
    *,
    reference_D: Tensor | None = None,
) -> list[dict[int, int]]:
    """Everybody in a video, the subject first: each as `follow_person` follows one, among the faces that are
    nobody's yet. A face that was found once is a person too."""
    left = [list(range(len(faces))) for faces in detections]
    people: list[dict[int, int]] = []
    while any(left):
        faces = [[found[f] for f in some] for found, some in zip(detections, left, strict=True)]
        features = [found[some] for found, some in zip(embeddings, left, strict=True)]
        followed = follow_person(faces, features, reference_D=None if people else reference_D)
        people.append({t: left[t][face] for t, face in sorted(followed.items())})
        for t, face in people[-1].items():
            left[t].remove(face)
    return people


def find_person(
    frames_TCHW: Tensor,
    detector: Detector,
    recognizer: Recognizer | ClipFace,
    *,
    choose: Choose = "tracked",
    reference_D: Tensor | None = None,
    threshold: float = 0.5,
) -> FaceTrack:
    """Detect every face and follow one person; see `track_person`. Without gradients."""
    if choose == "largest":
        return track_person(detector.detect(frames_TCHW, threshold), choose=choose)
    follower = follower_of(recognizer)
    seen = see_faces(frames_TCHW, detector, follower, threshold=threshold)
    if follower is not recognizer:
        reference_D = None  # another network's: the largest face of the first frame is the subject
    reference_D = None if reference_D is None else reference_D.detach().cpu().float()
    return track_person(seen.detections, seen.embeddings, choose=choose, reference_D=reference_D)


@torch.no_grad()
def embed_faces(
    frames_TCHW: Tensor, frames_F: Tensor, points_F52: Tensor, recognizer: Recognizer | ClipFace
) -> Tensor:
    """The embeddings of faces given by their frame and points, (F, D) on the CPU, without gradients."""
    if not len(frames_F):
        return torch.zeros(0, recognizer.dim)
    # One by one, because picking frames by a list of numbers would copy every one of them.
    frames = [frames_TCHW[frame].detach() for frame in frames_F.tolist()]
    return recognizer.embed(crop_faces(frames, points_F52, recognizer.size)).float().cpu()


def person_faces(
    frames_TCHW: Tensor,
    detector: Detector,
    recognizer: Recognizer | ClipFace,
    *,
    pool: FacePool | None = None,
    reference_D: Tensor | None = None,
    choose: Choose = "tracked",
    track: FaceTrack | None = None,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> PersonFaces:
    """One person's embedding in every frame of a video, differentiable in the pixels.

    Args:
        frames_TCHW: in [0, 1].
        pool, reference_D: what rewards compare this person with; the reference also says who is followed.
        choose: see `track_person`.
        track: where the person is, if the caller knows; saves detection.
        jitter, generator: see `crop_faces`.

    Returns:
        A frame that does not show the face holds the embedding of where it should be; all zeros, with a
        gradient of zero, if no frame shows it.
    """
    if track is None:
        track = find_person(frames_TCHW, detector, recognizer, choose=choose, reference_D=reference_D)
    (embeddings_TD,) = embed_tracks(frames_TCHW, [track], recognizer, jitter=jitter, generator=generator)
    return PersonFaces(embeddings_TD, track.seen_T.to(frames_TCHW.device), pool, reference_D)


def embed_tracks(
    frames_TCHW: Tensor,
    tracks: Sequence[FaceTrack],
    recognizer: Recognizer | ClipFace,
    *,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """The embeddings (T, D) along every track, differentiable in the pixels; all faces pass the recogniser
    together. See `person_faces`."""
    crops = [
        crop_faces(frames_TCHW, track.points_T52, recognizer.size, jitter=jitter, generator=generator)
        for track in tracks
        if track.seen_T.any()
    ]
    embedded = iter(recognizer.embed(torch.cat(crops)).split(len(frames_TCHW)) if crops else ())
    # The zero stays tied to the frames, so that a reward without any face can still be differentiated.
    none_TD = (0 * frames_TCHW[:, 0, 0, :1]).float().expand(-1, recognizer.dim)
    return [next(embedded) if track.seen_T.any() else none_TD for track in tracks]


def face_box(
    frames_TCHW: Tensor, detector: Detector, *, size: int = 112, border: float = 0.125
) -> tuple[int, int, int, int] | None:
    """The box around all that `person_faces` may look at, whoever is followed: every crop of every face.

    Frames without a face are looked at between the places of others, so that they add nothing.

    Args:
        size: of the recogniser's crop.
        border: room on each side for faces found a little elsewhere, as a share of the crop.

    Returns:
        (top, bottom, left, right) in pixels, bottom and right the first outside; None: no face is found.
    """
    faces = [face for found in detector.detect(frames_TCHW) for face in found]
    if not faces:
        return None
    corners_F42 = crop_corners(torch.stack([face.points_52 for face in faces]), size)
    room_F1 = border * (corners_F42[:, 0] - corners_F42[:, 1]).norm(dim=1, keepdim=True)
    left, top = (corners_F42.amin(dim=1) - room_F1).amin(dim=0).floor().int().tolist()
    right, bottom = (corners_F42.amax(dim=1) + room_F1).amax(dim=0).ceil().int().tolist()
    height, width = frames_TCHW.shape[-2:]
    box = max(top, 0), min(bottom + 1, height), max(left, 0), min(right + 1, width)
    return box if box[0] < box[1] and box[2] < box[3] else None


@torch.no_grad()
def person_of_video(
    read: Callable[[], Iterable[Tensor]], detector: Detector, recognizer: Recognizer, *, pool: FacePool
) -> PersonFaces:
    """`person_faces` of a video that does not fit into memory, without gradients.

    Args:
        read: gives the video's frames, (T, 3, H, W) in [0, 1], piece by piece; called twice.
    """
    seen = see_faces(read(), detector, recognizer)
    track = track_person(seen.detections, seen.embeddings)
    if not track.seen_T.any():
        return PersonFaces(torch.zeros(len(track.seen_T), recognizer.dim), track.seen_T, pool)
    embeddings, begin = [], 0
    for piece_TCHW in read():
        points = track.points_T52[begin : begin + len(piece_TCHW)]
        embeddings.append(embed_faces(piece_TCHW, torch.arange(len(piece_TCHW)), points, recognizer))
        begin += len(piece_TCHW)
    return PersonFaces(torch.cat(embeddings), track.seen_T, pool)


def _anchor(
    detections: Sequence[Sequence[Face]],
    features: Sequence[Tensor],
    with_faces: list[int],
    reference_D: Tensor | None,
) -> tuple[int, int]:
    """Frame and index of the face from which the subject is followed both ways."""
    first = with_faces[0]
    if reference_D is None:
        return first, max(range(len(detections[first])), key=lambda face: _area(detections[first][face]))
    likeness = {t: features[t] @ reference_D for t in with_faces}
    # The first frame with a face that is surely the subject's; else the first frame's most similar face.
    anchor = next((t for t in with_faces if likeness[t].max() >= SAME_PERSON), first)
    return anchor, int(likeness[anchor].argmax())


def track_of(chosen: Mapping[int, Face], frames: int) -> FaceTrack:
    """The track through given faces, frame → face: linear between those on both sides, the nearest one's
    outside of them."""
    seen_T = torch.zeros(frames, dtype=torch.bool)
    rows = np.zeros((frames, 14))
    if chosen:
        times = sorted(chosen)
        seen_T[times] = True
        known = torch.stack([torch.cat([chosen[t].box_4, chosen[t].points_52.flatten()]) for t in times])
        for column in range(14):
            rows[:, column] = np.interp(np.arange(frames), times, known[:, column].double().numpy())
    filled = torch.from_numpy(rows).float()
    return FaceTrack(filled[:, :4], filled[:, 4:].reshape(frames, 5, 2), seen_T)


def _area(face: Face) -> float:
    return (face.box_4[2:] - face.box_4[:2]).prod().item()


def overlap(face: Face, other: Face) -> Tensor:
    """Intersection over union of their boxes."""
    a, b = face.box_4, other.box_4
    shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared).clamp_min(1e-6)
