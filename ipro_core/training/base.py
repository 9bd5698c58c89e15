"""What all methods share: samples, where their videos begin, the look at their faces; and their catalogue.

A method is one file. `ipro.py` holds `IproSettings`, its knobs, and `IproObjective`, its gradient, and every
menu calls it `ipro`: a new file of that form is found by itself. What opens networks is imported where it is
worked with, because a host's start waits for these files.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from ..sampling.flow import shifted_sigmas
from ..sampling.rollout import sample
from ..types import FacePool, GeneratedVideo, Person, RewardScore, check_knobs
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..faces.clip_face import ClipFace
    from ..faces.detector import Detector
    from ..faces.recognizer import Recognizer
    from ..faces.references import ReferenceFaces
    from ..models.base import VideoCodec, VideoModel
    from ..rewards.base import Reward
    from ..scorer import Scorer
    from .loop import Draw

logger = logging.getLogger("ipro")

NO_METHODS = ("base", "loop", "presets", "settings")
Settings = TypeVar("Settings", bound=SamplingSettings)


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One scene: what the model is asked for, and whose faces it is to keep."""

    name: str
    condition: Any
    """The model's own, of batch size 1: a tensor, or a dataclass of tensors whose first axis is the batch."""
    latent_shape: tuple[int, ...]
    """(C, T, H, W) of the noise."""
    people: tuple[Person, ...]
    """The subject first."""
    prompt: str = ""
    starts: tuple[Callable[[], Tensor], ...] = ()
    """Latents (C, T, H, W) at the step `starts_at`, read when they are drawn: what a frozen expert made of
    one noise each. None: every draw starts from noise of its own."""
    starts_at: int | None = None
    """None: the first tuned step."""
    video: Callable[[], Tensor] | None = None
    """Reads the real clip's latents, (C, T, H, W), where the method wants them; of two videos that people
    have compared, the preferred one's."""
    rejected: Callable[[], Tensor] | None = None
    """Reads the other one's."""
    pictures: ReferenceFaces | None = None
    """The faces of the person's pictures, where the method wants them."""


class Method(Generic[Settings]):
    """An objective (see `loop.Objective`) over a model's own samples, without its gradient."""

    def __init__(
        self,
        model: VideoModel,
        codec: VideoCodec,
        detector: Detector,
        recognizer: Recognizer | ClipFace,
        reward: Reward,
        settings: Settings,
        scorer: Scorer | None = None,
    ) -> None:
        """`scorer`: of frames and prompts, for methods that want one."""
        check_knobs(settings)
        self.model, self.codec, self.reward, self.settings = model, codec, reward, settings
        self.detector, self.recognizer, self.scorer = detector, recognizer, scorer
        self.sigmas = shifted_sigmas(settings.steps, settings.shift)
        self._warned = False

    def changed(self, **settings: Any) -> Any:
        """The same with some settings set anew."""
        parts = self.model, self.codec, self.detector, self.recognizer, self.reward
        return type(self)(*parts, replace(self.settings, **settings), self.scorer)

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """See `loop.Objective`."""
        raise NotImplementedError

    def score_metrics(self, draws: Sequence[Draw], scores: Sequence[RewardScore]) -> dict[str, float]:
        """What a reward said of the videos, as means.

        reward: R_face (Eq. 6). score: the same over frames with a face only. coverage: the share of frames
        with a face. faceless: the share of videos without any. Of several people each is the mean over them.
        worst: the reward of the person of each video who has the least.
        """
        people = [score.people or (score,) for score in scores]
        for draw, each in zip(draws, people, strict=True):
            if not any(score.seen_T.any() for score in each) and not self._warned:
                logger.warning("The video sampled for %s shows no face; said once.", draw.sample.name)
                self._warned = True

        def averaged(measure: Callable[[RewardScore], float]) -> float:
            return mean([mean([measure(score) for score in each]) for each in people])

        return {
            "reward": mean([score.value.item() for score in scores]),
            "worst": mean([min(score.value.item() for score in each) for each in people]),
            "score": averaged(lambda score: mean(score.per_frame_T[score.seen_T].tolist())),
            "coverage": averaged(lambda score: score.seen_T.float().mean().item()),
            "faceless": averaged(lambda score: float(not score.seen_T.any())),
        }

    def start(self, draws: Sequence[Draw], condition: Any) -> Tensor:
        """x where the tuned steps begin, (B, C, T, H, W)."""
        begin, first = 0, self.settings.first_tuned_step
        if all(draw.sample.starts for draw in draws):
            x, at = torch.stack([self.boundary(draw) for draw in draws]), draws[0].sample.starts_at
            begin = first if at is None else at
        else:
            x = torch.stack([self.noise(draw) for draw in draws])
        return sample(self.model, x, condition, self.sigmas[begin : first + 1], frozen=True)

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

    def video(self, read: Callable[[], Tensor] | None) -> Tensor:
        """A sample's latents that are kept, where and as precise as the adapter is."""
        assert read is not None, "the settings did not want videos"
        return read().to(self._adapter_tensor())

    def _adapter_tensor(self) -> Tensor:
        return next(iter(self.model.adapter_parameters().values()))

    def score(self, frames_TCHW: Tensor, draw: Draw) -> RewardScore:
        """The reward of one generated video, differentiable in its frames."""
        from ..faces.people import people_faces
        from ..faces.tracks import see_faces
        from ..rewards.base import asks_for_everybody

        people = draw.sample.people
        if not self.settings.pool_first_frame:
            people = [replace(one, pool=one.pool and without_first_frame(one.pool)) for one in people]
        seen = None
        if asks_for_everybody(self.reward):
            seen = see_faces(frames_TCHW, self.detector, self.recognizer)
        faces = people_faces(
            frames_TCHW,
            self.detector,
            self.recognizer,
            people,
            choose=self.settings.choose,
            jitter=self.settings.landmark_jitter,
            generator=draw.generator,
            seen=seen,
        )
        return self.reward(GeneratedVideo(faces, draw.sample.prompt, frames_TCHW, seen=seen))


