"""Frame by frame against the real clip at the same time, which the FSM replaces (Section 4.2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import GeneratedVideo, PersonFaces, RewardScore, knob
from .base import MISSING_HELP, Missing, average_frames, average_people


@dataclass(frozen=True)
class AlignedReward:
    """Mean cosine between each generated frame and the real frame of the same number.

    Frames in which the real clip shows no face have nothing to be compared with and are left out.
    """

    missing: Missing = knob("count", MISSING_HELP)

    def __call__(self, video: GeneratedVideo) -> RewardScore:
        return average_people(video, self.similarity)

    def similarity(self, person: PersonFaces) -> tuple[Tensor, Tensor]:
        if person.pool is None:
            raise ValueError("This reward compares with the real clip's faces: build its pool and pass it.")
        frames = len(person.embeddings_TD)
        if len(person.pool.seen_T) < frames:
            raise ValueError(
                f"The time-aligned reward needs a real clip at least as long as the video: the video has "
                f"{frames} frames, the pool's clip {len(person.pool.seen_T)}."
            )
        compared = person.pool.frames_P < frames
        at = person.pool.frames_P[compared]
        if not len(at):
            raise ValueError("The real clip shows no face within the video's length: choose another clip.")
        real_PD = person.pool.embeddings_PD[compared].to(person.embeddings_TD)
        s_P = F.cosine_similarity(person.embeddings_TD[at], real_PD, dim=-1)
        value, counted_P = average_frames(s_P, person.seen_T[at], self.missing)
        per_frame_T = torch.full((frames,), float("nan"), dtype=s_P.dtype, device=s_P.device)
        return value, per_frame_T.index_put((at,), counted_P)
