"""The IPRO objective: sample from noise, score the faces, stay near the frozen model (Eq. 3 to 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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


Estimator = Literal["draft-k", "alignprop", "draft-lv", "refl"]
"""Clark et al. 2024 (DRaFT-K, DRaFT-LV), Prabhudesai et al. 2023 (AlignProp), Xu et al. 2023 (ReFL)."""
StepPlacement = Literal["low-noise", "high-noise"]


class Chain(NamedTuple):
    """Which of the tuned steps a video takes, and through which the gradient flows."""

    steps: int
    """The first so many, the last of which goes all the way to sigma 0."""
    first: int
    grad_steps: int


@dataclass(frozen=True)
class IproSettings(SamplingSettings):
    """Sample from noise, score the faces, stay near the frozen model (Eq. 3 to 7). The values here are
    the paper's, or the authors' where it is silent; the workflows that come with the pack hold those for a
    14B and a 5B model on one card."""

    title = "IPRO"
    needs_gradient = True
    plain = ("grad_steps", "reward_weight", "kl_weight")

    estimator: Estimator = knob(
        "draft-k",
        "How the reward's gradient is taken. 'draft-k': through the K steps, the paper's (Eq. 4). "
        "'alignprop': K is drawn anew each time, between 1 and grad_steps. 'draft-lv': through the last step "
        "alone, averaged over several renoised ends of one video. 'refl': through one of the K steps, drawn "
        "anew each time; the reward sees the video that this one step predicts.",
    )
    grad_steps: int = knob(4, "K: the steps that carry gradients (Eq. 4), or those one is drawn from.", min=1)
    placement: StepPlacement = knob(
        "low-noise",
        "Where the K lie: 'low-noise' the last steps, the paper's; 'high-noise' the first tuned ones (Table "
        "5), which costs a pass more, and its gradient, for each step after them.",
    )
    renoised_ends: int = knob(2, "Of draft-lv: ends of one sampled video, renoised to the last step.", min=1)
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
    measure_kl: bool = knob(
        False,
        "Compare with the frozen model although kl_weight is 0, to see how far it goes without an anchor "
        "(Figure 3); else that costs no pass.",
    )
    gradient_frames: int = knob(
        0,
        "Frames, drawn anew each time, through which the reward's gradient flows; 0: all. Saves decoding, "
        "right in expectation.",
        min=0,
    )
    kept_passes: int = knob(
        1,
        "Of the K steps, from the end, how many passes keep what their gradient needs instead of being run "
        "again: each saves a pass. The last one's is there anyhow; each more costs its memory.",
        min=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "draft-lv" and self.placement == "high-noise":
            raise ValueError(
                "draft-lv takes its gradient through the last step, at the low-noise end: leave "
                "placement there, or choose another estimator."
            )

    def chains(self) -> list[Chain]:
        """Those of which each video draws one."""
        steps, early = self.steps - self.first_tuned_step, self.placement == "high-noise"
        most = min(self.grad_steps, steps)
        if self.estimator == "draft-lv":
            return [Chain(1, 0, 1)]
        if self.estimator == "refl":
            first = 0 if early else steps - most
            return [Chain(step + 1, step, 1) for step in range(first, first + most)]
        counts = range(1, most + 1) if self.estimator == "alignprop" else [most]
        return [Chain(steps, 0 if early else steps - count, count) for count in counts]

    @property
    def compares(self) -> bool:
        """Whether the frozen model is asked at all."""
        return self.kl_weight > 0 or self.measure_kl

    def compared(self, chain: Chain) -> int:
        """How many of the chain's gradient steps are compared with the frozen model, where any is."""
        return min(self.reference_steps or self.grad_steps, chain.grad_steps) if self.compares else 0

    def passes(self) -> Passes:
        from ..models.plan_shape import Passes

        detached = self.kl_through == "detached" and self.kl_weight > 0
        ways = [
            Passes.of(
                chain.steps,
                chain.grad_steps,
                self.compared(chain) * self.reference_chance,
                detached,
                self.kept_passes,
                chain.steps - chain.first - chain.grad_steps,
            )
            for chain in self.chains()
        ]
        if self.estimator == "draft-lv":
            return ways[0].times(self.renoised_ends, after=self.steps - self.first_tuned_step)
        return Passes.mean(ways)


