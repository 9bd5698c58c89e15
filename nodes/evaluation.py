"""Evaluation: base against tuned, and what speaks against it (Tables 1 to 6)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from torch import Tensor

from ..ipro_core.evaluation.study_design import QUESTIONS, StudySettings
from . import _comfy
from ._compared import told
from ._monitor import run_folder
from ._sockets import (
    CLIPS,
    COMPARISON,
    DATASET,
    FACE_MODELS,
    MODEL,
    RUN,
    ClipChoice,
    Dataset,
    Judged,
    ModelChoice,
    RunFolder,
    VotedChoice,
    frames_of,
)
from ._study import opened, study_folder
from ._widgets import settings_of, widgets

if TYPE_CHECKING:
    from ..ipro_core.evaluation.compare import SceneVideos
    from ..ipro_core.evaluation.verdict import Comparison
    from ..ipro_core.studio import Studio

CATEGORY = "7 Evaluation"


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
        from ..ipro_core.job import check_run_fits

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
    from ..ipro_core.evaluation.compare import compare_videos
    from ..ipro_core.job import adapter_of_run, recent_kl, showing_faces
    from ..ipro_core.runs import read_config
    from ..ipro_core.studio import Sampler
    from ..ipro_core.training.presets import Preset

    settings = studio.fit(Preset.from_config(read_config(run.folder)).method, asked=False, known=True)
    scenes = showing_faces(studio, clips.scenes(studio))
    if not scenes:
        raise ValueError("No clip shows a face in its first frame, to compare with: choose others.")
    for work in studio.prepare(scenes, settings, seeds, faces=False):
        for _ in _comfy.shown(work.items, work.total):
            pass
    model = studio.model.open()
    model.place_adapter(adapter_of_run(run.folder)[1])
    sampler = Sampler(studio, model, studio.codec.open(), settings)
    seen: list[SceneVideos] = []

    def watched() -> Iterator[SceneVideos]:
        for pair in _comfy.shown(sampler.pairs(scenes, seeds), len(scenes) * len(seeds)):
            seen.append(pair) if not seen else None
            yield pair

    other = studio.judge.open() if studio.judge else None
    return compare_videos(watched(), *studio.faces.open(), other, kl=recent_kl(run.folder)), seen[0]


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
        from ..ipro_core.evaluation.report import write_report
        from ..ipro_core.job import shareable
        from ..ipro_core.runs import read_config, read_metrics

        folder, measured = run_folder(comparison.run.name), comparison.comparison
        environment = json.loads((folder / "environment.json").read_text())
        steps, settings = read_metrics(folder), shareable(read_config(folder))
        path = folder / "report.html"
        write_report(path, measured, steps=steps, settings=settings, environment=environment)
        place = path.relative_to(_comfy.output_folder()).as_posix()
        return io.NodeOutput(place, ui={"ipro_warning": list(measured.hack_flags)})


class UserStudy(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        others = [
            io.MultiType.Input(
                f"video_{number}",
                [io.Image, io.Video],
                optional=True,
                tooltip=f"The video of this scene by the method that is named {words}.",
            )
            for number, words in enumerate(("first", "second", "third", "fourth"), start=1)
        ]
        return _comfy.schema(
            "UserStudy",
            "User Study",
            CATEGORY,
            "Have people judge videos blind, side by side, in their browsers. Every run adds one scene, or a "
            "folder of them, until the first voter begins; then it tells what is said so far.",
            inputs=[
                io.String.Input(
                    "name", default="study", tooltip="The study's; another name is another study."
                ),
                io.String.Input("methods", default="base, tuned", tooltip="In the order of the videos."),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Instead of videos: a folder in the output, with one folder of videos a method, "
                    "as `ipro evaluate --keep-videos` leaves it.",
                ),
                io.String.Input(
                    "scene", default="", tooltip="Person and first frame; empty: told by the image."
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="Shown, and asked about if there is one."
                ),
                io.Float.Input(
                    "fps", default=16.0, min=0.1, max=240, step=1, tooltip="Of videos given as images."
                ),
                *widgets(StudySettings, plain=("controls", "pairs")),
                *others,
                io.Image.Input("image", optional=True, tooltip="The input image, shown above the videos."),
            ],
            outputs=[io.String.Output(display_name="address", tooltip="Of the study, on this server.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # votes have come in since

    @classmethod
    @_comfy.working("give shorter or smaller videos, or a smaller max_side.")
    def execute(
        cls,
        name: str,
        methods: str,
        folder: str,
        scene: str,
        prompt: str,
        fps: float,
        image=None,
        **given: Any,
    ) -> io.NodeOutput:
        from ..ipro_core.evaluation.preferences import study_results
        from ..ipro_core.evaluation.study import Study
        from ..ipro_core.evaluation.study_sources import questions_for, read_sets
        from ..ipro_core.evaluation.study_words import results_in_words

        if folder.strip():
            sets = read_sets(_comfy.inside(_comfy.output_folder(), folder.strip()))
        else:
            sets = [_one_set(methods, given, fps, scene, prompt, image)]
        place = study_folder(name)
        watched = _comfy.shown(sets, len(sets))
        if not (place / "study.json").exists():
            settings, asked = settings_of(StudySettings, given), questions_for(sets, QUESTIONS)
            Study.make(place, "Which video is better?", asked, settings, watched)
        study = opened(place)
        for videos in watched:
            study.add(videos)
        counted, votes = study_results(study), study.ballots.votes()
        address = f"/ipro/study/{study.plan.id}/"
        told = {"address": address, "methods": study.plan.methods, "scenes": len(study.plan.scenes)}
        told |= {"voters": len({vote.voter for vote in votes}), "votes": len(votes)}
        told |= {"results": results_in_words(counted)}
        return io.NodeOutput(address, ui={"ipro_study": [told]})


class DatasetFromStudy(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "DatasetFromStudy",
            "Dataset from Study",
            CATEGORY,
            "The pairs of videos that a blind study's voters have decided, for DPO to learn from.",
            inputs=[
                io.String.Input("name", default="study", tooltip="The study's, as in User Study."),
                io.Combo.Input(
                    "question",
                    options=list(QUESTIONS),
                    tooltip="Whose votes count. A pair that is voted even is left out.",
                ),
                FACE_MODELS.Input("face_models", tooltip="For the videos that are sampled while tuning."),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Train, with a DPO Objective.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # votes have come in since

    @classmethod
    def execute(cls, name: str, question: str, face_models: Path) -> io.NodeOutput:
        from ..ipro_core.evaluation.preferred import voted_place

        return io.NodeOutput(Dataset(VotedChoice(voted_place(study_folder(name), question)), face_models))


def _one_set(
    methods: str, given: dict[str, Any], fps: float, scene: str, prompt: str, image: Tensor | None
) -> Any:
    """One scene of the videos that are linked, a `VideoSet`."""
    from ..ipro_core.evaluation.study import VideoSet
    from ..ipro_core.evaluation.study_videos import Take
    from ..ipro_core.files import fingerprint

    videos = [video for number in range(1, 5) if (video := given.get(f"video_{number}")) is not None]
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if len(names) != len(videos) or len(set(names)) != len(names) or len(videos) < 2:
        raise ValueError(
            f"{len(videos)} videos are linked, and methods names {len(names)}: link two or more, and name "
            "each of them once, with commas between."
        )
    takes = {}
    for name, video in zip(names, videos, strict=True):
        rate = fps if isinstance(video, Tensor) else float(video.get_components().frame_rate)
        takes[name] = Take(frames_of(video), rate)
    first_CHW = frames_of(image)[0] if image is not None else None
    shown_CHW = first_CHW if first_CHW is not None else takes[names[0]].frames_TCHW[0]
    return VideoSet(scene.strip() or fingerprint({"image": shown_CHW})[:12], takes, first_CHW, prompt)


NODES = [CompareRuns, Report, UserStudy, DatasetFromStudy]
