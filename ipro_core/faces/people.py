"""Several people: everybody of a real clip, and given people in a generated video, each with own faces.

Of a real clip nothing is known; its tracks say who is in it. Of a generated video that is known, and frame 0,
the input image, shows where they are: from there on each is followed by place, so that a face which turns
into somebody else's costs its person. Where people pass each other or a place is lost, likeness says who goes
on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..types import Choose, FacePool, Person, PersonFaces
from .matching import match
from .places import follow_places
from .tracks import (
    OTHER_PERSON,
    SAME_PERSON,
    SeenFaces,
    embed_tracks,
    follow_people,
    person_faces,
    see_faces,
    track_of,
    track_person,
)

if TYPE_CHECKING:
    from .clip_face import ClipFace
    from .detector import Detector
    from .recognizer import Recognizer

STRANGER = 0.25
"""Mean cosine along a track below which it shows nobody known: 174 pairs of clips of different people stayed
below 0.23."""


def clip_people(seen: SeenFaces, *, reference_D: Tensor | None = None) -> list[dict[int, int]]:
    """Everybody in a real clip, frame → index of the face: the subject whom `follow_person` finds, then the
    others by how large and how often they are seen. Two tracks that are alike and never in one frame are one
    person.

    Args:
        reference_D: the subject's embedding.
    """
    people: list[dict[int, int]] = []
    for track in follow_people(seen.detections, seen.embeddings, reference_D=reference_D):
        apart = [person for person in people if not person.keys() & track.keys()]
        alike = [(_middle(seen, person) @ _middle(seen, track)).item() for person in apart]
        if alike and max(alike) >= SAME_PERSON:
            apart[int(np.argmax(alike))].update(track)
        else:
            people.append(track)
    subject, others = people[:1], people[1:]
    return subject + sorted(others, key=lambda person: _shown(seen, person), reverse=True)


def people_shown(
    image_CHW: Tensor, detector: Detector, recognizer: Recognizer | ClipFace, pools: Sequence[FacePool]
) -> list[bool]:
    """Whether a picture shows each of several people."""
    seen = see_faces(image_CHW[None], detector, recognizer)
    middle_ND = torch.stack([_known(Person(pool)) for pool in pools])
    likeness_NF = (middle_ND @ seen.embeddings[0].T).numpy()
    return [face is not None for face in match(likeness_NF, missing=SAME_PERSON)]


def known_people(seen: SeenFaces, likeness: Sequence[np.ndarray]) -> list[dict[int, int]]:
    """Given people in a generated video, frame → index of the face; no face is two people's.

    Args:
        likeness: of every frame (F, N), the cosine of each face to each person.
    """
    left = follow_places(seen, cut_crossings=True)
    own: list[dict[int, int]] = [{} for _ in range(likeness[0].shape[1])]
    while left:
        # Those who are there together are told from each other; frame 0 is known, so that less will do.
        together = [track for track in left if track.keys() & left[0].keys()]
        known = (range(1), OTHER_PERSON) if 0 in left[0] else (range(len(likeness)), STRANGER)
        worth_NK = worth_of_tracks(likeness, together, *known)
        for n, faces in enumerate(own):
            worth_NK[n, [bool(faces.keys() & track.keys()) for track in together]] = -np.inf
        given = [None if k is None else together[k] for k in match(worth_NK, missing=1e-6)]
        for faces, track in zip(own, given, strict=True):
            faces.update(track or {})
        left = [track for track in left[1:] if track not in given]
    return [dict(sorted(faces.items())) for faces in own]


def worth_of_tracks(
    likeness: Sequence[np.ndarray],
    tracks: Sequence[Mapping[int, int]],
    counted: range,
    nobody: float = STRANGER,
) -> np.ndarray:
    """How much each track shows of each person, (N, K); above 0 where it is more like than a stranger's.

    Args:
        likeness: see `known_people`.
        counted: the frames that count.
        nobody: the cosine that counts nothing.
    """
    worth_NK = np.zeros((likeness[0].shape[1], len(tracks)))
    for k, track in enumerate(tracks):
        for t, face in track.items():
            worth_NK[:, k] += (likeness[t][face] - nobody) * (t in counted)
    return worth_NK


def people_faces(
    frames_TCHW: Tensor,
    detector: Detector,
    recognizer: Recognizer | ClipFace,
    people: Sequence[Person],
    *,
    choose: Choose = "tracked",
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
    seen: SeenFaces | None = None,
) -> tuple[PersonFaces, ...]:
    """The faces of given people in every frame of a video, differentiable in the pixels; of one person as
    `person_faces` gives them.

    Args:
        frames_TCHW: in [0, 1].
        people: each with a pool that holds a face, or a reference.
        choose: of a lone person, see `track_person`.
        jitter, generator: see `crop_faces`.
        seen: the video's faces, if the caller has looked for them; saves detection.
    """
    how = {"jitter": jitter, "generator": generator}
    if not people:
        return ()
    if len(people) == 1:
        asked = {"pool": people[0].pool, "reference_D": people[0].reference_D, "choose": choose}
        if seen is not None:
            known_D = None if people[0].reference_D is None else people[0].reference_D.detach().cpu().float()
            follow = {"choose": choose, "reference_D": known_D}
            asked["track"] = track_person(seen.detections, seen.embeddings, **follow)
        return (person_faces(frames_TCHW, detector, recognizer, **asked, **how),)
    seen = seen or see_faces(frames_TCHW, detector, recognizer)
    middle_ND = torch.stack([_known(person) for person in people])
    likeness = [(faces_FD @ middle_ND.T).numpy() for faces_FD in seen.embeddings]
    tracks = [
        track_of({t: seen.detections[t][face] for t, face in followed.items()}, len(frames_TCHW))
        for followed in known_people(seen, likeness)
    ]
    embeddings = embed_tracks(frames_TCHW, tracks, recognizer, **how)
    return tuple(
        PersonFaces(embeddings_TD, track.seen_T.to(frames_TCHW.device), person.pool, person.reference_D)
        for person, track, embeddings_TD in zip(people, tracks, embeddings, strict=True)
    )


def _known(person: Person) -> Tensor:
    """The middle of the person's faces, (D,), unit length, on the CPU."""
    if person.pool is not None and len(person.pool.embeddings_PD):
        faces_PD = person.pool.embeddings_PD
    elif person.reference_D is not None:
        faces_PD = person.reference_D[None]
    else:
        raise ValueError("Of several people each needs a face to be known by: give every one's pool.")
    return normalize(faces_PD.detach().cpu().float().mean(dim=0), dim=0)


def _middle(seen: SeenFaces, person: Mapping[int, int]) -> Tensor:
    return normalize(torch.stack([seen.embeddings[t][face] for t, face in person.items()]).mean(dim=0), dim=0)


def _shown(seen: SeenFaces, person: Mapping[int, int]) -> float:
    """The sum of the faces' shorter sides, in pixels."""
    boxes_N4 = torch.stack([seen.detections[t][face].box_4 for t, face in person.items()])
    return (boxes_N4[:, 2:] - boxes_N4[:, :2]).amin(dim=1).sum().item()