def some_frames(frames_TCHW: Tensor, kept: int, generator: torch.Generator) -> Tensor:
    """The same frames, through `kept` of which, drawn at random, the gradient flows; 0: through all.

    Of the others only the value counts: their pixels' gradient is cut, that of the kept ones raised by
    frames / kept, which gives the whole gradient in expectation.
    """
    frames = len(frames_TCHW)
    if not 0 < kept < frames:
        return frames_TCHW
    kept_T = torch.zeros(frames, 1, 1, 1, device=frames_TCHW.device)
    kept_T[torch.randperm(frames, generator=generator)[:kept]] = frames / kept
    given = frames_TCHW.detach()
    return given + kept_T * (frames_TCHW - given)


def microbatches(batch: Sequence[Draw], size: int) -> Iterator[Sequence[Draw]]:
    """The batch in parts of at most `size` samples of the same latent shape."""
    by_shape: dict[tuple[int, ...], list[Draw]] = {}
    for draw in batch:
        by_shape.setdefault(tuple(draw.sample.latent_shape), []).append(draw)
    for draws in by_shape.values():
        for first in range(0, len(draws), size):
            yield draws[first : first + size]


def by_level(draws: Sequence[Draw], sigmas: Tensor) -> Iterator[tuple[float, list[Draw]]]:
    """Each draw's noise level, drawn by itself from these, with all draws that have it."""
    at: dict[float, list[Draw]] = {}
    for draw in draws:
        chosen = int(torch.randint(len(sigmas), (), generator=draw.generator))
        at.setdefault(sigmas[chosen].item(), []).append(draw)
    yield from at.items()


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


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def method_catalogue() -> dict[str, type[SamplingSettings]]:
    """The settings of every method of this folder, by its name: `IproSettings` of `ipro.py` is "ipro"."""
    return {name: getattr(module, f"{start}Settings") for name, start, module in _methods()}


def method_of(settings: SamplingSettings) -> str:
    """The name of the method whose settings these are."""
    return next(name for name, kind in method_catalogue().items() if type(settings) is kind)


def objective_of(settings: SamplingSettings) -> type[Method]:
    """The objective whose settings these are."""
    return next(
        getattr(module, f"{start}Objective")
        for _, start, module in _methods()
        if type(settings) is getattr(module, f"{start}Settings")
    )


def _methods() -> Iterator[tuple[str, str, Any]]:
    """Name, its start of the classes' names, and module."""
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if file.name in NO_METHODS:
            continue
        module = importlib.import_module(f"{__package__}.{file.name}")
        start = file.name.title().replace("_", "")
        if hasattr(module, f"{start}Objective"):
            yield file.name.replace("_", "-"), start, module
