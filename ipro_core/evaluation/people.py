"""Several people in one video, each with a pool: who is kept, missing, doubled, blended, or swapped for whom.

`faces.sight` says whose face is whose; here it is told as figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..faces.people import STRANGER
from ..faces.sight import MAJORITY, look, middles
from ..faces.tracks import SAME_PERSON
from ..types import SeenFaces
from .facesim import FaceSim, followed_sim, jsonable

BLENDED = 0.05
"""Two people's cosines closer than this, both above STRANGER: the face is neither."""


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
    """See `Sight.identity_f1`."""
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
    _refuse_empty(pools)
    _refuse_one_person_twice(list(pools), middles(list(pools.values())), same)
    sight = look(seen, list(pools.values()), given=given, same=same)
    people = []
    for n, (name, track) in enumerate(zip(pools, sight.own, strict=True)):
        apart_M = sight.apart(track, n)
        along_MN = sight.along(track)
        neither_M = (
            (along_MN[:, n] >= STRANGER) & (along_MN[:, n] - apart_M >= STRANGER) & (abs(apart_M) < BLENDED)
        )
        sims = [
            followed_sim(seen, faces, pools[name].float().mean(dim=0), recognizer, given=given)
            for faces in (track, sight.first_tracks[n])
        ]
        people.append(
            PersonKept(
                name,
                sims[0],
                anchored=sims[1].all,
                margin=float(apart_M.mean()) if len(apart_M) and len(pools) > 1 else float("nan"),
                cloned=sight.cloned(n),
                blended=float(neither_M.mean()) if len(neither_M) else 0.0,
                faces=track,
            )
        )
    changes, swapped = sight.changes()
    names = list(pools)
    swaps = tuple(
        sorted(
            (Swap(frame, names[before], names[after]) for frame, before, after in changes),
            key=lambda swap: (swap.frame, swap.before),
        )
    )
    extra = sum(len(track) > MAJORITY and track not in sight.own for track in sight.tracks)
    return PeopleKept(tuple(people), swaps, swapped, sight.identity_f1(), extra)


def _refuse_empty(pools: Mapping[str, Tensor]) -> None:
    if not pools:
        raise ValueError("There is nobody to look for: give the people's pools.")
    for name, pool_PD in pools.items():
        if not len(pool_PD):
            raise ValueError(f"The pool of {name} holds no face: build it from a clip that shows one.")


def _refuse_one_person_twice(names: list[str], middle_ND: Tensor, same: float) -> None:
    alike_NN = (middle_ND @ middle_ND.T).fill_diagonal_(-1)
    if alike_NN.max() >= same:
        a, b = divmod(int(alike_NN.argmax()), len(names))
        raise ValueError(
            f"The pools of {names[a]} and {names[b]} show one person (cosine {alike_NN[a, b]:.2f}): "
            "merge them, or give other people's."
        )
