"""Evaluation: base against tuned, and what speaks against it (Tables 1 to 6)."""

import json
from collections.abc import Iterator
from pathlib import Path

from comfy_api.latest import io

from ..ipro_core.evaluation.compare import SceneVideos, compare_videos
from ..ipro_core.evaluation.report import write_report
from ..ipro_core.evaluation.verdict import Comparison
from ..ipro_core.job import adapter_of_run, check_run_fits, shareable, showing_faces
from ..ipro_core.runs import read_config, read_metrics
from ..ipro_core.studio import Sampler, Studio
from ..ipro_core.training.presets import Preset
from . import _comfy
from ._compared import told
from ._monitor import run_folder
from ._sockets import (
    CLIPS,
    COMPARISON,
    FACE_MODELS,
    MODEL,
    RUN,
    ClipChoice,
    Judged,
    ModelChoice,
    RunFolder,
)

CATEGORY = "7 Evaluation"
KL_UPDATES = 10
"""The KL that is told is the mean over this many last updates."""


class CompareRuns(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "CompareRuns",
            "Compare Runs",
            CATEGORY,
            "Base against tuned on clips of people that were never tuned on: same scene, prompt, seed and "
            "noise, so that only the adapter differs. A second recogniser judges beside, where there is "
            "one.",
            inputs=[
                MODEL.Input("video_model", tooltip="The model that was tuned."),
                RUN.Input("run", tooltip="Whose newest adapter is judged."),
                CLIPS.Input("clips", tooltip="Other people's clips, each with a face in its first frame."),
                FACE_MODELS.Input("face_models", tooltip="The reward's own."),
                io.Int.Input(
                    "seeds", default=2, min=1, max=100, tooltip="Videos of each clip by each model."
                ),
            ],
            outputs=[
                COMPARISON.Output(display_name="comparison", tooltip="For Report."),
                io.Float.Output(display_name="gain", tooltip="FaceSim, tuned less base."),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("choose fewer frames or a smaller size in the model's loader, or fewer resident_blocks.")
    def execute(
        cls, video_model: ModelChoice, run: RunFolder, clips: ClipChoice, face_models: Path, seeds: int
    ) -> io.NodeOutput:
        studio = video_model.open_studio(face_models)
        check_run_fits(run.folder, studio)
        comparison, first = judge(studio.watched(_comfy.look), run, clips, range(seeds))
        pair = comparison.pairs[0]
        shown = told(
            studio.framing.fps,
            {"base": first.base_TCHW, "tuned": first.tuned_TCHW},
            [pair.base.facesim.cosine_T, pair.tuned.facesim.cosine_T],
            comparison.figures(),
            " ".join(comparison.hack_flags),
        )
        return io.NodeOutput(Judged(comparison, run), comparison.gain.mean, ui=shown)


def judge(studio: Studio, run: RunFolder, clips: ClipChoice, seeds: range) -> tuple[Comparison, SceneVideos]:
    """Every clip with every seed; and the first pair, to look at."""
    settings = studio.fit(Preset.from_config(read_config(run.folder)).ipro, asked=False, known=True)
    scenes = showing_faces(studio, clips.scenes(studio))
    if not scenes:
        raise ValueError("No clip shows a face in its first frame, to compare with: choose others.")
    for work in studio.prepare(scenes, settings, seeds, faces=False):
        for _ in _comfy.shown(work.items, work.total):
            pass
    model = studio.model.open()
    model.place_adapter(adapter_of_run(run.folder)[1])
    sampler, seen = Sampler(studio, model, studio.codec.open(), settings), list[SceneVideos]()

    def watched() -> Iterator[SceneVideos]:
        for pair in _comfy.shown(sampler.pairs(scenes, seeds), len(scenes) * len(seeds)):
            seen.append(pair) if not seen else None
            yield pair

    last = read_metrics(run.folder)[-KL_UPDATES:]
    kl = sum(step.metrics["kl"] for step in last) / len(last) if last else None
    other = studio.judge.open() if studio.judge else None
    return compare_videos(watched(), *studio.faces.open(), other, kl=kl), seen[0]


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "Report",
            "Report",
            CATEGORY,
            "One page of all that was measured, with intervals, film strips, and the signs of a hack: "
            "report.html in the run's folder.",
            inputs=[COMPARISON.Input("comparison", tooltip="From Compare Runs.")],
            outputs=[
                io.String.Output(display_name="report", tooltip="Where the page lies, in the output folder.")
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("free some memory.")
    def execute(cls, comparison: Judged) -> io.NodeOutput:
        folder, measured = run_folder(comparison.run.name), comparison.comparison
        environment = json.loads((folder / "environment.json").read_text())
        steps, settings = read_metrics(folder), shareable(read_config(folder))
        path = folder / "report.html"
        write_report(path, measured, steps=steps, settings=settings, environment=environment)
        place = path.relative_to(_comfy.output_folder()).as_posix()
        return io.NodeOutput(place, ui={"ipro_warning": list(measured.hack_flags)})


NODES = [CompareRuns, Report]
