"""The facial scoring mechanism (FSM): a face against all faces of the real clip (Section 4.2, Eq. 5, 6)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..types import GeneratedVideo, PersonFaces, RewardScore, knob
from .base import MISSING_HELP, Missing, average_frames, average_people


def pool_similarity(
    embeddings_TD: Tensor, pool_PD: Tensor, seen_T: Tensor | None = None, *, missing: Missing = "count"
) -> tuple[Tensor, Tensor]:
    """R_face of one person (Eq. 6), and s_i of each frame (Eq. 5).

    Args:
        embeddings_TD: faces of the generated frames, φ(x̂_i); of any length, compared by angle.
        pool_PD: faces of the real clip, φ(x_j).
        seen_T: bool, whether frame i shows the face; None if all do.
        missing: what a frame without a face counts for, see `average_frames`.

    Returns:
        R_face (scalar) and s_T, what each frame counted for. Both differentiable in the embeddings.

    Raises:
        ValueError: the pool is empty.
    """
    if not len(pool_PD):
        raise ValueError("The face pool has no face to compare with: choose a clip that shows a face.")
    # The mean of cosines is the dot product with the mean direction: Eq. 5 without the T × P table.
    mean_direction_D = F.normalize(pool_PD, dim=-1).mean(dim=0)
    s_T = F.normalize(embeddings_TD, dim=-1) @ mean_direction_D  # Eq. 5
    return average_frames(s_T, seen_T, missing)  # Eq. 6


@dataclass(frozen=True)
class FacePoolReward:
    """The paper's reward: mean cosine to all faces of the real clip, whatever their pose and expression."""

    missing: Missing = knob("count", MISSING_HELP)

    def __call__(self, video: GeneratedVideo) -> RewardScore:
        return average_people(video, self.similarity)

    def similarity(self, person: PersonFaces) -> tuple[Tensor, Tensor]:
        if person.pool is None:
            raise ValueError("This reward compares with a face pool: build one with `ipro pool` and pass it.")
        pool_PD = person.pool.embeddings_PD.to(person.embeddings_TD)
        return pool_similarity(person.embeddings_TD, pool_PD, person.seen_T, missing=self.missing)
