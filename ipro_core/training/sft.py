"""Supervised fine-tuning with an auxiliary face loss, the baseline of Table 4 (5.3): nothing is sampled.

The real clip x_0 is noised to a level of the tuned steps, and the network asked for the way back; the video
that one step from there predicts is to show the clip's person besides:

    x_t = (1 − sigma) x_0 + sigma ε
    L = ||v_θ(x_t) − (ε − x_0)||² + face_weight · (1 − R_face(x_t − sigma v_θ(x_t)))

The square is averaged over elements. The paper gives neither levels nor weight: the levels are those that
sampling meets, each as likely, and the weight is that of its reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..sampling.flow import euler_step
from ..sampling.gradient import pull_reward
from ..types import RewardScore, knob
from .base import Method, by_level, microbatches, stack_conditions
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..models.plan_shape import Passes
    from .loop import Draw


@dataclass(frozen=True)
class SftSettings(SamplingSettings):
    """Supervised fine-tuning on the real clips with an auxiliary face loss, the paper's baseline (Table 4):
    flow matching, and the face of the video that one step predicts. Nothing is sampled."""

    wants = ("faces", "video")
    samples = False
    title = "SFT"
    plain = ("face_weight",)

    face_weight: float = knob(
        0.1,
        "Weight of the face loss, 1 - the reward of the video that one step predicts; 0: flow matching "
        "alone, and nothing is decoded.",
        min=0,
    )

    def passes(self) -> Passes:
        """One pass, which waits while its prediction is decoded."""
        from ..models.plan_shape import Passes

        return Passes(1, 1, 1, kept=1, anchored=False, twice=False, decodes=float(self.face_weight > 0))


class SftObjective(Method[SftSettings]):
    """Flow matching on real clips, and the face of what it predicts."""

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `Objective`. The metrics, as means over the batch:

        loss: L. flow: its first part. reward, score, coverage, faceless: of the predicted videos, see
        `Method.score_metrics`.
        """
        for sigma, draws_at in by_level(batch, self.sigmas[self.settings.first_tuned_step : -1]):
            for draws in microbatches(draws_at, self.settings.microbatch):
                share = len(draws) / len(batch)
                yield {name: share * value for name, value in self._gradient(draws, sigma, share).items()}

    def _gradient(self, draws: Sequence[Draw], sigma: float, share: float) -> dict[str, float]:
        condition = stack_conditions([draw.sample.condition for draw in draws])
        noise = torch.stack([self.noise(draw) for draw in draws])
        x_0 = torch.stack([self.video(draw.sample.video) for draw in draws])
        x_t, weight = torch.lerp(x_0, noise, sigma), self.settings.face_weight
        with torch.enable_grad():
            v = self.model.velocity(x_t, sigma, condition)
            flow = (v - (noise - x_0)).square().mean()
        loss, metrics = flow, {"loss": flow.item(), "flow": flow.item()}
        if weight:
            predicted = euler_step(x_t, v.detach(), sigma, 0.0)

            def score(frames_TCHW: Tensor, index: int) -> RewardScore:
                return self.score(frames_TCHW, draws[index])

            pulled, scores = pull_reward(self.codec, score, predicted)  # d(mean reward)/d predicted
            with torch.enable_grad():
                loss = flow + weight * sigma * (pulled * v).sum()  # its gradient is the face loss's
            metrics |= self.score_metrics(draws, scores)
            metrics["loss"] += weight * (1 - metrics["reward"])
        (share * loss).backward()
        return metrics
