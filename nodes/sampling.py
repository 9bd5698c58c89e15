"""Sampling: videos by the base and by the tuned model, from the same noise (Eq. 3)."""

from comfy_api.latest import io

from ..ipro_core.clips.scenes import ShownScene, fit
from ..ipro_core.job import adapter_of_run, check_run_fits
from ..ipro_core.runs import read_config
from ..ipro_core.studio import Sampler
from ..ipro_core.training.ipro import IproSettings
from ..ipro_core.training.presets import Preset
from . import _comfy
from ._sockets import MODEL, OBJECTIVE, RUN, Goal, ModelChoice, RunFolder, frames_of, images_of

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
                io.Image.Input("first_frame", tooltip="Scaled and cut to the model's size."),
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
        cls, video_model: ModelChoice, first_frame, prompt: str, seed: int, run=None, objective=None
    ) -> io.NodeOutput:
        studio = video_model.open_studio(None)
        settings = schedule(video_model, run, objective)
        settings = studio.fit(settings, asked=False, known=True)
        if run:
            check_run_fits(run.folder, studio)
        studio = studio.watched(_comfy.look)
        first_CHW = fit(frames_of(first_frame)[:1], studio.framing)[0]
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


def schedule(model: ModelChoice, run: RunFolder | None, goal: Goal | None) -> IproSettings:
    """The settings that are sampled by."""
    if goal:
        return goal.settings
    return Preset.from_config(read_config(run.folder)).ipro if run else model.preset.ipro


NODES = [SampleVideo]
