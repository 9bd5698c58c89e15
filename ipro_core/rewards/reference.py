"""A single reference face: the reward that invites copy-paste (Section 4.2; "w/o FSM" in Table 6)."""

from dataclasses import dataclass

from torch import Tensor

from ..types import GeneratedVideo, PersonFaces, RewardScore, knob
from .base import MISSING_HELP, Missing, average_people
from .face_pool import pool_similarity


@dataclass(frozen=True)
class ReferenceReward:
    """Mean cosine to the one face of the input image; a pool of one."""

    missing: Missing = knob("count", MISSING_HELP)

    def __call__(self, video: GeneratedVideo) -> RewardScore:
        return average_people(video, self.similarity)

    def similarity(self, person: PersonFaces) -> tuple[Tensor, Tensor]:
        if person.reference_D is None:
            raise ValueError("This reward compares with the face of the input image: none was found there.")
        reference_1D = person.reference_D.to(person.embeddings_TD)[None]
        return pool_similarity(person.embeddings_TD, reference_1D, person.seen_T, missing=self.missing)
