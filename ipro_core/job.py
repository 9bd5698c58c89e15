"""A job: a studio, the plan its model is tuned by, and the run that comes of it; for commands and graphs.

The stages of preparation, then the updates, are iterated over by whoever shows them and may break them off:
between two of them by leaving, within one by what `watched` is given.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cache import name_of
from .clips.scenes import Scene
from .evaluation.compare import refuse_own_judge
from .models.lora import SETTINGS, LowRank, write_lora
from .runs import Run, latest_state, read_config
from .studio import Sampler, Samples, Studio, Work
from .tinyworld import VIDEO_MODEL
from .training.ipro import IproObjective, TrainingSample
from .training.loop import adapter_of, train
from .training.presets import Preset
from .types import StepRecord

logger = logging.getLogger("ipro")

LORA = "ipro.safetensors"
FIRST_SEED = 1_000_000
"""Of boundary latents for training: what is judged and sampled with the seeds 0, 1, … was not tuned on."""


@dataclass(frozen=True, eq=False)
class Job:
    """A studio and a plan, settled before anything large is loaded."""

    studio: Studio
    plan: Preset
    files: Mapping[str, str]
    """The files that the user or the run named; "" where none is."""

    @property
    def is_wan(self) -> bool:
        return bool(self.files["model"])

    @property
    def seeds(self) -> range:
        """Of the boundary latents that training begins from."""
        return range(FIRST_SEED, FIRST_SEED + self.plan.ipro.boundary_seeds)

    def config(self, clips: Sequence[str], scenes: int, told: str) -> dict[str, Any]:
        """What config.json keeps: settings, and what all else that the numbers depend on is told by.

        Args:
            clips: the video files, none for the embedded world's scenes.
            scenes: how many of the embedded world's.
            told: tells the scenes from any others.
        """
        identities = {**self.studio.identities(), "clips": told}
        return {
            "files": dict(self.files),
            "clips": list(clips),
            "scenes": scenes,
            "sha256": identities,
            **self.plan.config(),
        }

    def watched(self, look: Callable[[], None]) -> "Job":
        """See `Studio.watched`."""
        return replace(self, studio=self.studio.watched(look))

    def prepare(self, scenes: Sequence[Scene]) -> Iterator[Work]:
        """What training wants of scenes, stage by stage."""
        return self.studio.prepare(scenes, self.plan.ipro, self.seeds)


class Tuner:
    """A job whose networks are open, with a fresh adapter on its model."""

    def __init__(
        self,
        job: Job,
        scenes: Sequence[Scene],
        adjust: Callable[[TrainingSample], TrainingSample] = lambda sample: sample,
    ) -> None:
        """
        Args:
            scenes: prepared, each with a face.
            adjust: the last word on each sample that is drawn.
        """
        studio, self.plan = job.studio, job.plan
        self.model = studio.model.open()
        self.model.new_adapter(self.plan.rank, seed=self.plan.loop.seed)
        codec, models = studio.codec.open(), studio.faces.open()
        looking = studio.looking(codec, *models)
        self.objective = IproObjective(self.model, looking, *models, self.plan.reward, self.plan.ipro)
        self.samples = Samples(studio, scenes, self.plan.ipro, job.seeds, adjust)
        self.sampler = Sampler(studio, self.model, codec, self.plan.ipro)

    def records(self, run: Run | None = None) -> Generator[StepRecord, None, None]:
        """See `training.loop.train`."""
        return train(self.model, self.objective, self.samples, self.plan.loop, run)


class NoFaceError(ValueError):
    """No clip shows a face."""


def usable(studio: Studio, scenes: Sequence[Scene]) -> list[Scene]:
    """The prepared scenes that show a face.

    Raises:
        NoFaceError: there is none.
    """
    kept = studio.with_faces(scenes)
    left_out = [scene.name for scene in scenes if scene not in kept]
    if not kept:
        raise NoFaceError("No clip shows a face that is large enough: give clips that do.")
    if left_out:
        logger.warning("Left out for want of a face: %s.", ", ".join(left_out))
    return kept


def showing_faces(studio: Studio, scenes: Iterable[Scene]) -> list[Scene]:
    """The scenes whose input image shows a face to compare with."""
    detector, _ = studio.faces.open()
    return [scene for scene in scenes if detector.detect(scene.first()[None])[0]]


def name_of_scenes(scenes: Sequence[Scene]) -> str:
    """Tells scenes from any others, by what they show and ask for."""
    return name_of(
        {"clips": [{"name": scene.name, "prompt": scene.prompt, **scene.key()} for scene in scenes]}
    )


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the paths of this machine."""
    return {name: value for name, value in config.items() if name not in ("files", "clips")}


def adapter_of_run(run: Path) -> tuple[int, dict[str, LowRank]]:
    """The update of a run's newest state, and its adapter by layer."""
    state = latest_state(run)
    if state is None:
        raise ValueError(f"The run in {run} has no state yet: let it train first.")
    kept, rank = adapter_of(state), read_config(run)["rank"]
    names = [name.removesuffix(".lora_A.weight") for name in kept if name.endswith(".lora_A.weight")]
    layers = {
        name: LowRank(kept[f"{name}.lora_A.weight"], kept[f"{name}.lora_B.weight"], rank) for name in names
    }
    return state.step, layers


def check_run_fits(run: Path, studio: Studio) -> None:
    """Raise ValueError, before the network is opened, where a run's adapter is of another."""
    for name, layer in adapter_of_run(run)[1].items():
        shape = (len(layer.up_OR), layer.down_RI.shape[1])
        if studio.shapes.get(f"{name}.weight") != shape:
            raise ValueError(
                f"The adapter in {run} is of another network: its {name}, {shape}, does not fit "
                f"{studio.base}; leave out --model, or give the network it was tuned on."
            )


def check_judge(studio: Studio) -> None:
    """Raise ValueError, before anything is prepared, where the judge is the reward's own recogniser."""
    if studio.judge is not None:
        refuse_own_judge(studio.faces.identity().rpartition(", ")[2], studio.judge.identity())


def save_adapter(run: Path, path: Path) -> int:
    """Write the adapter of a run's newest state; returns the update it is of. No network is opened for it."""
    config = read_config(run)
    step, layers = adapter_of_run(run)
    notes = {
        "ipro.base": Path(config["files"]["model"] or VIDEO_MODEL).name,
        "ipro.base_sha256": config["sha256"]["model"].split(" ")[0],
        SETTINGS: json.dumps(shareable(config)),
    }
    write_lora(layers, path, notes)
    return step
