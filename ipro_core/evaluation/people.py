"""Several people in one video, each with a pool: who is kept, missing, doubled, blended, or swapped for whom.

Every frame's faces are matched to the people, one to one, with room for people who are missing. The faces of
one place follow each other (`faces.places`), whoever stands there; a person belongs to the place that shows
them best over the whole video, so that a swap half-way costs both of them half.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..faces.matching import match
from ..faces.people import STRANGER, worth_of_tracks
from ..faces.places import follow_places
from ..faces.tracks import SAME_PERSON, SeenFaces
from .facesim import FaceSim, followed_sim, jsonable

BLENDED = 0.05
"""Two people's cosines closer than this, both above STRANGER: the face is neither."""
MAJORITY = 5
"""Frames that decide together who stands at a place: one frame's mistake is no swap."""


@dataclass(frozen=True)
class Swap:
    """At one place one person becomes another."""

    frame: int
    """The first that shows the other."""
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class PersonKept:
    """One person, along the track that shows them best."""

    name: str
    facesim: FaceSim
    """Mean cosine to the person's pool in every frame (Eq. 5); nowhere seen if the person is missing."""
    anchored: float
    """FaceSim of the place at which the person was first seen: lower than `facesim.all` after a swap."""
    margin: float
    """How much more like this person than like anybody else the track is; NaN for a lone person."""
    cloned: float
    """Share of the frames in which a second face is this person too."""
    blended: float
    """Share of the track's frames in which the face is as like somebody else."""
    faces: dict[int, int]
    """The track: frame → index of the face; empty if the person is missing."""

    @property
    def missing(self) -> bool:
        return not self.faces


@dataclass(frozen=True, eq=False)
class PeopleKept:
    """What became of all of them."""

    people: tuple[PersonKept, ...]
    swaps: tuple[Swap, ...]
    swapped: float
    """Share of the recognised faces that stand where somebody else began."""
    identity_f1: float
    """IDF1 of tracking: 2 · right / (faces due + faces shown). Due is everybody in every frame; shown are the
    faces of the people's tracks and whoever is recognised elsewhere; right is a person in their own track."""
    extra: int
    """Tracks of strangers, longer than a few frames."""

    @property
    def worst(self) -> PersonKept:
        """The person kept worst: the headline, since a mean would hide who was lost."""
        return min(self.people, key=lambda person: person.facesim.all)

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return jsonable(
            {
                "worst": self.worst.facesim.all,
                "worst_person": self.worst.name,
                "identity_f1": self.identity_f1,
                "swaps": [vars(swap) for swap in self.swaps],
                "swapped": self.swapped,
                "missing": [person.name for person in self.people if person.missing],
                "extra": self.extra,
                "people": {
                    person.name: {
                        **person.facesim.figures(),
                        "missing": person.missing,
                        "anchored": person.anchored,
                        "margin": person.margin,
                        "cloned": person.cloned,
                        "blended": person.blended,
                    }
                    for person in self.people
                },
            }
        )


@dataclass(frozen=True, eq=False)
class _Sight:
    """A video's faces as the people see them."""

    seen: SeenFaces
    likeness: list[np.ndarray]
    """Of every frame (F, N): cosine of each face to the middle of each person's pool."""
    matched: list[list[int | None]]
    """Of every frame: the face of each person."""
    tracks: list[dict[int, int]]
    """Frame → face, for every place."""
    counted: range
    people: int

    def along(self, track: Mapping[int, int]) -> np.ndarray:
        """Likeness of a track's counted faces, (M, N)."""
        rows = [self.likeness[t][face] for t, face in track.items() if t in self.counted]
        return np.array(rows).reshape(len(rows), self.people)


def judge_people(
    seen: SeenFaces,
    pools: Mapping[str, Tensor],
    recognizer: str,
    *,
    given: int = 1,
    same: float = SAME_PERSON,
) -> PeopleKept:
    """Hold the faces of a video against several people.

    Args:
        seen: every face of the video.
        pools: name → the person's faces (P, D), unit length.
        recognizer: that made both.
        given: frames at the beginning that are the input image and do not count.
        same: the cosine to the middle of a pool from which a face is that person.

    Raises:
        ValueError: there is no pool, one is empty, or two are of one person.
    """
    mean_ND = torch.stack(_means(pools))
    middle_ND = normalize(mean_ND, dim=1)
    _refuse_one_person_twice(list(pools), middle_ND, same)
    likeness = [(faces_FD @ middle_ND.T).numpy() for faces_FD in seen.embeddings]
    matched = [match(likeness_FN.T, missing=same) for likeness_FN in likeness]
    sight = _Sight(
        seen, likeness, matched, follow_places(seen, same=same), range(given, len(likeness)), len(pools)
    )
    own = _own_tracks(sight)
    people = []
    for n, (name, track) in enumerate(zip(pools, own, strict=True)):
        apart_M = _apart(sight, track, n)
        along_MN = sight.along(track)
        neither_M = (
            (along_MN[:, n] >= STRANGER) & (along_MN[:, n] - apart_M >= STRANGER) & (abs(apart_M) < BLENDED)
        )
        sims = [
            followed_sim(seen, faces, mean_ND[n], recognizer, given=given)
            for faces in (track, _first_track(sight, n))
        ]
        people.append(
            PersonKept(
                name,
                sims[0],
                anchored=sims[1].all,
                margin=float(apart_M.mean()) if len(apart_M) and len(pools) > 1 else float("nan"),
                cloned=_cloned(sight, n, same),
                blended=float(neither_M.mean()) if len(neither_M) else 0.0,
                faces=track,
            )
        )
    swaps, swapped = _swaps(sight, list(pools))
    extra = sum(len(track) > MAJORITY and track not in own for track in sight.tracks)
    return PeopleKept(tuple(people), swaps, swapped, _identity_f1(sight, own, same), extra)


