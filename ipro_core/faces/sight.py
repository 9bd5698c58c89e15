"""Several people through one video: every frame's faces matched to them, and where places change hands.

Every frame's faces are matched to the people, one to one, with room for people who are missing. The faces of
one place follow each other (`places`), whoever stands there; a person belongs to the place that shows them
best over the whole video, so that a swap half-way costs both of them half. Rewards and reports share it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..types import SeenFaces
from .matching import match
from .people import worth_of_tracks
from .places import follow_places
from .tracks import SAME_PERSON

MAJORITY = 5
"""Frames that decide together who stands at a place: one frame's mistake is no swap."""


class Change(NamedTuple):
    """At one place one person becomes another."""

    frame: int
    """The first that shows the other."""
    before: int
    """Who, by number."""
    after: int


@dataclass(frozen=True, eq=False)
class Sight:
    """A video's faces as N people see them."""

    seen: SeenFaces
    likeness: list[np.ndarray]
    """Of every frame (F, N): cosine of each face to the middle of each person's faces."""
    matched: list[list[int | None]]
    """Of every frame: the face of each person."""
    tracks: list[dict[int, int]]
    """Frame → face, for every place."""
    own: list[dict[int, int]]
    """The track of each person; empty for who is missing."""
    counted: range
    """The frames that count."""
    same: float
    """The cosine from which a face is that person."""

    @property
    def people(self) -> int:
        return len(self.own)

    def along(self, track: Mapping[int, int]) -> np.ndarray:
        """Likeness of a track's counted faces, (M, N)."""
        rows = [self.likeness[t][face] for t, face in track.items() if t in self.counted]
        return np.array(rows).reshape(len(rows), self.people)

    def apart(self, track: Mapping[int, int], n: int) -> np.ndarray:
        """How much more like person n than like the next each face of the track is, (M,)."""
        along_MN = self.along(track)
        if self.people < 2:
            return np.ones(len(along_MN))
        return along_MN[:, n] - np.delete(along_MN, n, axis=1).max(axis=1)

    def kept(self) -> np.ndarray:
        """How like a person their matched face is, (T, N) over the counted frames; 0, what a stranger gets,
        for who is missing there."""
        rows = [
            [0.0 if face is None else self.likeness[t][face, n] for n, face in enumerate(self.matched[t])]
            for t in self.counted
        ]
        return np.array(rows).reshape(len(rows), self.people)

    @cached_property
    def first_tracks(self) -> list[dict[int, int]]:
        """The track at which each person is first recognised; empty for who never is."""
        return [self._first_track(n) for n in range(self.people)]

    def _first_track(self, n: int) -> dict[int, int]:
        for t, faces in enumerate(self.matched):
            for track in self.tracks:
                if faces[n] is not None and track.get(t) == faces[n]:
                    return track
        return {}

    def double(self, t: int, n: int) -> float:
        """How like the person that face of the frame is which is nobody's, and like nobody more; 0 where
        there is none."""
        spare = [face for face in range(len(self.likeness[t])) if face not in self.matched[t]]
        mine = [self.likeness[t][face, n] for face in spare if self.likeness[t][face].argmax() == n]
        return max([0.0, *mine])

    def cloned(self, n: int) -> float:
        """Share of the frames in which a second face is this person too."""
        return sum(self.double(t, n) >= self.same for t in self.counted) / max(1, len(self.counted))

    def changes(self) -> tuple[list[Change], float]:
        """Where a place's person changes for another, and the share of faces after such a change."""
        found, known, elsewhere = [], 0, 0
        for track in self.tracks:
            times = [t for t, face in track.items() if face in self.matched[t]]
            who = _majority([self.matched[t].index(track[t]) for t in times])
            found += [
                Change(t, before, after)
                for t, before, after in zip(times[1:], who, who[1:], strict=False)
                if before != after
            ]
            known += len(who)
            elsewhere += sum(n != who[0] for n in who)
        return found, elsewhere / max(1, known)

    def identity_f1(self) -> float:
        """IDF1 of tracking: 2 · right / (faces due + faces shown). Due is everybody in every frame; shown are
        the faces of the people's tracks and whoever is recognised elsewhere; right is a person in their own
        track. NaN where no frame counts."""
        right = 0
        shown = {(t, face) for track in self.own for t, face in track.items() if t in self.counted}
        for t in self.counted:
            right += sum(
                face is not None and track.get(t) == face
                for track, face in zip(self.own, self.matched[t], strict=True)
            )
            shown |= {(t, face) for face, one_N in enumerate(self.likeness[t]) if one_N.max() >= self.same}
        due = len(self.own) * len(self.counted)
        return 2 * right / (due + len(shown)) if due else float("nan")


def look(seen: SeenFaces, faces: Sequence[Tensor], *, given: int = 0, same: float = SAME_PERSON) -> Sight:
    """Hold the faces of a video against several people.

    Args:
        faces: of each person what they are known by, (P, D), unit length.
        given: frames at the beginning that are the input image and do not count.
        same: the cosine to the middle of a person's faces from which a face is that person.
    """
    middle_ND = middles(faces)
    likeness = [(faces_FD @ middle_ND.T).numpy() for faces_FD in seen.embeddings]
    matched = [match(likeness_FN.T, missing=same) for likeness_FN in likeness]
    tracks, counted = follow_places(seen, same=same), range(given, len(likeness))
    worth_NK = worth_of_tracks(likeness, tracks, counted)
    own = [{} if k is None else tracks[k] for k in match(worth_NK, missing=0.0)]
    return Sight(seen, likeness, matched, tracks, own, counted, same)


def middles(faces: Sequence[Tensor]) -> Tensor:
    """The middle of each person's faces, (N, D), unit length."""
    return normalize(torch.stack([faces_PD.cpu().float().mean(dim=0) for faces_PD in faces]), dim=1)


def _majority(labels: list[int]) -> list[int]:
    """Each label as most of the MAJORITY around it have it, itself in a tie."""
    half, smoothed = MAJORITY // 2, []
    for at, label in enumerate(labels):
        around = Counter(labels[max(0, at - half) : at + half + 1])
        smoothed.append(max(around, key=lambda n: (around[n], n == label)))
    return smoothed
