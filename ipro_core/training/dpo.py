"""Diffusion-DPO for flow matching: of two videos of a clip one is preferred (Table 3; Wallace et al. 2024).

What the adapter does to a video's flow-matching error stands for its likelihood (Eq. 14 there; for flows, Liu
et al. 2025):

    x_t = (1 − sigma) x + sigma ε,    e(x) = ||v_θ(x_t) − (ε − x)||² − ||v_ref(x_t) − (ε − x)||²
    L = −log s(margin),    margin = −β/2 (e(winner) − e(loser)),    s(z) = 1 / (1 + exp(−z))

Conventions: winner and loser share ε and sigma, so that what is chance in their errors cancels; squares are
averaged over elements, as in the anchor, so that β does not depend on the video's size (for sums it is this
one divided by the number of elements); β is one for all levels, and the levels are those that sampling meets,
each as likely.

One pass' graph is alive at a time: dL/de needs both errors, so the winner's pass is run first without a graph
and then again. Of each level 3 passes of v_θ and 2 of v_ref, and 2 backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..sampling.anchor import both_velocities
from ..sampling.rollout import sample
from ..types import RewardScore, knob
from .base import Method, by_level, mean, microbatches, stack_conditions
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..models.plan_shape import Passes
    from .loop import Draw

SampledBy = Literal["current", "frozen"]


@dataclass(frozen=True)
class DpoSettings(SamplingSettings):
    """Direct preference optimisation for flow matching (Table 3): of each clip's sampled videos the best by
    the reward is preferred to the worst; or pairs that people have voted on in a blind study."""

    title = "DPO"
    plain = ("beta", "candidates")

    beta: float = knob(
        2000.0,
        "β: how dear it is to leave the frozen model. For errors averaged over elements; Diffusion-DPO has "
        "2000 to 5000.",
        min=0.001,
    )
    candidates: int = knob(
        4, "Videos sampled of each clip; the best and the worst by the reward are the pair.", min=2
    )
    sampled_by: SampledBy = knob(
        "current",
        "Who samples them: 'current' the model as it is tuned, 'frozen' the one it began as, as if the pairs "
        "had been made beforehand.",
    )
    levels: int = knob(4, "Noise levels, drawn anew, at which each pair is learnt.", min=1)

    def passes(self) -> Passes:
        """The candidates, and what is learnt of two of them."""
        from ..models.plan_shape import Passes

        sampled = self.candidates * (self.steps - self.first_tuned_step)
        return Passes(
            sampled + 5 * self.levels, 2 * self.levels, 2 * self.levels,
            kept=0, anchored=False, twice=False, decodes=self.candidates,
        )  # fmt: skip


class Pair(NamedTuple):
    """Two videos of one draw's clip, latents (C, T, H, W)."""

    winner: Tensor
    loser: Tensor


