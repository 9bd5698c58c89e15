"""GRPO on a flow model: videos of one scene compete, and what was done in the better ones becomes likelier.

Identity-GRPO (arXiv:2510.14256) with Flow-GRPO's objective (arXiv:2505.05470, Eq. 4 and 5) and the few noisy
steps of its fast variant. A group of videos is sampled with noise in a window of steps; the rewards, less
their mean and over their spread, are the advantages A; and each noisy step's probability p rises or falls:

    r = (p_θ(x' | x) / p_old(x' | x)) ^ (1 / elements)
    loss = max(−A r, −A clip(r, 1 − c, 1 + c)) + divergence_weight · KL(p_θ || p_ref) / elements

as a mean over videos and noisy steps.
The root over the elements, as in the authors' code, keeps c independent of the video's size. No
gradient runs through the reward, the decoder or from step to step: one step's graph is alive at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..sampling.rollout import sample
from ..sampling.sde import NoiseForm, noisy_sample, noisy_step
from ..types import knob
from .base import Method, stack_conditions
from .loop import Draw
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..models.plan_shape import Passes

FLAT = 1e-6
"""A group whose rewards spread less has nothing to tell."""


@dataclass(frozen=True)
class GrpoSettings(SamplingSettings):
    """Sample a group of videos of each scene, compare their rewards, and make the better ones likelier
    (Identity-GRPO, Flow-GRPO). It wants no gradient of the reward, so that any reward will do. One video of
    the batch becomes one group. The values here are Flow-GRPO's for Wan 2.1, of the window its fast
    variant's."""

    title = "GRPO"
    plain = ("group_size", "noisy_steps", "noise_level", "inner_updates", "divergence_weight")

    group_size: int = knob(8, "Videos of one scene that are compared with each other.", min=2)
    noisy_steps: int = knob(
        2,
        "Steps with noise, in a row, drawn anew for each group among the tuned ones but the last: these are "
        "trained, the others are the usual ones. 0: all.",
        min=0,
    )
    noise_level: float = knob(0.7, "a of the noise, see noise_form.", min=0.01, max=1)
    noise_form: NoiseForm = knob(
        "flow",
        "'flow' is Flow-GRPO's SDE, a sqrt(sigma / (1 - sigma)); 'cps' renews a share of the noise and "
        "leaves no more of it than a level has, for few steps.",
    )
    one_start: bool = knob(
        True, "The videos of a group begin with one noise, so that only the noisy steps tell them apart."
    )
    inner_updates: int = knob(
        1, "Updates taken with the same videos; beyond the first, ratios leave 1 and are clipped.", min=1
    )
    ratio_clip: float = knob(1e-3, "c: how far a ratio may leave 1 before it counts no more.", min=1e-6)
    advantage_clip: float = knob(5.0, "Largest advantage, either way.", min=0.1)
    divergence_weight: float = knob(
        0.004, "beta: weight of the noisy steps' KL divergence from the frozen model.", min=0
    )

    def passes(self) -> "Passes":
        """A whole group, which is what one video of the batch becomes; its window where it is on average."""
        from ..models.plan_shape import Passes

        steps, videos = self.steps - self.first_tuned_step, self.group_size
        noisy = min(self.noisy_steps or steps, max(1, steps - 1))
        before = max(0, steps - 1 - noisy) / 2
        sampled = before * (1 if self.one_start else videos) + (steps - before) * videos
        trained, anchored = noisy * videos, self.divergence_weight > 0
        return Passes(
            sampled / self.inner_updates + trained * (1 + anchored), trained, trained,
            kept=0, anchored=anchored, twice=False, decodes=videos / self.inner_updates,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Group:
    """A scene's videos as far as updates need them: K noisy steps of M videos, on the CPU."""

    first: Tensor
    """The schedule's number of the first noisy step."""
    x_KM: Tensor
    """(K, M, C, T, H, W), before each step, and after it."""
    next_KM: Tensor
    log_probability_KM: Tensor
    """Under the model that sampled, float64."""
    advantage_M: Tensor
    told: Tensor
    """What the rewards were, by TOLD."""


TOLD = ("reward", "worst", "score", "coverage", "faceless", "reward_std")


class GrpoObjective(Method[GrpoSettings]):
    """See the module. It is `loop.Remembering`: the groups in hand are part of a run's state."""

    _groups: Sequence[Group] = ()
    _used: int = 0
    """Updates that the groups in hand have had."""

    @property
    def updates_per_batch(self) -> int:
        return self.settings.inner_updates

    def memory(self) -> dict[str, Tensor]:
        """See `loop.Remembering`."""
        if not self._groups:
            return {}
        groups = {
            f"{number}/{part.name}": getattr(group, part.name)
            for number, group in enumerate(self._groups)
            for part in fields(group)
        }
        return {"used": torch.tensor(self._used), **groups}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """See `loop.Remembering`."""
        count = sum(name.endswith("/first") for name in memory)
        self._groups = [
            Group(*(memory[f"{number}/{part.name}"] for part in fields(Group))) for number in range(count)
        ]
        self._used = int(memory["used"]) if memory else 0

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `loop.Objective`. The metrics, as means over the batch, are `score_metrics` of the videos in
        hand and

        reward_std: the spread within groups. ratio: r, and clipped: the share of steps where it has left its
        limits. kl: of a noisy step, per element. loss: what is minimised.
        """
        share, last = 1 / len(batch), self._used + 1 == self.settings.inner_updates
        kept = []
        for number, draw in enumerate(batch):
            group = self._groups[number] if self._groups else self.sampled(draw)
            told = self._gradient(draw, group, share)
            kept += [] if last else [group]
            yield {name: share * value for name, value in told.items()}
        self._groups, self._used = kept, 0 if last else self._used + 1

    @torch.no_grad()
    def sampled(self, draw: Draw) -> Group:
        """A group's videos, sampled and scored."""
        wanted, condition = self.settings, draw.sample.condition
        begun = 1 if wanted.one_start else wanted.group_size
        x = torch.cat([self.start([draw], condition) for _ in range(begun)])
        first, count = self._window(draw)
        seeds = torch.randint(2**31, (wanted.group_size,), generator=draw.generator).tolist()
        before, levels = self.sigmas[wanted.first_tuned_step : first + 1], self.sigmas[first:]
        x = torch.cat([sample(self.model, x[p], _times(condition, x[p]), before) for p in self._parts(begun)])
        x = x.expand(wanted.group_size, *x.shape[1:])
        steps, scores = [], []
        for part in self._parts(wanted.group_size):
            latents, passages = noisy_sample(
                self.model, x[part], _times(condition, x[part]), levels, noisy=range(count),
                noise_level=wanted.noise_level, form=wanted.noise_form,
                generators=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            )  # fmt: skip
            steps.append(passages)
            scores += [self.score(self.codec.decode(one)[0], draw) for one in latents.split(1)]
        x_KM, next_KM, log_probability_KM = (
            torch.stack([torch.cat([getattr(part[k], name).cpu() for part in steps]) for k in range(count)])
            for name in ("x", "x_next", "log_probability_B")
        )
        value_M = torch.tensor([score.value.item() for score in scores], dtype=torch.float64)
        told = self.score_metrics([draw] * len(scores), scores)
        told["reward_std"] = value_M.std(correction=0).item()
        return Group(
            torch.tensor(first), x_KM, next_KM, log_probability_KM,
            advantages(value_M, wanted.advantage_clip),
            torch.tensor([told[name] for name in TOLD], dtype=torch.float64),
        )  # fmt: skip

    def _gradient(self, draw: Draw, group: Group, share: float) -> dict[str, float]:
        """The group's part of the gradient, one step and microbatch at a time."""
        wanted, levels, first = self.settings, self.sigmas.tolist(), int(group.first)
        count, videos = group.x_KM.shape[:2]
        total: dict[str, float] = dict.fromkeys(("ratio", "clipped", "kl", "loss"), 0.0)
        for k in range(count):
            sigma, sigma_next = levels[first + k], levels[first + k + 1]
            step = noisy_step(sigma, sigma_next, wanted.noise_level, wanted.noise_form)
            for part in self._parts(videos):
                x, x_next = (kept[k, part].to(self._adapter_tensor()) for kept in (group.x_KM, group.next_KM))
                v, v_ref = self._velocities(x, sigma, _times(draw.sample.condition, x))
                old, advantage = (
                    kept.to(x.device) for kept in (group.log_probability_KM[k], group.advantage_M)
                )
                elements = x[0].numel()
                ratio = ((step.log_probability(x, v, x_next) - old[part]) / elements).exp()
                limited = ratio.clamp(1 - wanted.ratio_clip, 1 + wanted.ratio_clip)
                policy = torch.maximum(-advantage[part] * ratio, -advantage[part] * limited)
                kl = torch.zeros_like(ratio) if v_ref is None else step.divergence(v, v_ref) / elements
                loss = policy + wanted.divergence_weight * kl
                (share * loss.sum() / (videos * count)).backward()
                clipped = (ratio != limited).double()
                for name, value in {"ratio": ratio, "clipped": clipped, "kl": kl, "loss": loss}.items():
                    total[name] += value.detach().sum().item() / (videos * count)
        return {**dict(zip(TOLD, group.told.tolist(), strict=True)), **total}

    @torch.enable_grad()
    def _velocities(self, x: Tensor, sigma: float, condition: Any) -> tuple[Tensor, Tensor | None]:
        """v_θ, and v_ref where the divergence counts."""
        if not self.settings.divergence_weight:
            return self.model.velocity(x, sigma, condition), None
        together = getattr(self.model, "velocities", None)
        if together is not None:
            v, _, v_ref = together(x, sigma, condition, fork=False, through_reference=False)
            return v, v_ref
        with torch.no_grad():
            v_ref = self.model.frozen_velocity(x, sigma, condition)
        return self.model.velocity(x, sigma, condition), v_ref

    def _window(self, draw: Draw) -> tuple[int, int]:
        """Where the noisy steps begin, and how many they are. The last step is never one: its noise would be
        seen."""
        first, end = self.settings.first_tuned_step, self.settings.steps - 1
        if end <= first:
            raise ValueError(
                f"GRPO wants two tuned steps or more, and of {self.settings.steps} steps those from {first} "
                "on are tuned: take more steps."
            )
        count = min(self.settings.noisy_steps or end - first, end - first)
        return first + int(torch.randint(end - first - count + 1, (), generator=draw.generator)), count

    def _parts(self, videos: int) -> list[slice]:
        size = self.settings.microbatch
        return [slice(first, first + size) for first in range(0, videos, size)]


def advantages(value_M: Tensor, clip: float) -> Tensor:
    """How much better than the group's mean each reward is, in the group's own spread; all 0 where there is
    none."""
    spread = value_M.std(correction=0)
    if spread < FLAT:
        return torch.zeros_like(value_M)
    return ((value_M - value_M.mean()) / spread).clamp(-clip, clip)


def _times(condition: Any, x: Tensor) -> Any:
    """One video's condition for each of a batch."""
    return stack_conditions([condition] * len(x))
