"""Training: what is optimised, the run that does it, and the LoRA that comes of it (Eq. 3, Section 5.1)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..ipro_core.training.base import method_catalogue
from ..ipro_core.training.settings import LoopSettings, SamplingSettings
from . import _comfy
from ._monitor import Monitor, latest_sample, run_folder, run_told, write_sample
from ._sockets import DATASET, MODEL, OBJECTIVE, REWARD, RUN, Dataset, Goal, ModelChoice, RunFolder
from ._widgets import settings_of, widgets

if TYPE_CHECKING:
    from ..ipro_core.job import Job
    from ..ipro_core.training.presets import Preset

CATEGORY = "6 Training"
ADVICE = (
    "choose fewer frames or a smaller size in the model's loader, there states_on_host yes, kept_attentions "
    "0 and fewer resident_blocks, and here microbatch 1 and kept_passes 1. The run is saved: queue again to "
    "go on."
)
MOVED = ("files", "clips", "loop")
"""What does not name a run: its number of updates, and where files lie; what they hold is compared."""


def objective_node(name: str, kind: type[SamplingSettings]) -> type[io.ComfyNode]:
    """The node of one method: its knobs and the reward in, the objective out."""

    class ObjectiveNode(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return _comfy.schema(
                # The first method's, which had no other beside it.
                "Objective" if name == "ipro" else f"{kind.__name__.removesuffix('Settings')}Objective",
                f"{kind.title} Objective",
                CATEGORY,
                " ".join(inspect.getdoc(kind).split()),  # type: ignore[union-attr]
                inputs=[
                    REWARD.Input("reward", tooltip="What is rewarded."),
                    *widgets(kind, plain=("steps", "shift", *kind.plain)),
                ],
                outputs=[OBJECTIVE.Output(display_name="objective", tooltip="For Train and Sample Video.")],
            )

        @classmethod
        def execute(cls, reward, **knobs: Any) -> io.NodeOutput:
            return io.NodeOutput(Goal(settings_of(kind, knobs), reward))

    ObjectiveNode.__name__ = ObjectiveNode.__qualname__ = kind.__name__.replace("Settings", "Objective")
    return ObjectiveNode


class Train(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "Train",
            "Train",
            CATEGORY,
            "Tune a LoRA. The run lies in output/ipro and is named after its settings: Cancel saves it "
            "within one sampling step, and queueing the same graph again goes on where it was, or takes "
            "what was finished.",
            inputs=[
                MODEL.Input("video_model", tooltip="What is tuned: of two experts the low-noise one."),
                DATASET.Input("dataset", tooltip="What it is tuned on."),
                OBJECTIVE.Input("objective", tooltip="What is optimised."),
                io.String.Input(
                    "name", default="identity", tooltip="The run's name, before its settings' own."
                ),
                io.Int.Input("rank", default=32, min=1, max=512, tooltip="Rank of the LoRA; its alpha too."),
                *widgets(LoopSettings, plain=("updates", "batch_size", "learning_rate", "seed")),
                _sample_every(),
            ],
            outputs=_results(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working(ADVICE)
    def execute(
        cls,
        video_model: ModelChoice,
        dataset: Dataset,
        objective: Goal,
        name: str,
        rank: int,
        sample_every: int,
        **loop: Any,
    ) -> io.NodeOutput:
        from ..ipro_core.training.presets import Preset

        plan = Preset(settings_of(LoopSettings, loop), objective.settings, objective.reward, rank)
        job = opened(video_model, dataset, plan)
        config = settled(job, dataset)
        folder = named(config, name)
        return trained(cls.hidden.unique_id, job, dataset, config, folder, sample_every)


def opened(model: ModelChoice, dataset: Dataset, plan: Preset) -> Job:
    """A job by this plan, but for what the model decides: its size, and where its part begins."""
    from ..ipro_core.job import Job

    dataset.check_for(plan.method)
    studio = dataset.open_studio(model, (plan.method, plan.rank))
    plan = replace(plan, method=studio.fit(plan.method, asked=False, known=True), framing=studio.framing)
    others = {"prompt_scorer": dataset.scorer, "face_encoder": dataset.face_encoder}
    return Job(studio, plan, {**model.files, "faces": str(dataset.faces), **others})


def settled(job: Job, dataset: Dataset) -> dict[str, Any]:
    """The run's settings."""
    told = dataset.clips.name(job.studio)
    told += "".join(f" {pool.name}" for pool in dataset.pools)
    return job.config([str(video) for video in dataset.clips.videos], dataset.clips.count, told)


def named(config: Mapping[str, Any], name: str) -> Path:
    """The run's folder, which is named after its settings."""
    from ..ipro_core.cache import name_of
    from ..ipro_core.training.loop import MAY_DIFFER

    kept = {part: value for part, value in config.items() if part not in MOVED}
    kept["loop"] = {k: v for k, v in config["loop"].items() if f"loop.{k}" not in MAY_DIFFER}
    readable = re.sub(r"[^\w-]+", "-", name).strip("-") or "run"
    return run_folder(f"{readable}-{name_of(kept)[:8]}")


def trained(
    node: str, job: Job, dataset: Dataset, config: Mapping[str, Any], folder: Path, sample_every: int
) -> io.NodeOutput:
    """A run that is finished, whether it had begun or not."""
    from ..ipro_core.runs import latest_state

    updates = job.plan.loop.updates
    with Monitor(node, folder, updates) as monitor:
        state = latest_state(folder)
        if state is None or state.step < updates:
            tune(job.watched(_comfy.look), dataset, config, folder, monitor, sample_every)
    return io.NodeOutput(*results(folder), ui={"ipro_run": [run_told(folder)]})