class DpoObjective(Method[DpoSettings]):
    """−log s(margin) of pairs."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        if self.settings.noise_seed >= 0:
            raise ValueError(
                "DPO compares videos of several noises, and noise_seed gives one to all: leave it at -1."
            )

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `Objective`. The metrics, as means over the batch:

        loss: L, log 2 where the adapter does nothing. accuracy: the share of pairs whose margin is above 0,
        and half of those with 0. margin. drift: ||v_θ − v_ref||² on both videos, mean over elements; kl: the
        same by Eq. 7's weight 1 / (2 sigma²). reward, score, coverage, faceless: of all candidates. gap: the
        best one's reward less the worst one's; where that is 0 there is no winner, the margin counts as 0 and
        nothing is learnt.
        """
        levels = self.sigmas[self.settings.first_tuned_step : -1]
        for draws in microbatches(batch, self.settings.microbatch):
            pairs, metrics = self._pairs(draws)
            share = len(draws) / len(batch)
            undecided = {"loss": math.log(2), "accuracy": 0.5}
            lost = (len(draws) - len(pairs)) / len(batch)
            yield {name: share * value for name, value in metrics.items()}
            yield {name: lost * value for name, value in undecided.items()}
            for _ in range(self.settings.levels):
                for sigma, at in by_level([draw for draw in draws if draw in pairs], levels):
                    share = len(at) / len(batch) / self.settings.levels
                    learnt = self._gradient(at, [pairs[draw] for draw in at], sigma, share)
                    yield {name: share * value for name, value in learnt.items()}

    def _gradient(
        self, draws: Sequence[Draw], pairs: Sequence[Pair], sigma: float, share: float
    ) -> dict[str, float]:
        """Of pairs at one level, all at once."""
        condition = stack_conditions([draw.sample.condition for draw in draws])
        winners, losers = (torch.stack(videos) for videos in zip(*pairs, strict=True))
        noise = torch.stack([self.noise(draw) for draw in draws])

        def error(v: Tensor, videos: Tensor) -> Tensor:
            return (v - (noise - videos)).square().flatten(1).mean(1)

        def excess(videos: Tensor) -> tuple[Tensor, Tensor]:
            """e(x) of each video; what v_θ and v_ref are apart."""
            x_t = torch.lerp(videos, noise, sigma)
            v, v_ref = both_velocities(self.model, x_t, sigma, condition)
            return error(v, videos) - error(v_ref, videos), (v.detach() - v_ref).square().mean()

        beta = self.settings.beta
        with torch.no_grad():
            won_B, drift_won = excess(winners)
        with torch.enable_grad():
            lost_B, drift_lost = excess(losers)
            margin_B = -beta / 2 * (won_B - lost_B.detach())
            push_B = beta / 2 * torch.sigmoid(-margin_B)  # dL/de of the winner; the loser's is its negative
            (-share * (push_B * lost_B).mean()).backward()
            v = self.model.velocity(torch.lerp(winners, noise, sigma), sigma, condition)
            (share * (push_B * error(v, winners)).mean()).backward()
        drift = (drift_won + drift_lost).item() / 2
        return {
            "loss": -logsigmoid(margin_B).mean().item(),
            "accuracy": ((margin_B > 0).float() + (margin_B == 0).float() / 2).mean().item(),
            "margin": margin_B.mean().item(),
            "drift": drift,
            "kl": drift / (2 * sigma**2),
        }

    @torch.no_grad()
    def _pairs(self, draws: Sequence[Draw]) -> tuple[dict[Draw, Pair], dict[str, float]]:
        """The draws that have a pair, and what the reward said of the candidates: of pairs that people have
        chosen nothing is sampled."""
        if all(draw.sample.rejected is not None for draw in draws):
            chosen = [(draw.sample.video, draw.sample.rejected) for draw in draws]
            pairs = [Pair(*map(self.video, videos)) for videos in chosen]
            return dict(zip(draws, pairs, strict=True)), {}
        condition = stack_conditions([draw.sample.condition for draw in draws])
        first, frozen = self.settings.first_tuned_step, self.settings.sampled_by == "frozen"
        videos: list[Tensor] = []
        scores: list[list[RewardScore]] = []
        for x in self._starts(draws, condition):
            videos.append(sample(self.model, x, condition, self.sigmas[first:], frozen=frozen))
            scores.append([self._judged(video, draw) for video, draw in zip(videos[-1], draws, strict=True)])
        pairs, gaps = {}, []
        for b, draw in enumerate(draws):
            ranked = sorted(range(len(videos)), key=lambda n: scores[n][b].value.item())
            gaps.append((scores[ranked[-1]][b].value - scores[ranked[0]][b].value).item())
            if gaps[-1] > 0:
                pairs[draw] = Pair(videos[ranked[-1]][b], videos[ranked[0]][b])
        every = [score for of_one in scores for score in of_one]
        metrics = self.score_metrics([*draws] * len(scores), every)
        return pairs, {**metrics, "gap": mean(gaps)}

    def _starts(self, draws: Sequence[Draw], condition: Any) -> Iterator[Tensor]:
        """Where the candidates begin: each in noise of its own, or in another one of the latents that a
        frozen expert made."""
        made, count = [draw.sample.starts for draw in draws], self.settings.candidates
        if not all(made):
            yield from (self.start(draws, condition) for _ in range(count))
            return
        if len(made[0]) < count:
            raise ValueError(
                f"DPO compares {count} videos of a clip, and the high-noise expert made {len(made[0])} "
                f"beginnings: set boundary_seeds to {count}, or candidates to {len(made[0])}."
            )
        orders = [torch.randperm(len(made[0]), generator=draw.generator).tolist() for draw in draws]
        for n in range(count):
            yield torch.stack([self.video(one[order[n]]) for one, order in zip(made, orders, strict=True)])

    def _judged(self, video_CTHW: Tensor, draw: Draw) -> RewardScore:
        return self.score(self.codec.decode(video_CTHW[None])[0], draw)
