"""Sampling: videos by the base and by the tuned model, from the same noise (Eq. 3)."""

from dataclasses import fields, replace

import torch
from comfy_api.latest import io

from ..ipro_core.clips.scenes import ShownScene, fit
from ..ipro_core.sampling.flow import expert_switch, shifted_sigmas
from ..ipro_core.training.settings import SamplingSettings
from ..ipro_core.wan_settings import BOUNDARY
from . import _comfy
from ._sockets import (
    DATASET,
    MODEL,
    OBJECTIVE,
    RUN,
    Dataset,
    Goal,
    ModelChoice,
    RunFolder,
    frames_of,
    images_of,
)
from ._widgets import widgets

CATEGORY = "5 Sampling"
ADVICE = "choose fewer frames or a smaller size in the model's loader, or fewer resident_blocks."


class SampleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "SampleVideo",
            "Sample Video",
            CATEGORY,
            "A first frame and a prompt become a video twice from the same noise: by the base model, and "
            "with the run's adapter. Without a run the base model alone.",
            inputs=[
                MODEL.Input("video_model", tooltip="The model that was tuned."),
                io.Image.Input(
                    "first_frame",
                    optional=True,
                    tooltip="Scaled and cut to the model's size; none in text-to-video.",
                ),
                io.String.Input("prompt", multiline=True, default="", tooltip="What happens."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=True,
                    tooltip="One noise for one seed, base and tuned.",
                ),
                RUN.Input("run", optional=True, tooltip="Whose newest adapter is put on the model."),
                OBJECTIVE.Input(
                    "objective",
                    optional=True,
                    tooltip="Whose schedule is sampled; by default the run's own, else the model's.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="tuned", tooltip="With the adapter."),
                io.Image.Output(display_name="base", tooltip="Without it, from the same noise."),
                io.Float.Output(display_name="fps", tooltip="Frames per second, for Create Video."),
            ],
        )

    @classmethod
    @_comfy.working(ADVICE)
    def execute(
        cls, video_model: ModelChoice, prompt: str, seed: int, first_frame=None, run=None, objective=None
    ) -> io.NodeOutput:
        from ..ipro_core.job import adapter_of_run, check_run_fits
        from ..ipro_core.studio import Sampler

        studio = video_model.open_studio(None)
        settings = schedule(video_model, run, objective)
        settings = studio.fit(settings, asked=False, known=True)
        if run:
            check_run_fits(run.folder, studio)
        studio = studio.watched(_comfy.look)
        if first_frame is None and not studio.kind.startswith("T2V"):
            raise ValueError(f"{studio.kind} makes a video of a picture: connect its first_frame.")
        size = (1, 3, studio.framing.height, studio.framing.width)
        first = torch.zeros(size) if first_frame is None else frames_of(first_frame)[:1]
        first_CHW = fit(first, studio.framing)[0]
        scene = ShownScene("video", prompt, first_CHW.expand(studio.framing.frames, -1, -1, -1))
        for work in studio.prepare([scene], settings, [seed], faces=False):
            list(work.items)
        model = studio.model.open()
        if run:
            model.place_adapter(adapter_of_run(run.folder)[1])
        sampler, progress = Sampler(studio, model, studio.codec.open(), settings), _comfy.bar(2)
        base_TCHW = tuned_TCHW = sampler.generate(scene, seed, frozen=True)
        progress.update_absolute(1, 2)
        if run:
            tuned_TCHW = sampler.generate(scene, seed)
        return io.NodeOutput(images_of(tuned_TCHW), images_of(base_TCHW), studio.framing.fps)


class LightningSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        others = [knob.name for knob in fields(SamplingSettings) if knob.name not in ("steps", "shift")]
        return _comfy.schema(
            "LightningSchedule",
            "Lightning Schedule",
            CATEGORY,
            "The noise levels that IPRO tunes at, for the host's SamplerCustom with euler: split where the "
            "low-noise expert takes over by its training, and not in the middle.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(BOUNDARY),
                    tooltip="Whose two experts: I2V-A14B's part at noise level 0.9, T2V-14B's at 0.875.",
                ),
                *widgets(SamplingSettings, without=others),
            ],
            outputs=[
                io.Sigmas.Output(display_name="high_sigmas", tooltip="For the high-noise expert."),
                io.Sigmas.Output(
                    display_name="low_sigmas",
                    tooltip="For the low-noise expert, which goes on from the other's output: add no noise.",
                ),
                io.Int.Output(
                    display_name="split",
                    tooltip="The low-noise expert's first step, as KSamplerAdvanced and Apply LoRA count.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: str, steps: int, shift: float) -> io.NodeOutput:
        sigmas, split = shifted_sigmas(steps, shift), expert_switch(steps, shift, BOUNDARY[model])
        return io.NodeOutput(sigmas[: split + 1], sigmas[split:], split)


class BoundaryLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "BoundaryLatents",
            "Boundary Latents",
            CATEGORY,
            "All that comes before tuning, made ahead of it: prompts, first frames, face pools, and what the "
            "frozen high-noise expert makes of each clip and noise up to the boundary. It is kept in "
            "output/ipro/cache, and Train takes it from there; what was broken off goes on.",
            inputs=[
                MODEL.Input("video_model", tooltip="The model that will be tuned."),
                DATASET.Input("dataset", tooltip="What it will be tuned on."),
                OBJECTIVE.Input("objective", tooltip="Whose schedule and boundary_seeds count."),
            ],
            outputs=[
                DATASET.Output(display_name="prepared", tooltip="The same dataset, for Train."),
                io.Int.Output(display_name="latents", tooltip="How many there are: clips times noises."),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working(ADVICE)
    def execute(cls, video_model: ModelChoice, dataset: Dataset, objective: Goal) -> io.NodeOutput:
        from ..ipro_core.job import Job

        studio = dataset.open_studio(video_model)
        settings = studio.fit(objective.settings, asked=False, known=True)
        job = Job(studio, replace(video_model.preset, method=settings), video_model.files)
        scenes = dataset.clips.scenes(studio)
        for work in job.watched(_comfy.look).prepare(scenes):
            for _ in _comfy.shown(work.items, work.total):
                pass
        if studio.high_noise is None:
            told = f"{studio.base} is one network for all steps: there is no boundary to prepare."
            return io.NodeOutput(dataset, 0, ui={"ipro_warning": [told]})
        return io.NodeOutput(dataset, len(studio.with_faces(scenes)) * len(job.seeds))


def schedule(model: ModelChoice, run: RunFolder | None, goal: Goal | None) -> SamplingSettings:
    """The settings that are sampled by."""
    from ..ipro_core.runs import read_config
    from ..ipro_core.training.presets import Preset

    if goal:
        return goal.settings
    return Preset.from_config(read_config(run.folder)).method if run else model.preset.method


NODES = [LightningSchedule, BoundaryLatents, SampleVideo]