def tune(
    job: Job, dataset: Dataset, config: Mapping[str, Any], folder: Path, monitor: Monitor, sample_every: int
) -> None:
    """Begin the run, or go on with it."""
    from ..ipro_core.job import FIRST_SEED, Tuner, usable
    from ..ipro_core.runs import Run
    from ..ipro_core.training.loop import MAY_DIFFER

    device = str(job.studio.device)
    may_differ = (*MAY_DIFFER, "clips", *(f"files.{file}" for file in config["files"]))
    opened = (
        Run.open(folder, config, may_differ=may_differ, device=device)
        if (folder / "config.json").exists()
        else Run.create(folder, config, device=device)
    )
    with opened as run:
        scenes = dataset.clips.scenes(job.studio)
        for work in job.prepare(scenes):
            for _ in _comfy.shown(work.items, work.total):
                pass
        scenes = usable(job.studio, scenes)
        tuner = Tuner(job, scenes, dataset.with_pools)
        monitor.begin_steps()
        progress, updates = _comfy.bar(job.plan.loop.updates), job.plan.loop.updates
        with closing(tuner.records(run)) as records:
            for record in records:
                if sample_every and (record.step % sample_every == 0 or record.step == updates):
                    videos = {
                        which: tuner.sampler.generate(scenes[0], FIRST_SEED, frozen=which == "base")
                        for which in ("base", "tuned")
                    }
                    write_sample(folder, record.step, videos, job.studio.framing.fps)
                monitor.tell_step(record, latest_sample(folder))
                progress.update_absolute(record.step, updates)


def results(folder: Path) -> tuple[RunFolder, dict[str, Any], dict[str, list[float]]]:
    """What a run leaves: itself, its adapter by the host's names, and the loss of each update."""
    from ..ipro_core.job import LORA, adapter_of_run, save_adapter
    from ..ipro_core.models.lora import lora_tensors
    from ..ipro_core.runs import read_metrics

    loss = [record.metrics["loss"] for record in read_metrics(folder)]
    save_adapter(folder, folder / "adapters" / LORA)
    return RunFolder(folder), lora_tensors(adapter_of_run(folder)[1]), {"loss": loss}


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "SaveLora",
            "Save LoRA",
            CATEGORY,
            "Write a run's newest adapter to models/loras, with its settings in the file. Press R to find it "
            "in the host's own LoRA loaders; for I2V-A14B it belongs on the low-noise model.",
            inputs=[
                RUN.Input("run", tooltip="From Train."),
                io.String.Input(
                    "file",
                    default="ipro/identity",
                    tooltip="In models/loras, without .safetensors. A file of that name is replaced.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="lora_name", tooltip="As the host's LoRA loaders list it.")
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("free some memory.")
    def execute(cls, run: RunFolder, file: str) -> io.NodeOutput:
        from ..ipro_core.job import save_adapter

        name = f"{file.removesuffix('.safetensors')}.safetensors"
        path = _comfy.inside(_comfy.lora_folder(), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(run.folder, path)
        return io.NodeOutput(name)


class LoadRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "LoadRun",
            "Load Run",
            CATEGORY,
            "A run that lies in output/ipro, as far as it has come. To go on with it, queue the graph that "
            "began it, or use Resume Run.",
            inputs=[io.Combo.Input("run", options=_runs(), tooltip="A folder in output/ipro.")],
            outputs=_results(),
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, run: str) -> int:
        from ..ipro_core.runs import read_metrics

        return len(read_metrics(run_folder(run)))

    @classmethod
    @_comfy.working("free some memory.")
    def execute(cls, run: str) -> io.NodeOutput:
        folder = run_folder(run)
        return io.NodeOutput(*results(folder), ui={"ipro_run": [run_told(folder)]})


class ResumeRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "ResumeRun",
            "Resume Run",
            CATEGORY,
            "Go on with a run in output/ipro by its own settings, as if it had never been broken off; or "
            "further than it was to go. A model or dataset other than it was begun with is refused.",
            inputs=[
                io.Combo.Input("run", options=_runs(), tooltip="A folder in output/ipro."),
                MODEL.Input("video_model", tooltip="The model that it tunes; its files may have moved."),
                DATASET.Input("dataset", tooltip="What it is tuned on."),
                io.Int.Input(
                    "updates",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="How many it is to have in all; 0: as many as it was begun for.",
                ),
                _sample_every(),
            ],
            outputs=_results(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working(ADVICE)
    def execute(
        cls, run: str, video_model: ModelChoice, dataset: Dataset, updates: int, sample_every: int
    ) -> io.NodeOutput:
        from ..ipro_core.runs import read_config
        from ..ipro_core.training.presets import Preset

        folder = run_folder(run)
        plan = Preset.from_config(read_config(folder))
        plan = replace(plan, loop=replace(plan.loop, updates=updates or plan.loop.updates))
        job = opened(video_model, dataset, plan)
        config = settled(job, dataset)
        return trained(cls.hidden.unique_id, job, dataset, config, folder, sample_every)


def _sample_every() -> Any:
    told = "Updates between two videos of the first clip, base and tuned from the same noise; 0: none."
    return io.Int.Input("sample_every", default=20, min=0, max=100_000, tooltip=told)


def _results() -> list[Any]:
    return [
        RUN.Output(display_name="run", tooltip="For Sample Video, Compare Runs and Save LoRA."),
        io.LoraModel.Output(display_name="lora", tooltip="Its adapter, for the host's Load LoRA Model."),
        io.LossMap.Output(display_name="loss", tooltip="What was minimised, for the host's Plot Loss Graph."),
    ]


def _runs() -> list[str]:
    return sorted(config.parent.name for config in run_folder("").glob("*/config.json"))


NODES = [objective_node(name, kind) for name, kind in method_catalogue().items()]
NODES += [Train, ResumeRun, LoadRun, SaveLora]
