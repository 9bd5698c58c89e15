"""The IPRO objective: sample from noise, score the faces, stay near the frozen model (Eq. 3 to 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..sampling.anchor import anchor_weight
from ..sampling.gradient import reward_gradient
from ..sampling.rollout import sample
from ..types import AnchorWeighting, KLThrough, RewardScore, Rollout, knob
from .base import Method, mean, microbatches, some_frames, stack_conditions
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..models.plan_shape import Passes
    from .loop import Draw


@dataclass(frozen=True)
class IproSettings(SamplingSettings):
    """Sample from noise, score the faces, stay near the frozen model (Eq. 3 to 7). The values here are
    the paper's, or the authors' where it is silent; the workflows that come with the pack hold those for a
    14B and a 5B model on one card."""

    title = "IPRO"
    plain = ("grad_steps", "reward_weight", "kl_weight")

    grad_steps: int = knob(4, "K: steps, counted from the end, that carry gradients (Eq. 4).", min=1)
    reward_weight: float = knob(0.1, "Weight of the face reward.", min=0)
    kl_weight: float = knob(1.0, "Weight of the KL anchor to the frozen model (Eq. 7).", min=0)
    kl_weighting: AnchorWeighting = knob(
        "sigma", "w'_t of Eq. 7: 'sigma' is 1 / (2 sigma²), the authors' code; 'uniform' is 1."
    )
    kl_through: KLThrough = knob(
        "detached", "The anchor's gradient through x_t: 'detached' none, 'exact', 'biased' the authors' code."
    )
    reference_steps: int = knob(
        0,
        "Of the K steps, how many are compared with the frozen model, drawn anew each time; 0: all. Saves "
        "passes, right in expectation.",
        min=0,
    )
    reference_chance: float = knob(
        1.0,
        "How often a video is compared with the frozen model at all; where it is, the anchor counts for the "
        "others too. Below 1 saves passes, right in expectation.",
        min=0.01,
        max=1,
    )
    gradient_frames: int = knob(
        0,
        "Frames, drawn anew each time, through which the reward's gradient flows; 0: all. Saves decoding, "
        "right in expectation.",
        min=0,
    )
    random_grad_steps: bool = knob(False, "Draw K anew each time, between 1 and grad_steps; fewer passes.")
    low_variance: int = knob(
        0,
        "DRaFT-LV: gradients of the last step alone, averaged over this many renoised ends of one sampled "
        "video; 0: off.",
        min=0,
    )
    kept_passes: int = knob(
        1,
        "Of the K steps, from the end, how many passes keep what their gradient needs instead of being run "
        "again: each saves a pass. The last one's is there anyhow; each more costs its memory.",
        min=0,
    )

    def passes(self) -> Passes:
        from ..models.plan_shape import Passes

        steps = self.steps - self.first_tuned_step
        grad_steps = min(self.grad_steps, steps)
        compared = min(self.reference_steps or grad_steps, grad_steps) * self.reference_chance
        return Passes.of(steps, grad_steps, compared, self.kl_through == "detached", self.kept_passes)


class IproObjective(Method[IproSettings]):
    """−reward_weight · R_face + kl_weight · KL, its gradient taken on the model's own samples."""

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `loop.Objective`. The metrics, as means over the batch, are `score_metrics` and

        kl: Eq. 7, mean over steps. drift: ||v_θ − v_ref||², mean over elements and steps. loss: what is
        minimised.
        """
        for draws in microbatches(batch, self.settings.microbatch):
            share = len(draws) / len(batch)
            yield {name: share * value for name, value in self._gradient(draws, share).items()}

    def _gradient(self, draws: Sequence[Draw], share: float) -> dict[str, float]:
        condition = stack_conditions([draw.sample.condition for draw in draws])
        first, generator = self.settings.first_tuned_step, draws[0].generator
        x = self.start(draws, condition)
        if not self.settings.low_variance:
            rollout, scores = self._truncated(draws, x, condition, self.sigmas[first:], share)
            return self._metrics(draws, rollout, scores)
        # DRaFT-LV (Clark et al. 2024, Section 4.2): many last steps from one sampled video.
        x = sample(self.model, x, condition, self.sigmas[first:])
        tails, sigma = self.settings.low_variance, self.sigmas[-2].item()
        total: dict[str, float] = {}
        for _ in range(tails):
            fresh = torch.randn(x.shape, generator=generator).to(x)
            renoised = torch.lerp(x, fresh, sigma)
            tail = self._truncated(draws, renoised, condition, self.sigmas[-2:], share / tails)
            for name, value in self._metrics(draws, *tail).items():
                total[name] = total.get(name, 0.0) + value / tails
        return total

    def _truncated(
        self, draws: Sequence[Draw], x: Tensor, condition: Any, sigmas: Tensor, share: float
    ) -> tuple[Rollout, list[RewardScore]]:
        """`reward_gradient` with these settings: how many steps carry gradients, and which are anchored."""
        wanted, generator = self.settings, draws[0].generator
        grad_steps, anchored = min(wanted.grad_steps, len(sigmas) - 1), None
        if wanted.random_grad_steps:
            grad_steps = int(torch.randint(1, grad_steps + 1, (), generator=generator))
        chance = wanted.reference_chance
        if chance < 1 and torch.rand((), generator=generator) >= chance:
            anchored = []
        elif 0 < wanted.reference_steps < grad_steps:
            anchored = torch.randperm(grad_steps, generator=generator)[: wanted.reference_steps].tolist()
        return reward_gradient(
            self.model,
            self.codec,
            lambda frames_TCHW, index: self.score(frames_TCHW, draws[index]),
            x,
            condition,
            sigmas,
            grad_steps=grad_steps,
            reward_weight=wanted.reward_weight,
            kl_weight=wanted.kl_weight / chance,
            kl_weighting=wanted.kl_weighting,
            kl_through=wanted.kl_through,
            anchored=anchored,
            kept_passes=wanted.kept_passes,
            scale=share,
        )

    def _metrics(
        self, draws: Sequence[Draw], rollout: Rollout, scores: Sequence[RewardScore]
    ) -> dict[str, float]:
        wanted, metrics = self.settings, self.score_metrics(draws, scores)
        weights = [anchor_weight(sigma, wanted.kl_weighting) for sigma in rollout.sigmas_K.tolist()]
        drift_K = [drift / wanted.reference_chance for drift in rollout.drift_K.tolist()]
        kl = mean([weight * drift for weight, drift in zip(weights, drift_K, strict=True)])
        loss = wanted.kl_weight * kl - wanted.reward_weight * metrics["reward"]
        return {**metrics, "kl": kl, "drift": mean(drift_K), "loss": loss}

    def score(self, frames_TCHW: Tensor, draw: Draw) -> RewardScore:
        """See `Method.score`; the gradient flows through `gradient_frames` of the frames."""
        return super().score(some_frames(frames_TCHW, self.settings.gradient_frames, draw.generator), draw)
