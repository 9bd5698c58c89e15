"""What a job needs, opened one network at a time, and the videos made with it: commands and graphs share it.

The embedded world (`tinyworld.open_tiny_world`) and real Wan (`wan_studio`: by its files, or as a graph has
its networks) are ways to fill one `Studio`. Nothing in it is open: what is asked of clips is made stage by
stage, each with only its own network in memory, and kept; training and sampling then open the video model and
what judges its frames.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .cache import Cache, Stage, name_of
from .clips.dataset import faces_stage, image_stage, pictures_stage, pools_of, text_stage, video_stage
from .clips.person import PersonScene
from .clips.scenes import Place, PreferredScene, Scene
from .evaluation.compare import SceneVideos
from .faces.clip_face import ClipFace
from .faces.detector import Detector
from .faces.pool import in_first_frame
from .faces.recognizer import Recognizer
from .faces.references import ReferenceFaces
from .faces.tracks import face_box
from .models.base import AdaptedVideoModel, VideoCodec, VideoModel, watched
from .models.condition import WanCondition, first_frame, wan_condition
from .models.draft import DraftedVae
from .models.taehv import DraftCodec
from .models.vae import WanVae
from .sampling.boundary import Start, boundary_stage
from .sampling.flow import expert_switch, shifted_sigmas
from .sampling.rollout import sample
from .scorer import ImageEncoder, Scorer
from .training.base import TrainingSample
from .training.settings import SamplingSettings
from .types import FacePool, Framing, Person

Opened = TypeVar("Opened", covariant=True)


@dataclass(frozen=True, eq=False)
class Network(Generic[Opened]):
    """A network that is not open yet."""

    identity: Callable[[], str]
    """What tells its weights, and all that is laid on them, from any others; it may read whole files."""
    open: Callable[[], Opened]


class Work(NamedTuple):
    """One stage before it is done: iterate over `items`."""

    name: str
    total: int
    items: Iterator[Any]


@dataclass(frozen=True, eq=False)
class Studio:
    """The networks of one job, and what is kept of the clips they have seen."""

    kind: str
    """Of the video model, see `WanFile.family`."""
    base: str
    """The name of the tuned network's file."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its tensors, by official name."""
    framing: Framing
    latent_shape: tuple[int, ...]
    """(C, T, H, W) of a video of that size and length."""
    text: Network[Callable[[str], Tensor]]
    """Gives a prompt's embedding, (L, D)."""
    codec: Network[VideoCodec]
    faces: Network[tuple[Detector, Recognizer]]
    """Its identity is the detector's name, then the recogniser's."""
    model: Network[AdaptedVideoModel]
    """What is tuned: of two experts the low-noise one."""
    high_noise: Network[VideoModel] | None
    """The frozen expert that samples the steps before `SamplingSettings.first_tuned_step`."""
    judge: Network[Recognizer] | None
    """Measures, never rewards; its identity is its name."""
    cache: Cache
    read_clips: Callable[[Sequence[Place]], Sequence[Scene]]
    """Scenes from video files, folders of them and manifests, as the model sees them."""
    boundary: float | None = None
    """The noise level below which the tuned one of two experts works."""
    draft: Network[DraftCodec] | None = None
    """Finds the faces that the reward looks at, so that only they are decoded."""
    scorer: Network[Scorer] | None = None
    """Says how well frames show a prompt, for methods that want it."""
    face_encoder: Network[ImageEncoder] | None = None
    """What rewards compare faces by in the recogniser's place; following and measuring stay its."""
    plan: str = ""
    """What an update takes, in words."""
    device: torch.device | str = "cpu"
    min_face: float = 24.0
    """Smallest face of a pool, in pixels of the clip."""

    def fit(self, settings: SamplingSettings, *, asked: bool, known: bool) -> SamplingSettings:
        """The settings with the first tuned step that the model has: the first of the low-noise expert's.

        Args:
            asked: the user wants this first step.
            known: the settings are of this model; else one network is tuned from its first step on.

        Raises:
            ValueError: the schedule leaves an expert nothing to do, or begins it elsewhere than asked.
        """
        if self.boundary is None:
            own = known and settings.first_tuned_step >= 0
            return settings if own else replace(settings, first_tuned_step=settings.begins(0))
        first = settings.begins(self.switch(settings))
        if asked and settings.first_tuned_step != first:
            raise ValueError(
                f"Of {settings.steps} steps at shift {settings.shift:g} the low-noise expert takes those "
                f"from {first} on: leave out --first-tuned-step, or give {first}."
            )
        return replace(settings, first_tuned_step=first)

    def switch(self, settings: SamplingSettings) -> int:
        """The step at which the tuned one of two experts takes over; 0: there is one."""
        if self.boundary is None:
            return 0
        return expert_switch(settings.steps, settings.shift, self.boundary)

    def compared_faces(self) -> tuple[Detector, Recognizer | ClipFace]:
        """What finds and compares faces for a reward, opened."""
        detector, recognizer = self.faces.open()
        return detector, ClipFace(self.face_encoder.open(), recognizer) if self.face_encoder else recognizer

    def looking(self, codec: VideoCodec, detector: Detector, recognizer: Recognizer | ClipFace) -> VideoCodec:
        """The codec as the reward looks through it: the true one, if only where a draft shows faces."""
        if self.draft is None:
            return codec
        assert isinstance(codec, WanVae), "drafts are of Wan's latents"
        find = partial(face_box, detector=detector, size=recognizer.size)
        return DraftedVae(codec, self.draft.open(), find)

    def identities(self) -> dict[str, str]:
        """Of the networks that a run's numbers depend on."""
        networks = {"model": self.model, "high_noise": self.high_noise, "vae": self.codec}
        networks |= {"text_encoder": self.text, "faces": self.faces, "draft": self.draft}
        networks |= {"face_encoder": self.face_encoder}
        return {name: network.identity() for name, network in networks.items() if network}

    def watched(self, look: Callable[[], None]) -> "Studio":
        """The same, but before every pass of a video model `look` is called, and may raise: a way out within
        one sampling step."""

        def watch(network: Network[Any]) -> Network[Any]:
            return replace(network, open=lambda: watched(network.open(), look))

        high = self.high_noise and watch(self.high_noise)
        return replace(self, model=watch(self.model), high_noise=high)

    def prepare(
        self,
        scenes: Sequence[Scene],
        settings: SamplingSettings,
        seeds: Sequence[int],
        *,
        faces: bool = True,
        videos: bool = False,
    ) -> Iterator[Work]:
        """All that must be made of scenes before they are trained on or sampled, stage by stage.

        Args:
            settings: the schedule, for boundary latents.
            seeds: of each scene's boundary latents, where a frozen expert makes them.
            faces: whether pools are wanted; scenes without a face are then left out of what follows.
            videos: whether the clips' own latents are.
        """
        stages = [self._texts(), self._images()]
        if faces:
            stages += [self._faces(), *([self._pictures()] if "pictures" in settings.wants else [])]
        for stage in stages:
            yield Work(stage.name, len(scenes), stage.run(self.cache, scenes))
        if faces:
            scenes = self.with_faces(scenes)
        if videos:
            rejected = [scene.rejected for scene in scenes if isinstance(scene, PreferredScene)]
            stage, every = self._videos(), [*scenes, *rejected]
            yield Work(stage.name, len(every), stage.run(self.cache, every))
        if self.high_noise is not None and seeds:
            starts = [self.start(scene, seed) for scene in scenes for seed in seeds]
            stage = self._boundary(settings)
            yield Work(stage.name, len(starts), stage.run(self.cache, starts))

    def with_faces(self, scenes: Sequence[Scene]) -> list[Scene]:
        """Those of the prepared scenes whose clips show a face that is large enough."""
        return [scene for scene in scenes if len(self._kept(self._faces(), scene)["frames"])]

    def condition(self, scene: Scene) -> WanCondition:
        """What the model is told of a prepared scene, of batch size 1."""
        return wan_condition({**self._kept(self._texts(), scene), **self._kept(self._images(), scene)})

    def pools(self, scene: Scene) -> list[FacePool]:
        """Of the people in a prepared scene's clip, the subject's first."""
        recognizer = (self.face_encoder or self.faces).identity().rpartition(", ")[2]
        return pools_of(self._kept(self._faces(), scene), recognizer, scene.name)

    def start(self, scene: Scene, seed: int) -> Start:
        """Where a rollout starts: one noise for one scene and seed."""
        name = scene.name
        if self.high_noise is not None:  # what is made of it must outlast the file's name
            name = name_of({"text": self._texts().key(scene), "image": self._images().key(scene)})
        return Start(name, self.latent_shape, seed, partial(self.condition, scene))

    def boundary_latents(self, start: Start, settings: SamplingSettings) -> Tensor:
        """What the frozen expert made of a prepared start, (C, T, H, W)."""
        return self._kept(self._boundary(settings), start)["latents"]

    def training_sample(
        self, scene: Scene, settings: SamplingSettings, seeds: Sequence[int]
    ) -> TrainingSample:
        """A prepared scene, each of its people with their faces in the clip as the pool (Section 4.2)."""
        rejected = scene.rejected if isinstance(scene, PreferredScene) else None
        # Of pairs that people have voted on nobody asks for a face.
        pools = [] if rejected else self.pools(scene)[: settings.people or None]
        pictures = None
        if "pictures" in settings.wants:
            found = self._kept(self._pictures(), scene)
            pictures = ReferenceFaces(found["squares"], found["points"])
        starts = [self.start(scene, seed) for seed in seeds] if self.high_noise is not None else []
        return TrainingSample(
            name=scene.name,
            condition=self.condition(scene),
            latent_shape=self.latent_shape,
            people=tuple(Person(pool, in_first_frame(pool)) for pool in pools),
            prompt=scene.prompt,
            starts=tuple(partial(self.boundary_latents, start, settings) for start in starts),
            starts_at=self.switch(settings) if starts else None,
            pictures=pictures,
            video=partial(self._video, scene) if rejected or "video" in settings.wants else None,
            rejected=partial(self._video, rejected) if rejected else None,
        )

    def _video(self, scene: Scene) -> Tensor:
        return self._kept(self._videos(), scene)["video"]

    def _texts(self) -> Stage[Scene]:
        return text_stage(self.text.identity(), self.text.open)

    def _images(self) -> Stage[Scene]:
        def open_encoder() -> Callable[[Tensor], Mapping[str, Tensor]]:
            codec = self.codec.open()
            return lambda first: first_frame(codec, first.to(self.device), self.framing.frames, self.kind)

        return image_stage(f"{self.codec.identity()} for {self.kind}", open_encoder)

    def _videos(self) -> Stage[Scene]:
        def open_encoder() -> Callable[[Tensor], Tensor]:
            codec = self.codec.open()
            return lambda frames_BTCHW: codec.encode(frames_BTCHW.to(self.device))

        return video_stage(self.codec.identity(), open_encoder)

    def _faces(self) -> Stage[Scene]:
        encoder = f" compared by {self.face_encoder.identity()}" if self.face_encoder else ""
        made_by = self.faces.identity() + encoder
        return faces_stage(made_by, self.compared_faces, min_face=self.min_face)

    def _pictures(self) -> Stage[Scene]:
        return pictures_stage(self.faces.identity(), self.faces.open)

    def _boundary(self, settings: SamplingSettings) -> Stage[Start]:
        assert self.high_noise is not None
        sigmas = shifted_sigmas(settings.steps, settings.shift)[: self.switch(settings) + 1]
        return boundary_stage(self.high_noise.identity(), self.high_noise.open, sigmas, self.device)

    def _kept(self, stage: Stage[Any], item: Any) -> Mapping[str, Tensor]:
        kept = stage.load(self.cache, item)
        if kept is None:
            raise ValueError(
                f"The cache has lost {stage.name} that were in it: give the same command once more "
                "(train: with --resume), and they are made again."
            )
        return kept


