"""PersonalVideo (Li et al., ICCV 2025): one person from a few pictures, by rewards on the model's own videos.

The adapter is on in the last quarter of the steps alone, where the authors see appearance and not motion
formed (Section 3.5); before it the frozen model samples. Departs from the paper in the temperature of the
semantic reward, see `rewards/semantic.py`, and in that the frames of which it speaks are the same in both
videos, not drawn for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..sampling.anchor import anchor_weight
from ..sampling.gradient import reward_gradient
from ..sampling.rollout import sample
from ..types import GeneratedVideo, Person, RewardScore, knob
from .base import Method, mean, microbatches, some_frames, stack_conditions
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..models.plan_shape import Passes
    from .loop import Draw


@dataclass(frozen=True)
class PersonalVideoSettings(SamplingSettings):
    """One person from a few pictures, in videos of any prompt: the faces of the model's own videos against
    the pictures' (ICR), each frame's fit to the prompt as the frozen model had it (SCR), and the adapter on
    in the last quarter of the steps alone. The values here are the paper's where it names them."""

    needs_gradient = True
    title = "PersonalVideo"
    plain = ("identity_weight", "semantic_weight", "semantic_temperature")

    first_tuned_step: int = knob(
        -1, "The step from which the adapter is on; -1: the first of the last quarter (3.5).", min=-1
    )
    identity_weight: float = knob(1.0, "Weight of the likeness to the person's pictures (ICR).", min=0)
    semantic_weight: float = knob(
        1.0, "Weight of the frames' order in fitting the prompt (SCR); 0: no scorer is wanted.", min=0
    )
    semantic_temperature: float = knob(
        1.0,
        "Temperature of the softmax over frames, in parts of the scorer's own, which is 0.01 of CLIP and "
        "HPSv2: 100 is the paper's formula as it is written, with next to no gradient.",
        min=1e-3,
    )
    semantic_frames: int = knob(8, "M: frames of each video that the scorer looks at; 0: all.", min=0)
    gradient_frames: int = knob(
        4, "Frames, drawn anew each time, through which the likeness's gradient flows; 0: all.", min=0
    )
    crop_jitter: float = knob(
        1.5, "Noise on the five points of the pictures' faces, in pixels of the crop.", min=0
    )
    colour_jitter: float = knob(
        0.2, "How far the pictures' brightness, contrast and saturation are changed.", min=0, max=1
    )
    measure_kl: bool = knob(
        False, "Compare the first tuned step with the frozen model, to see how far it goes; costs a pass."
    )
    kept_passes: int = knob(
        1,
        "Of the tuned steps, from the end, how many passes keep what their gradient needs instead of being "
        "run again.",
        min=0,
    )

    @property
    def wants(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("faces", "pictures", "scorer") if self.semantic_weight else ("faces", "pictures")

    def begins(self, switch: int) -> int:
        """Never before the tuned network's own part."""
        own = self.first_tuned_step
        return max(switch, own if own >= 0 else self.steps - max(1, self.steps // 4))

    def passes(self) -> Passes:
        from ..models.plan_shape import Passes

        first = self.begins(0)
        steps = self.steps - first
        # Twice: the frozen video too.
        return Passes.of(2 * steps, steps, int(self.measure_kl), False, self.kept_passes)


class PersonalVideoObjective(Method[PersonalVideoSettings]):
    """−identity_weight · ICR + semantic_weight · D_KL(V_tuned || V_frozen)."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.settings = replace(self.settings, first_tuned_step=self.settings.begins(0))
        if self.settings.semantic_weight and self.scorer is None:
            raise ValueError(NO_SCORER)

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `loop.Objective`. The metrics, as means over the batch, are `score_metrics` of ICR and

        semantic: D_KL of SCR. loss: what is minimised. kl, if measured: Eq. 7 of IPRO at the first step.
        """
        for draws in microbatches(batch, self.settings.microbatch):
            share = len(draws) / len(batch)
            yield {name: share * value for name, value in self._gradient(draws, share).items()}

    def _gradient(self, draws: Sequence[Draw], share: float) -> dict[str, float]:
        wanted, sigmas = self.settings, self.sigmas[self.settings.first_tuned_step :]
        condition = stack_conditions([draw.sample.condition for draw in draws])
        x, frozen = self.start(draws, condition), None
        if wanted.semantic_weight:
            frozen = sample(self.model, x, condition, sigmas, frozen=True)
        likeness, order = dict[int, RewardScore](), dict[int, float]()

        def both(frames_TCHW: Tensor, index: int) -> RewardScore:
            icr = self.score(frames_TCHW, draws[index])
            likeness[index] = icr
            value = wanted.identity_weight * icr.value
            if frozen is not None:
                scr = self.semantic(frames_TCHW, frozen[index : index + 1], draws[index])
                order[index] = -scr.value.item()
                value = value + wanted.semantic_weight * scr.value.to(value)
            return replace(icr, value=value)

        rollout, _ = reward_gradient(
            self.model,
            self.codec,
            both,
            x,
            condition,
            sigmas,
            grad_steps=len(sigmas) - 1,
            reward_weight=1.0,
            kl_weight=0.0,
            anchored=[0] if wanted.measure_kl else [],
            kept_passes=wanted.kept_passes,
            scale=share,
        )
        metrics = self.score_metrics(draws, [likeness[index] for index in range(len(draws))])
        semantic = mean(list(order.values()))
        loss = wanted.semantic_weight * semantic - wanted.identity_weight * metrics["reward"]
        if wanted.measure_kl:
            metrics["kl"] = anchor_weight(sigmas[0].item()) * rollout.drift_K.item()
        return {**metrics, "semantic": semantic, "loss": loss}

    def score(self, frames_TCHW: Tensor, draw: Draw) -> RewardScore:
        """ICR: the likeness of random frames to the pictures as one look finds them."""
        from ..faces.references import embed_references

        wanted, given = self.settings, draw.sample
        if given.pictures is not None:
            looks = {"crop_jitter": wanted.crop_jitter, "colour_jitter": wanted.colour_jitter}
            faces_PD = embed_references(given.pictures, self.recognizer, draw.generator, **looks)
            person = Person(replace(given.people[0].pool, embeddings_PD=faces_PD), faces_PD[0])
            draw = replace(draw, sample=replace(given, people=(person,)))
        frames_TCHW = some_frames(frames_TCHW, wanted.gradient_frames, draw.generator)
        return super().score(frames_TCHW, draw)

    def semantic(self, frames_TCHW: Tensor, frozen_1CTHW: Tensor, draw: Draw) -> RewardScore:
        """SCR: M frames, drawn by chance, against the same of the frozen model's video."""
        from ..rewards.semantic import SemanticConsistency

        assert self.scorer is not None
        count = len(frames_TCHW)
        at_M = torch.arange(count)
        if 0 < self.settings.semantic_frames < count:
            at_M = torch.randperm(count, generator=draw.generator)[: self.settings.semantic_frames].sort()[0]
        with torch.no_grad():
            frozen_TCHW = self.codec.decode(frozen_1CTHW)[0]
        reward = SemanticConsistency(self.scorer, self.settings.semantic_temperature)
        video = GeneratedVideo((), draw.sample.prompt, frames_TCHW[at_M], frozen_TCHW[at_M].to(frames_TCHW))
        return reward(video)


NO_SCORER = (
    "PersonalVideo's semantic reward wants a text-image scorer: give HPSv2 or CLIP with --prompt-scorer, or "
    "--semantic-weight 0."
)
