"""Who is who in the shots of many files, and who is tuned on and who is judged on: nobody is both."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .measures import ShotMeasures

Split = Literal["tuning", "evaluation"]


def number_people(
    shots: Sequence[ShotMeasures], *, smallest_face: float, same_person: float
) -> list[set[int]]:
    """The numbers of those in each shot, also of those who only pass through.

    Args:
        smallest_face: pixels, below which all faces look alike; such faces are nobody's.
        same_person: cosine from which two faces are one person's.
    """
    faces = [
        (k, person.embedding_D)
        for k, shot in enumerate(shots)
        for person in shot.people
        if person.face_px >= smallest_face
    ]
    numbers = _groups(_links([face for _, face in faces], same_person), len(faces))
    people: list[set[int]] = [set() for _ in shots]
    for (k, _), number in zip(faces, numbers, strict=True):
        people[k].add(number)
    return people


def split(shots: Sequence[ShotMeasures], people: Sequence[set[int]], share: float) -> list[Split]:
    """The side of each shot. Those that share a person go together, and so do those of one file, in which a
    person may be missed.

    Args:
        share: of the shots for evaluation, at most.
    """
    first: dict[int | str, int] = {}
    links = [
        (k, first.setdefault(told, k)) for k, shot in enumerate(shots) for told in (*people[k], shot.sha256)
    ]
    groups = defaultdict[int, list[int]](list)
    for k, group in enumerate(_groups(links, len(shots))):
        groups[group].append(k)

    def lot(group: list[int]) -> bytes:
        """By content, so that neither order nor names of files decide who is judged on."""
        return hashlib.sha256(min(shots[k].sha256 for k in group).encode()).digest()

    sides: list[Split] = ["tuning"] * len(shots)
    left = round(share * len(shots))
    for group in sorted(groups.values(), key=lot):
        if len(group) <= left:
            left -= len(group)
            for k in group:
                sides[k] = "evaluation"
    return sides


def _links(embeddings: Sequence[Tensor], least: float) -> list[tuple[int, int]]:
    """Pairs of faces that are one person's."""
    if not embeddings:
        return []
    faces_FD = normalize(torch.stack(list(embeddings)), dim=1)
    return [(i, j) for i, j in (faces_FD @ faces_FD.T >= least).nonzero().tolist() if i > j]


def _groups(links: Sequence[tuple[int, int]], count: int) -> list[int]:
    """The group of each of `count` things when linked ones are in one; groups are numbered as they appear."""
    leader = list(range(count))

    def find(thing: int) -> int:
        while leader[thing] != thing:
            leader[thing] = leader[leader[thing]]
            thing = leader[thing]
        return thing

    for one, other in links:
        low, high = sorted((find(one), find(other)))
        leader[high] = low
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(thing), len(numbers)) for thing in range(count)]
