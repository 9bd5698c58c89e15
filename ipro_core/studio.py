"""What a job needs, opened once, and the videos made with it: the seam that commands and graphs share."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .clips.video import read_frames
from .evaluation.compare import SceneVideos
from .faces.detector import Detector
from .faces.packs import load_face_models, load_recognizer
from .faces.pool import build_pool
from .faces.recognizer import Recognizer
from .models.base import VideoCodec
from .models.memory import Placement
from .models.wan import WanCondition, WanVideoModel, image_condition, load_video_model
from .sampling.flow import shifted_sigmas
from .sampling.rollout import sample
from .tinyworld import CODEC, FACE_PACK, JUDGE, VIDEO_MODEL
from .tinyworld.codec import LinearCodec
from .tinyworld.scenes import embed_prompt, tiny_scenes
from .training.ipro import IproSettings, TrainingSample

TINY_SIDE, TINY_FRAMES, TINY_FPS = 48, 9, 8.0


@dataclass(frozen=True, eq=False)
class Scene:
    """One real clip, and what a model is asked to make of its first frame."""

    name: str
    prompt: str
    frames_TCHW: Tensor
    """In [0, 1]; frame 0 is the input image."""


@dataclass(frozen=True, eq=False)
class Studio:
    """The model with its codec, the face networks, and the judge that is never a reward."""

    model: WanVideoModel
    codec: VideoCodec
    detector: Detector
    recognizer: Recognizer
    judge: Recognizer
    embed_prompt: Callable[[str], Tensor]
    """A prompt's embedding, (L, D)."""

    def condition(self, first_frame_CHW: Tensor, prompt: str, frames: int) -> WanCondition:
        """What the model is told, of batch size 1."""
        image_BCTHW = image_condition(self.codec, first_frame_CHW[None], frames)
        return WanCondition(self.embed_prompt(prompt)[None], image_BCTHW)

    def training_sample(self, scene: Scene) -> TrainingSample:
        """A scene with its clip's faces as the pool (Section 4.2).

        Raises:
            ValueError: the clip shows no face.
        """
        condition = self.condition(scene.frames_TCHW[0], scene.prompt, len(scene.frames_TCHW))
        pool = build_pool(scene.frames_TCHW, self.detector, self.recognizer, source=scene.name, min_face=0)
        return TrainingSample(
            name=scene.name,
            condition=condition,
            latent_shape=latent_shape(condition),
            pool=pool,
            prompt=scene.prompt,
            reference_D=pool.embeddings_PD[0] if pool.seen_T[0] else None,
        )

    @torch.no_grad()
    def generate(self, scene: Scene, seed: int, settings: IproSettings, *, frozen: bool = False) -> Tensor:
        """A video of the scene's length, (T, 3, H, W) in [0, 1]; one noise for one scene and seed.

        Args:
            settings: the schedule, and from which step the adapter is on.
            frozen: with the adapter off.
        """
        condition = self.condition(scene.frames_TCHW[0], scene.prompt, len(scene.frames_TCHW))
        noise = torch.randn(latent_shape(condition), generator=_generator(scene.name, seed))
        sigmas, first = shifted_sigmas(settings.steps, settings.shift), settings.first_tuned_step
        latents = sample(self.model, noise[None], condition, sigmas[: first + 1], frozen=True)
        latents = sample(self.model, latents, condition, sigmas[first:], frozen=frozen)
        return self.codec.decode(latents)[0].clamp(0, 1)

    def pairs(self, scenes: Sequence[Scene], seeds: int, settings: IproSettings) -> Iterator[SceneVideos]:
        """Each scene with each seed, by the frozen and by the tuned model, for `compare_videos`."""
        for scene in scenes:
            for seed in range(seeds):
                base_TCHW = self.generate(scene, seed, settings, frozen=True)
                tuned_TCHW = self.generate(scene, seed, settings)
                first_CHW = scene.frames_TCHW[0]
                yield SceneVideos(
                    scene.name, scene.prompt, seed, first_CHW, base_TCHW, tuned_TCHW, scene.frames_TCHW
                )

    def shows_face(self, scene: Scene) -> bool:
        """Whether the input image shows a face to compare with."""
        return bool(self.detector.detect(scene.frames_TCHW[:1])[0])


def latent_shape(condition: WanCondition) -> tuple[int, ...]:
    """(C, T, H, W) of the noise for an image condition: its channels less the four of the mask."""
    assert condition.image_BCTHW is not None
    _, channels, *rest = condition.image_BCTHW.shape
    return (channels - 4, *rest)


def open_studio(
    model: Path | str | None = None, faces: Path | str | None = None, judge: Path | str | None = None
) -> Studio:
    """Open the embedded world's networks, any of them replaced by a file or folder of the user's."""
    detector, recognizer = load_face_models(faces or FACE_PACK)
    return Studio(
        model=load_video_model(
            model or VIDEO_MODEL, dtype=torch.float32, placement=Placement(recompute=False)
        ),
        codec=LinearCodec.load(CODEC),
        detector=detector,
        recognizer=recognizer,
        judge=load_recognizer(judge or JUDGE),
        embed_prompt=embed_prompt,
    )


def tiny_world_scenes(split: str, count: int, seed: int = 0) -> list[Scene]:
    """Scenes of the embedded world: "tuning", or "held_out" (people and prompts never trained on)."""
    return [Scene(scene.name, scene.prompt, scene.frames_TCHW) for scene in tiny_scenes(split, count, seed)]


def clip_scenes(videos: Sequence[Path]) -> Iterator[Scene]:
    """Scenes from the user's clips, cut to the embedded model's size; `clip.txt` beside it holds its prompt.

    Raises:
        ValueError: a clip is missing, unreadable or shorter than the model's length.
    """
    for video in videos:
        frames_TCHW = read_frames(video, count=TINY_FRAMES, fps=TINY_FPS)
        if len(frames_TCHW) < TINY_FRAMES:
            seconds = TINY_FRAMES / TINY_FPS
            raise ValueError(f"{video} is too short: choose a clip of at least {seconds:.1f} seconds.")
        prompt = video.with_suffix(".txt")
        words = prompt.read_text().strip() if prompt.exists() else ""
        yield Scene(video.stem, words, tiny_square(frames_TCHW))


def tiny_square(frames_TCHW: Tensor) -> Tensor:
    """The middle of each frame at the embedded model's size, (T, 3, 48, 48)."""
    height, width = frames_TCHW.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square_TCHW = frames_TCHW[..., top : top + side, left : left + side]
    return F.interpolate(square_TCHW, (TINY_SIDE, TINY_SIDE), mode="bilinear", antialias=True)


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