class IproObjective(Method[IproSettings]):
    """−reward_weight · R_face + kl_weight · KL, its gradient taken on the model's own samples."""

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `loop.Objective`. The metrics, as means over the batch, are `score_metrics` and

        kl: Eq. 7, mean over steps. drift: ||v_θ − v_ref||², mean over elements and steps; neither where
        nothing is compared. loss: what is minimised.
        """
        for draws in microbatches(batch, self.settings.microbatch):
            share = len(draws) / len(batch)
            yield {name: share * value for name, value in self._gradient(draws, share).items()}

    def _gradient(self, draws: Sequence[Draw], share: float) -> dict[str, float]:
        condition = stack_conditions([draw.sample.condition for draw in draws])
        chains, generator = self.settings.chains(), draws[0].generator
        x, tuned = self.start(draws, condition), self.sigmas[self.settings.first_tuned_step :]
        if self.settings.estimator != "draft-lv":
            number = int(torch.randint(len(chains), (), generator=generator)) if len(chains) > 1 else 0
            return self._truncated(draws, x, condition, tuned, chains[number], share)
        # Clark et al. 2024, Section 4.2: many last steps from one sampled video.
        x = sample(self.model, x, condition, tuned)
        ends, sigma = self.settings.renoised_ends, tuned[-2].item()
        total: dict[str, float] = {}
        for _ in range(ends):
            renoised = torch.lerp(x, torch.randn(x.shape, generator=generator).to(x), sigma)
            metrics = self._truncated(draws, renoised, condition, tuned[-2:], chains[0], share / ends)
            for name, value in metrics.items():
                total[name] = total.get(name, 0.0) + value / ends
        return total

    def _truncated(
        self, draws: Sequence[Draw], x: Tensor, condition: Any, sigmas: Tensor, chain: Chain, share: float
    ) -> dict[str, float]:
        """The gradient of one chain."""
        wanted, generator, chance = self.settings, draws[0].generator, self.settings.reference_chance
        compared, anchored = wanted.compared(chain), None
        left_out = chance < 1 and torch.rand((), generator=generator) >= chance
        if left_out or not compared:
            anchored = []
        elif compared < chain.grad_steps:
            anchored = torch.randperm(chain.grad_steps, generator=generator)[:compared].tolist()
        rollout, scores = reward_gradient(
            self.model,
            self.codec,
            lambda frames_TCHW, index: self.score(frames_TCHW, draws[index]),
            x,
            condition,
            torch.cat([sigmas[: chain.steps], sigmas[-1:]]),
            grad_steps=chain.grad_steps,
            first_grad_step=chain.first,
            reward_weight=wanted.reward_weight,
            kl_weight=wanted.kl_weight / chance,
            kl_weighting=wanted.kl_weighting,
            kl_through=wanted.kl_through,
            anchored=anchored,
            kept_passes=wanted.kept_passes,
            scale=share,
        )
        return self._metrics(draws, rollout, scores)

    def _metrics(
        self, draws: Sequence[Draw], rollout: Rollout, scores: Sequence[RewardScore]
    ) -> dict[str, float]:
        wanted, metrics = self.settings, self.score_metrics(draws, scores)
        weights = [anchor_weight(sigma, wanted.kl_weighting) for sigma in rollout.sigmas_K.tolist()]
        drift_K = [drift / wanted.reference_chance for drift in rollout.drift_K.tolist()]
        kl = mean([weight * drift for weight, drift in zip(weights, drift_K, strict=True)])
        loss = wanted.kl_weight * kl - wanted.reward_weight * metrics["reward"]
        metrics["loss"] = loss
        return {**metrics, "kl": kl, "drift": mean(drift_K)} if wanted.compares else metrics

    def score(self, frames_TCHW: Tensor, draw: Draw) -> RewardScore:
        """See `Method.score`; the gradient flows through `gradient_frames` of the frames."""
        return super().score(some_frames(frames_TCHW, self.settings.gradient_frames, draw.generator), draw)
