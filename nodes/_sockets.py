"""What the sockets carry: small frozen values and the core's own, no network that we opened; and frames.

Here as in all of these files the core's workshops are imported where they are worked in, so that the host's
start waits for menus alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ipro_core.clips.scenes import Scene, ShownScene, find_videos, fit
from ..ipro_core.files import fingerprint
from ..ipro_core.training.settings import SamplingSettings
from ..ipro_core.types import Clip, FacePool, Framing, Person
from ..ipro_core.wan_settings import DeviceSettings, WanFiles
from . import _comfy

if TYPE_CHECKING:
    from ..ipro_core.evaluation.verdict import Comparison
    from ..ipro_core.rewards.base import Reward
    from ..ipro_core.studio import Network, Studio
    from ..ipro_core.training.base import TrainingSample
    from ..ipro_core.training.presets import Preset
    from ..ipro_core.wan_studio import Tuning

CLIPS = io.Custom("IPRO_CLIPS")
DATASET = io.Custom("IPRO_DATASET")
FACE_MODELS = io.Custom("IPRO_FACE_MODELS")
FACE_POOL = io.Custom("IPRO_FACE_POOL")
REWARD = io.Custom("IPRO_REWARD")
MODEL = io.Custom("IPRO_MODEL")
OBJECTIVE = io.Custom("IPRO_OBJECTIVE")
RUN = io.Custom("IPRO_RUN")
COMPARISON = io.Custom("IPRO_COMPARISON")
Text: TypeAlias = "Network[Callable[[str], Tensor]]"


@dataclass(frozen=True)
class ClipChoice:
    """Video files, or scenes of the embedded world."""

    videos: tuple[Path | Clip, ...] = ()
    split: str = "tuning"
    count: int = 0
    seed: int = 0

    def scenes(self, studio: Studio) -> list[Scene]:
        """As the studio's model sees them; of the embedded world those that show a face at once.

        Raises:
            ValueError: the embedded world's clips are not for a model of another size, or a file is bad.
        """
        if self.videos:
            return list(studio.read_clips(self.videos))
        if not self.count:
            raise ValueError(
                f"There is no clip for {self.split}: curate more clips, or set more of them apart."
            )
        if studio.framing.width != 48:
            raise ValueError(
                "Clips of the tiny world are 48 pixels wide: tune the tiny world's model on them."
            )
        from ..ipro_core.job import showing_faces
        from ..ipro_core.tinyworld.scenes import tiny_scenes

        return showing_faces(studio, tiny_scenes(self.split, self.count, self.seed))

    def name(self, studio: Studio) -> str:
        """Tells these clips from any others, for a run's settings."""
        from ..ipro_core.cache import name_of
        from ..ipro_core.job import name_of_scenes

        if self.videos:
            return name_of_scenes(studio.read_clips(self.videos))
        return name_of({"split": self.split, "count": self.count, "seed": self.seed})

    @classmethod
    def of(cls, *places: Path) -> ClipChoice:
        return cls(tuple(find_videos(places)))


@dataclass(frozen=True, eq=False)
class StillScene(ShownScene):
    """An input image without a clip; whose face it is to be, a pool says."""

    given_CHW: Tensor
    """As large as it was."""

    def pieces(self) -> Iterator[Tensor]:
        yield self.given_CHW[None]


@dataclass(frozen=True, eq=False)
class StillChoice:
    """Input images and what is asked of them, as the host encoded it."""

    images_NCHW: Tensor
    text_LD: Tensor

    videos: tuple[Path, ...] = ()

    @property
    def count(self) -> int:
        return len(self.images_NCHW)

    def scenes(self, studio: Studio) -> list[Scene]:
        firsts, length = fit(self.images_NCHW, studio.framing), studio.framing.frames
        shown = [one.expand(length, -1, -1, -1) for one in firsts]
        return [
            StillScene(f"image {n}", "", frames_TCHW, given_CHW)
            for n, (frames_TCHW, given_CHW) in enumerate(zip(shown, self.images_NCHW, strict=True))
        ]

    def name(self, studio: Studio) -> str:
        return fingerprint({"images": self.images_NCHW})

    @property
    def text(self) -> Text:
        """In the place of a text encoder."""
        from ..ipro_core.studio import Network

        return Network(lambda: fingerprint({"text": self.text_LD}), lambda: lambda _: self.text_LD)


@dataclass(frozen=True)
class VotedChoice:
    """Pairs of videos on which a study's voters have decided."""

    place: str
    """See `evaluation.preferred.voted_place`."""

    count: int = 0

    @property
    def videos(self) -> tuple[str]:
        return (self.place,)

    def scenes(self, studio: Studio) -> list[Scene]:
        from ..ipro_core.evaluation.preferred import voted_scenes

        return list(voted_scenes(self.place, studio.framing))

    def name(self, studio: Studio) -> str:
        from ..ipro_core.job import name_of_scenes

        return name_of_scenes(self.scenes(studio))


