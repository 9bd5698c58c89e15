"""The semantic consistency reward (SCR) of PersonalVideo: frames keep the order in which they fit the prompt.

Departs from the paper in one point: it takes the softmax of HPSv2's values as they are, which are cosines.
Those of one video's frames differ by little, so that all distributions are nearly uniform and the divergence
and its gradient nearly 0; here they are multiplied by the scale of the softmax that the scorer was trained
with (CLIP's is 100), and divided by a temperature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..scorer import Scorer
from ..types import GeneratedVideo, RewardScore


def semantic_divergence(values_M: Tensor, frozen_M: Tensor, temperature: float = 1.0) -> Tensor:
    """The terms of D_KL(V_tuned || V_frozen), (M,): their sum is the divergence.

    V is the softmax over frames of a text-image scorer's values over `temperature`. Differentiable in both.
    """
    log_tuned_M, log_frozen_M = ((values / temperature).log_softmax(dim=0) for values in (values_M, frozen_M))
    return log_tuned_M.exp() * (log_tuned_M - log_frozen_M)


@dataclass(frozen=True, eq=False)
class SemanticConsistency:
    """Minus the divergence. None of the catalogue's, because a scorer is no knob."""

    scorer: Scorer
    temperature: float = 1.0
    """In parts of the scorer's own, 1 / scale."""

    def __call__(self, video: GeneratedVideo) -> RewardScore:
        assert video.frames_TCHW is not None and video.frozen_frames_TCHW is not None
        values_T = self.scorer.values(video.frames_TCHW, video.prompt)
        with torch.no_grad():
            frozen_T = self.scorer.values(video.frozen_frames_TCHW, video.prompt)
        terms_T = semantic_divergence(values_T, frozen_T, self.temperature / self.scorer.scale)
        return RewardScore(-terms_T.sum(), -terms_T, torch.ones(len(terms_T), dtype=torch.bool))
