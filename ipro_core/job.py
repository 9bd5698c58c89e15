"""A job: a studio, the plan its model is tuned by, and the run that comes of it; for commands and graphs.

The stages of preparation, then the updates, are iterated over by whoever shows them and may break them off:
between two of them by leaving, within one by what `watched` is given.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .cache import name_of
from .clips.person import PersonScene, person_scenes
from .clips.scenes import PreferredScene, Scene
from .evaluation.compare import refuse_own_judge
from .models.lora import RANGE, SETTINGS, LowRank, TunedRange, write_lora
from .runs import Run, latest_state, read_config, read_metrics
from .sampling.flow import shifted_sigmas, switch_step
from .scorer import load_image_encoder, load_scorer, scorer_name
from .scorer_files import open_scorer_file
from .studio import Network, Sampler, Studio, Work
from .tinyworld import VIDEO_MODEL
from .training.base import TrainingSample, objective_of
from .training.loop import adapter_of, train
from .training.personal_video import NO_SCORER
from .training.presets import Preset
from .training.settings import SamplingSettings
from .types import StepRecord
from .wan_settings import BOUNDARY, SCORER

logger = logging.getLogger("ipro")

LORA = "ipro.safetensors"
KL_UPDATES = 10
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
        return range(FIRST_SEED, FIRST_SEED + self.plan.method.boundary_seeds)

    def config(self, clips: Sequence[str], scenes: int, told: str) -> dict[str, Any]:
        """What config.json keeps: settings, and what all else that the numbers depend on is told by.

        Args:
            clips: the video files, none for the embedded world's scenes.
            scenes: how many of the embedded world's.
            told: tells the scenes from any others.
        """
        identities = {**self.studio.identities(), "clips": told}
        if "scorer" in self.plan.method.wants and self.studio.scorer:
            identities["prompt_scorer"] = self.studio.scorer.identity()
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
        """What training wants of scenes, stage by stage.

        Raises:
            ValueError: the method wants a network that nobody gave, or cannot use one that was given.
        """
        method, voted = self.plan.method, are_voted(scenes)
        if "scorer" in method.wants and self.studio.scorer is None:
            raise ValueError(NO_SCORER)
        if self.studio.face_encoder and method.people != 1:
            raise ValueError("To CLIP all faces are alike: with --face-encoder give 1 for --people.")
        return self.studio.prepare(
            scenes,
            method,
            self.seeds if method.samples and not voted else (),
            faces="faces" in method.wants and not voted,
            videos="video" in method.wants or voted,
        )


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
        codec, models, scorer = studio.codec.open(), studio.compared_faces(), None
        looking = studio.looking(codec, *models)
        if "scorer" in self.plan.method.wants and studio.scorer:
            looking, scorer = codec, studio.scorer.open()  # it looks at whole frames, and no draft has them
        objective = objective_of(self.plan.method)
        self.objective = objective(self.model, looking, *models, self.plan.reward, self.plan.method, scorer)
        self.samples = Samples(studio, scenes, self.plan.method, job.seeds, adjust)
        self.sampler = Sampler(studio, self.model, codec, self.plan.method)

    def records(self, run: Run | None = None) -> Generator[StepRecord, None, None]:
        """See `training.loop.train`."""
        return train(self.model, self.objective, self.samples, self.plan.loop, run)


def with_scorer(
    studio: Studio,
    scorer: str,
    face_encoder: str,
    memo: Path | None = None,
    tokenizer: Path | None = None,
) -> Studio:
    """The studio with a text-image scorer and a face encoder by file; "" leaves what it has.

    Args:
        memo: see `files.sha256`.
        tokenizer: see `load_scorer`.

    Raises:
        ValueError: a file is missing, damaged, or no CLIP; or the scorer's tower is wanted and there is none.
    """
    if scorer:
        open_scorer_file(scorer)  # what is wrong is told now
        opened = partial(load_scorer, scorer, studio.device, memo, tokenizer)
        studio = replace(studio, scorer=Network(partial(scorer_name, scorer, memo), opened))
    if face_encoder == SCORER:
        if studio.scorer is None:
            raise ValueError(
                "There is no scorer whose image tower could compare faces: give --prompt-scorer."
            )
        return replace(studio, face_encoder=studio.scorer)
    if face_encoder:
        open_scorer_file(face_encoder)
        name = partial(scorer_name, face_encoder, memo)
        opened = partial(load_image_encoder, face_encoder, studio.device, memo)
        studio = replace(studio, face_encoder=Network(name, opened))
    return studio


class Samples(Sequence[TrainingSample]):
    """Prepared scenes as training wants them, each read when it is drawn."""

    def __init__(
        self,
        studio: Studio,
        scenes: Sequence[Scene],
        settings: SamplingSettings,
        seeds: Sequence[int],
        adjust: Callable[[TrainingSample], TrainingSample] = lambda sample: sample,
    ):
        """adjust: the last word on each sample."""
        self._scenes, self._adjust = scenes, adjust
        self._read = partial(studio.training_sample, settings=settings, seeds=seeds)

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: Any) -> Any:
        return self._adjust(self._read(self._scenes[index]))


class NoFaceError(ValueError):
    """No clip shows a face."""


def are_voted(scenes: Sequence[Scene]) -> bool:
    """Whether these are pairs of videos of which people have preferred one."""
    return any(isinstance(scene, PreferredScene) for scene in scenes)


def usable(studio: Studio, scenes: Sequence[Scene]) -> list[Scene]:
    """The prepared scenes that show a face; of pairs that people have voted on all.

    Raises:
        NoFaceError: there is none.
    """
    if are_voted(scenes):
        return list(scenes)
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


def person_of(studio: Studio, pictures: Sequence[Tensor], prompts: Sequence[str]) -> list[PersonScene]:
    """One person's pictures with each prompt, without those of image-to-video that would begin with no face.

    Raises:
        NoFaceError: no picture shows one, as the model sees it.
    """
    with_first = not studio.kind.startswith("T2V")
    scenes = person_scenes(pictures, prompts, studio.framing, with_first=with_first)
    if not with_first:
        return scenes
    firsts = {scene.shown: scene for scene in scenes}
    begun = showing_faces(studio, firsts.values())
    kept = [scene for scene in scenes if firsts[scene.shown] in begun]
    if not kept:
        raise NoFaceError("No picture shows a face, as the model sees it: give others of the person.")
    if len(kept) < len(scenes):
        logger.warning(
            "%d of %d prompts would begin with a picture whose middle shows no face, and are left out.",
            len(scenes) - len(kept),
            len(scenes),
        )
    return kept


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


def recent_kl(run: Path) -> float | None:
    """The KL that is told of a run: the mean over its last updates; None where it was not measured."""
    last = read_metrics(run)[-KL_UPDATES:]
    measured = [step.metrics["kl"] for step in last if "kl" in step.metrics]
    return sum(measured) / len(measured) if measured else None


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
        **_range(config),
    }
    write_lora(layers, path, notes)
    return step


def _range(config: Mapping[str, Any]) -> dict[str, str]:
    """The note of the steps that the adapter is on at, unless they are all that its network takes."""
    method = config[config.get("method", "ipro")]
    first, steps, shift = (method[name] for name in ("first_tuned_step", "steps", "shift"))
    if "high_noise" in config["sha256"]:
        sigmas = shifted_sigmas(steps, shift)
        first = first if first > max(switch_step(sigmas, level) for level in BOUNDARY.values()) else 0
    return {RANGE: json.dumps(TunedRange(first, steps, steps, shift)._asdict())} if first else {}