@dataclass(frozen=True, eq=False)
class PersonChoice:
    """Pictures of one person, and prompts."""

    pictures: tuple[Tensor, ...]
    prompts: tuple[str, ...]

    videos: tuple[Path, ...] = ()

    @property
    def count(self) -> int:
        return len(self.prompts)

    def scenes(self, studio: Studio) -> list[Scene]:
        from ..ipro_core.job import person_of

        return list(person_of(studio, self.pictures, self.prompts))

    def name(self, studio: Studio) -> str:
        from ..ipro_core.cache import name_of

        told = {f"{n:04d}": picture for n, picture in enumerate(self.pictures)}
        return name_of({"pictures": fingerprint(told), "prompts": list(self.prompts)})


@dataclass(frozen=True, eq=False)
class Dataset:
    """What is tuned on."""

    clips: ClipChoice | StillChoice | VotedChoice | PersonChoice
    faces: Path
    """A face pack."""
    pools: tuple[FacePool, ...] = ()
    """Of the people whom all clips show; none: each clip its own."""
    scorer: str = ""
    """A text-image scorer's file; "": the model's own, if it has one."""
    face_encoder: str = ""
    """A CLIP's file, which compares faces for the reward in the recogniser's place."""

    def open_studio(self, model: ModelChoice, tuning: Tuning | None = None) -> Studio:
        """The model's, told what the host has encoded already."""
        from ..ipro_core.job import with_scorer

        text = self.clips.text if isinstance(self.clips, StillChoice) else None
        studio = model.open_studio(self.faces, tuning, text=text)
        memo = Path(model.files["cache"]) / "sha256.json"
        return with_scorer(studio, self.scorer, self.face_encoder, memo, _comfy.clip_tokenizer())

    def check_for(self, method: SamplingSettings) -> None:
        """Raise ValueError where the method cannot learn from this."""
        if isinstance(self.clips, StillChoice) and "video" in method.wants:
            raise ValueError(
                f"{method.title} learns from real clips, and Dataset from Image has none: connect Build "
                "Dataset."
            )
        if isinstance(self.clips, VotedChoice) and method.title != "DPO":
            raise ValueError(f"Votes are what DPO learns from, not {method.title}: connect a DPO Objective.")

    def with_pools(self, sample: TrainingSample) -> TrainingSample:
        """The sample with the pools that were given for all; the first is the clip's subject."""
        if not self.pools:
            return sample
        subject, *others = self.pools
        people = replace(sample.people[0], pool=subject), *map(Person, others)
        return replace(sample, people=people)


@dataclass(frozen=True, eq=False)
class Goal:
    """An objective before there is a model."""

    settings: SamplingSettings
    reward: Reward


class ModelChoice(Protocol):
    """A video model that is not open yet, with all it needs."""

    @property
    def preset(self) -> Preset:
        """Its own settings, where nobody gives others."""
        ...

    @property
    def files(self) -> Mapping[str, str]:
        """For config.json."""
        ...

    def open_studio(
        self, faces: Path | None, tuning: Tuning | None = None, *, text: Text | None = None
    ) -> Studio:
        """
        Args:
            tuning: what the memory is planned for; None: sampling.
            text: in the place of the text encoder.
        """
        ...


@dataclass(frozen=True)
class TinyWorldModel:
    device: str = "cpu"

    @property
    def preset(self) -> Preset:
        from ..ipro_core.training.presets import PRESETS

        return PRESETS["tiny"]

    @property
    def files(self) -> dict[str, str]:
        return asdict(WanFiles())

    def open_studio(
        self, faces: Path | None, tuning: Tuning | None = None, *, text: Text | None = None
    ) -> Studio:
        from ..ipro_core.tinyworld import open_tiny_world

        studio = open_tiny_world(faces, self.device)
        return replace(studio, text=text) if text else studio


@dataclass(frozen=True)
class WanModel:
    wan: WanFiles
    framing: Framing
    device: DeviceSettings

    @property
    def preset(self) -> Preset:
        from ..ipro_core.training.presets import PRESETS

        return PRESETS["local-14b" if self.wan.high_noise else "local-5b"]

    @property
    def files(self) -> dict[str, str]:
        return asdict(self.wan)

    def open_studio(
        self, faces: Path | None, tuning: Tuning | None = None, *, text: Text | None = None
    ) -> Studio:
        from ..ipro_core.wan_studio import open_wan

        return open_wan(self.wan, faces, self.framing, self.device, tuning, text=text)


@dataclass(frozen=True)
class RunFolder:
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True, eq=False)
class Judged:
    comparison: Comparison
    run: RunFolder


def frames_of(given: Any) -> Tensor:
    """The host's IMAGE or VIDEO as (T, 3, H, W), a copy of our own that gradients may go through."""
    images_THWC = given if isinstance(given, Tensor) else given.get_components().images
    with torch.inference_mode(False):
        return images_THWC[..., :3].clone().movedim(-1, 1).float().contiguous()


def images_of(frames_TCHW: Tensor) -> Tensor:
    """(T, 3, H, W) as the host's IMAGE."""
    return frames_TCHW.detach().float().cpu().movedim(1, -1).contiguous()