def _means(pools: Mapping[str, Tensor]) -> list[Tensor]:
    if not pools:
        raise ValueError("There is nobody to look for: give the people's pools.")
    for name, pool_PD in pools.items():
        if not len(pool_PD):
            raise ValueError(f"The pool of {name} holds no face: build it from a clip that shows one.")
    return [pool_PD.float().mean(dim=0) for pool_PD in pools.values()]


def _refuse_one_person_twice(names: list[str], middle_ND: Tensor, same: float) -> None:
    alike_NN = (middle_ND @ middle_ND.T).fill_diagonal_(-1)
    if alike_NN.max() >= same:
        a, b = divmod(int(alike_NN.argmax()), len(names))
        raise ValueError(
            f"The pools of {names[a]} and {names[b]} show one person (cosine {alike_NN[a, b]:.2f}): "
            "merge them, or give other people's."
        )


def _own_tracks(sight: _Sight) -> list[dict[int, int]]:
    """The track of each person; empty for who is missing."""
    worth_NK = worth_of_tracks(sight.likeness, sight.tracks, sight.counted)
    return [{} if k is None else sight.tracks[k] for k in match(worth_NK, missing=0.0)]


def _first_track(sight: _Sight, n: int) -> dict[int, int]:
    """The track at which the person is first recognised."""
    for t, faces in enumerate(sight.matched):
        for track in sight.tracks:
            if faces[n] is not None and track.get(t) == faces[n]:
                return track
    return {}


def _apart(sight: _Sight, track: Mapping[int, int], n: int) -> np.ndarray:
    """How much more like person n than like the next each face of the track is, (M,)."""
    along_MN = sight.along(track)
    if sight.people < 2:
        return np.ones(len(along_MN))
    return along_MN[:, n] - np.delete(along_MN, n, axis=1).max(axis=1)


def _cloned(sight: _Sight, n: int, same: float) -> float:
    def doubled(t: int) -> bool:
        spare = [face for face in range(len(sight.likeness[t])) if face not in sight.matched[t]]
        return any(sight.likeness[t][f].argmax() == n and sight.likeness[t][f, n] >= same for f in spare)

    return sum(map(doubled, sight.counted)) / max(1, len(sight.counted))


def _swaps(sight: _Sight, names: list[str]) -> tuple[tuple[Swap, ...], float]:
    """Where a place's person changes for another, and the share of faces after such a change."""
    swaps, known, elsewhere = [], 0, 0
    for track in sight.tracks:
        times = [t for t, face in track.items() if face in sight.matched[t]]
        who = _majority([sight.matched[t].index(track[t]) for t in times])
        swaps += [
            Swap(t, names[before], names[after])
            for t, before, after in zip(times[1:], who, who[1:], strict=False)
            if before != after
        ]
        known += len(who)
        elsewhere += sum(n != who[0] for n in who)
    return tuple(sorted(swaps, key=lambda swap: (swap.frame, swap.before))), elsewhere / max(1, known)


def _majority(labels: list[int]) -> list[int]:
    """Each label as most of the MAJORITY around it have it, itself in a tie."""
    half, smoothed = MAJORITY // 2, []
    for at, label in enumerate(labels):
        around = Counter(labels[max(0, at - half) : at + half + 1])
        smoothed.append(max(around, key=lambda n: (around[n], n == label)))
    return smoothed


def _identity_f1(sight: _Sight, own: list[dict[int, int]], same: float) -> float:
    right, shown = 0, {(t, face) for track in own for t, face in track.items() if t in sight.counted}
    for t in sight.counted:
        right += sum(
            face is not None and track.get(t) == face
            for track, face in zip(own, sight.matched[t], strict=True)
        )
        shown |= {(t, face) for face, one_N in enumerate(sight.likeness[t]) if one_N.max() >= same}
    due = len(own) * len(sight.counted)
    return 2 * right / (due + len(shown)) if due else float("nan")
