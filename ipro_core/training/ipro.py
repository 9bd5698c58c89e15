"""The IPRO objective: sample from noise, score the faces, stay near the frozen model (Eq. 3 to 7)."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import person_faces
from ..models.base import VideoCodec, VideoModel
from ..rewards.base import Reward
from ..sampling.anchor import anchor_weight
from ..sampling.flow import shifted_sigmas
from ..sampling.gradient import reward_gradient
from ..sampling.rollout import sample
from ..types import FacePool, GeneratedVideo, RewardScore, Rollout, check_knobs
from .loop import Draw
from .settings import IproSettings

logger = logging.getLogger("ipro")


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One scene: what the model is asked for, and whose faces it is to keep."""

    name: str
    condition: Any
    """The model's own, of batch size 1: a tensor, or a dataclass of tensors whose first axis is the batch."""
    latent_shape: tuple[int, ...]
    """(C, T, H, W) of the noise."""
    pool: FacePool | None
    prompt: str = ""
    reference_D: Tensor | None = None
    """The face of the input image, for the reward that compares with it."""
    starts: tuple[Callable[[], Tensor], ...] = ()
    """Latents (C, T, H, W) at the first tuned step, read when they are drawn: what a frozen expert made of
    one noise each. None: every draw starts from noise of its own."""


class IproObjective:
    """−reward_weight · R_face + kl_weight · KL, its gradient taken on the model's own samples."""

    def __init__(
        self,
        model: VideoModel,
        codec: VideoCodec,
        detector: Detector,
        recognizer: Recognizer,
        reward: Reward,
        settings: IproSettings,
    ) -> None:
        check_knobs(settings)
        self.model, self.codec, self.reward, self.settings = model, codec, reward, settings
        self.detector, self.recognizer = detector, recognizer
        self.sigmas = shifted_sigmas(settings.steps, settings.shift)
        self._warned = False

    def changed(self, **settings: Any) -> "IproObjective":
        """The same with some settings set anew."""
        parts = self.model, self.codec, self.detector, self.recognizer, self.reward
        return IproObjective(*parts, replace(self.settings, **settings))

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `Objective`. The metrics, as means over the batch:

        reward: R_face (Eq. 6). score: the same over frames with a face only. kl: Eq. 7, mean over steps.
        drift: ||v_θ − v_ref||², mean over elements and steps. coverage: the share of frames with a face.
        faceless: the share of videos without any.
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
        weights = [anchor_weight(sigma, self.settings.kl_weighting) for sigma in rollout.sigmas_K.tolist()]
        drift_K = [drift / self.settings.reference_chance for drift in rollout.drift_K.tolist()]
        for draw, score in zip(draws, scores, strict=True):
            if not score.seen_T.any() and not self._warned:
                logger.warning("The video sampled for %s shows no face; said once.", draw.sample.name)
                self._warned = True
        return {
            "reward": _mean([score.value.item() for score in scores]),
            "score": _mean([_mean(score.per_frame_T[score.seen_T].tolist()) for score in scores]),
            "kl": _mean([weight * drift for weight, drift in zip(weights, drift_K, strict=True)]),
            "drift": _mean(drift_K),
            "coverage": _mean([score.seen_T.float().mean().item() for score in scores]),
            "faceless": _mean([float(not score.seen_T.any()) for score in scores]),
        }

    def start(self, draws: Sequence[Draw], condition: Any) -> Tensor:
        """x where the tuned steps begin, (B, C, T, H, W)."""
        if all(draw.sample.starts for draw in draws):
            return torch.stack([self.boundary(draw) for draw in draws])
        noise, first = torch.stack([self.noise(draw) for draw in draws]), self.settings.first_tuned_step
        return sample(self.model, noise, condition, self.sigmas[: first + 1], frozen=True)

    def boundary(self, draw: Draw) -> Tensor:
        """One of the sample's starts, drawn by chance."""
        starts = draw.sample.starts
        chosen = int(torch.randint(len(starts), (), generator=draw.generator))
        return starts[chosen]().to(self._adapter_tensor())

    def noise(self, draw: Draw) -> Tensor:
        """x_T, (C, T, H, W), where and as precise as the adapter is."""
        seed, generator = self.settings.noise_seed, draw.generator
        if seed >= 0:
            generator = torch.Generator().manual_seed(seed)
        return torch.randn(draw.sample.latent_shape, generator=generator).to(self._adapter_tensor())

    def _adapter_tensor(self) -> Tensor:
        return next(iter(self.model.adapter_parameters().values()))

    def score(self, frames_TCHW: Tensor, draw: Draw) -> RewardScore:
        """The reward of one generated video, differentiable in its frames."""
        wanted = draw.sample
        pool = wanted.pool
        if pool is not None and not self.settings.pool_first_frame:
            pool = without_first_frame(pool)
        frames, kept = len(frames_TCHW), self.settings.gradient_frames
        if 0 < kept < frames:
            # Of the other frames only the value counts: their pixels' gradient is cut, that of the kept ones
            # raised by frames / kept, which gives the whole gradient in expectation.
            kept_T = torch.zeros(frames, 1, 1, 1, device=frames_TCHW.device)
            kept_T[torch.randperm(frames, generator=draw.generator)[:kept]] = frames / kept
            given = frames_TCHW.detach()
            frames_TCHW = given + kept_T * (frames_TCHW - given)
        person = person_faces(
            frames_TCHW,
            self.detector,
            self.recognizer,
            pool=pool,
            reference_D=wanted.reference_D,
            choose=self.settings.choose,
            jitter=self.settings.landmark_jitter,
            generator=draw.generator,
        )
        return self.reward(GeneratedVideo((person,), wanted.prompt, frames_TCHW))


def microbatches(batch: Sequence[Draw], size: int) -> Iterator[Sequence[Draw]]:
    """The batch in parts of at most `size` samples of the same latent shape."""
    by_shape: dict[tuple[int, ...], list[Draw]] = {}
    for draw in batch:
        by_shape.setdefault(tuple(draw.sample.latent_shape), []).append(draw)
    for draws in by_shape.values():
        for first in range(0, len(draws), size):
            yield draws[first : first + size]


def stack_conditions(conditions: Sequence[Any]) -> Any:
    """One condition for several samples, joined along the batch axis; see `TrainingSample.condition`."""
    first = conditions[0]
    if len(conditions) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(conditions))
    assert is_dataclass(first) and not isinstance(first, type), (
        "a condition is a tensor or a dataclass of them"
    )
    parts = {
        part.name: stack_conditions([getattr(one, part.name) for one in conditions]) for part in fields(first)
    }
    return replace(first, **parts)


def without_first_frame(pool: FacePool) -> FacePool:
    """The pool as the authors' code uses it: the input image does not count."""
    kept_P = pool.frames_P != 0
    return replace(
        pool,
        embeddings_PD=pool.embeddings_PD[kept_P],
        frames_P=pool.frames_P[kept_P],
        boxes_P4=pool.boxes_P4[kept_P],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
