"""Several people at once: is everybody kept, in their place, once (what Identity-GRPO, arXiv:2510.14256, asks
its scorer, here by matching faces and hence without a gradient)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..faces.sight import Sight, look
from ..faces.tracks import SAME_PERSON
from ..types import GeneratedVideo, PersonFaces, RewardScore, knob


@dataclass(frozen=True)
class PeopleReward:
    """Every frame's faces matched one to one to the people, with room for who is missing; less what is
    swapped and doubled. It has no gradient: for GRPO and other methods that want none."""

    differentiable: ClassVar[bool] = False
    everybody: ClassVar[bool] = True

    measure: Literal["similarity", "identity-f1"] = knob(
        "similarity",
        "'similarity': mean cosine of each person to the matched face, 0 where missing. 'identity-f1': the "
        "share of faces that are who they should be where they should be, IDF1 of tracking.",
    )
    swap_cost: float = knob(
        0.5, "What the share of faces that stand where somebody else began is multiplied by.", min=0
    )
    clone_cost: float = knob(
        0.5, "What the share of frames that show a person twice is multiplied by.", min=0
    )
    same_person: float = knob(SAME_PERSON, "The cosine from which a face is that person.", min=-1, max=1)

    def __call__(self, video: GeneratedVideo) -> RewardScore:
        sight = sight_of(video, self.same_person)
        kept_TN = torch.from_numpy(sight.kept())
        _, swapped = sight.changes()
        cloned = sum(map(sight.cloned, range(sight.people))) / sight.people
        kept = kept_TN.mean().item() if self.measure == "similarity" else sight.identity_f1()
        value = kept - self.swap_cost * swapped - self.clone_cost * cloned
        found_TN, people = found(sight), ()
        if sight.people > 1:
            people = tuple(
                RewardScore(kept_T.mean(), kept_T, found_T)
                for kept_T, found_T in zip(kept_TN.float().T, found_TN.T, strict=True)
            )
        return RewardScore(torch.tensor(value), kept_TN.mean(dim=1).float(), found_TN.all(dim=1), people)


def sight_of(video: GeneratedVideo, same: float = SAME_PERSON) -> Sight:
    """A generated video's faces, held against its people.

    Raises:
        ValueError: nobody has looked for its faces, or there is nobody to look for.
    """
    if video.seen is None:
        raise ValueError("This reward asks who is who: it wants all faces of the video, not one person's.")
    if not video.people:
        raise ValueError("The video has nobody to score: give the face pool or reference of every person.")
    return look(video.seen, known_faces(video.people), same=same)


def known_faces(people: Sequence[PersonFaces]) -> list[Tensor]:
    """What each person is known by: the pool, or the face of the input image."""
    known = [
        person.pool.embeddings_PD
        if person.pool is not None and len(person.pool.embeddings_PD)
        else person.reference_D
        for person in people
    ]
    faces = [faces if faces is None or faces.ndim == 2 else faces[None] for faces in known]
    if any(faces_PD is None for faces_PD in faces):
        raise ValueError("This reward compares with everybody's faces: give each person a pool with a face.")
    return [faces_PD for faces_PD in faces if faces_PD is not None]


def found(sight: Sight) -> Tensor:
    """bool, (T, N): whether each person was found in each frame."""
    rows = [[face is not None for face in sight.matched[t]] for t in sight.counted]
    return torch.tensor(rows).reshape(len(rows), sight.people)