class Sampler:
    """Videos by an open model, of prepared scenes."""

    def __init__(self, studio: Studio, model: VideoModel, codec: VideoCodec, settings: SamplingSettings):
        """settings: the schedule, and from which step the adapter is on."""
        self.studio, self.model, self.codec, self.settings = studio, model, codec, settings
        self.sigmas = shifted_sigmas(settings.steps, settings.shift)

    @torch.no_grad()
    def generate(self, scene: Scene, seed: int, *, frozen: bool = False) -> Tensor:
        """A video of the scene's length, (T, 3, H, W) in [0, 1]; one noise for one scene and seed.

        Args:
            frozen: with the adapter off.
        """
        start, first = self.studio.start(scene, seed), self.settings.first_tuned_step
        condition, begin = start.condition(), self.studio.switch(self.settings)
        expert = self.studio.high_noise is not None
        x_CTHW = self.studio.boundary_latents(start, self.settings) if expert else start.noise()
        x = x_CTHW[None].to(self.studio.device)
        x = sample(self.model, x, condition, self.sigmas[begin : first + 1], frozen=True)
        latents = sample(self.model, x, condition, self.sigmas[first:], frozen=frozen)
        return self.codec.decode(latents)[0].clamp(0, 1).cpu()

    def pairs(self, scenes: Sequence[Scene], seeds: Sequence[int]) -> Iterator[SceneVideos]:
        """Each scene with each seed, by the frozen and by the tuned model, for `compare_videos`."""
        for scene in scenes:
            filmed = not isinstance(scene, PersonScene)
            real_TCHW = scene.frames() if filmed else None
            for seed in seeds:
                base_TCHW = self.generate(scene, seed, frozen=True)
                tuned_TCHW = self.generate(scene, seed)
                reference_CHW = scene.first() if real_TCHW is None else real_TCHW[0]
                yield SceneVideos(
                    scene.name, scene.prompt, seed, reference_CHW, base_TCHW, tuned_TCHW, real_TCHW
                )
