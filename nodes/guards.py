"""Guards of a gain: a video's quality, and whether its face looks hacked (Section 4.3, Tables 4 and 5)."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..ipro_core.evaluation.quality_settings import DIMENSIONS, QualitySettings
from ..ipro_core.types import Framing
from . import _comfy
from ._sockets import CLIPS, FACE_MODELS, ClipChoice, frames_of
from ._widgets import settings_of, widgets

if TYPE_CHECKING:
    from ..ipro_core.evaluation.bands import Band

CATEGORY = "7 Evaluation"
FIGURES = {figure: one.name for one in DIMENSIONS for figure in one.figures}


class VideoQuality(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "VideoQuality",
            "Video Quality",
            CATEGORY,
            "VBench-compatible quality of a video. What cannot be computed is not a number (NaN), and the "
            "node says why. Weights are looked for in the folders of models; nothing is downloaded.",
            inputs=[
                io.MultiType.Input("video", [io.Image, io.Video], tooltip="The video to judge."),
                io.Float.Input("fps", default=16.0, min=0.1, max=240, step=1, tooltip="Of the video."),
                *widgets(QualitySettings, plain=("quality",)),
            ],
            outputs=[
                *(
                    io.Float.Output(display_name=figure, tooltip=f"{title}; NaN: not computed.")
                    for figure, title in FIGURES.items()
                ),
                io.Boolean.Output(
                    display_name="complete", tooltip="Whether all that was asked for is there."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("give shorter or smaller videos.")
    def execute(cls, video, fps: float, **given) -> io.NodeOutput:
        from ..ipro_core.evaluation.quality_measures import open_meter

        meter = open_meter(settings_of(QualitySettings, given), _comfy.weight_roots())
        measured = meter(frames_of(video), fps)
        values = [measured.get(figure, math.nan) for figure in FIGURES]
        warnings = [f"{short}: {reason}" for short, reason in meter.reasons.items()]
        shown = {name: value for name, value in measured.items() if math.isfinite(value)}
        ui = {"ipro_warning": warnings, "text": [json.dumps(shown)]}
        return io.NodeOutput(*values, not warnings and bool(measured), ui=ui)


class RewardHacking(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "RewardHacking",
            "Reward Hacking",
            CATEGORY,
            "Whether a video's face looks hacked beside real clips: frozen, pasted, smoothed, grown or "
            "another's. A suspicion, no verdict: one falls on about one in twelve real clips.",
            inputs=[
                io.MultiType.Input("video", [io.Image, io.Video], tooltip="The generated video."),
                io.Image.Input("reference", tooltip="The input image."),
                FACE_MODELS.Input("face_models", tooltip="From Load Face Models."),
                CLIPS.Input(
                    "real_clips", tooltip="What real faces do: 12 clips or more, better 40, each with a face."
                ),
                io.Float.Input("fps", default=16.0, min=0.1, max=240, step=1, tooltip="Of the video."),
            ],
            outputs=[
                io.Boolean.Output(display_name="suspected", tooltip="Whether any suspicion falls on it."),
                io.Float.Output(
                    display_name="stiffness",
                    tooltip="In standard deviations of the real clips; high: frozen.",
                ),
                io.String.Output(display_name="kinds", tooltip="What is suspected, with commas between."),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("give shorter or smaller videos.")
    def execute(
        cls, video, reference, face_models: Path, real_clips: ClipChoice, fps: float
    ) -> io.NodeOutput:
        from ..ipro_core.evaluation.bands import KINDS
        from ..ipro_core.evaluation.signs import input_face, measure_signs, watch
        from ..ipro_core.faces.packs import load_face_models

        frames_TCHW, reference_CHW = frames_of(video), frames_of(reference)[0]
        networks = load_face_models(face_models)
        height, width = frames_TCHW.shape[2:]
        try:
            reference_D, faces = input_face(reference_CHW, *networks)
            band = _band(real_clips, face_models, Framing(width, height, len(frames_TCHW), fps))
        except ValueError as reason:
            return io.NodeOutput(False, math.nan, "", ui={"ipro_warning": [str(reason)]})
        clip = watch(frames_TCHW, *networks, reference_D)
        signs = measure_signs(clip, reference_CHW, reference_D, faces)
        found, scores = band.suspicions(signs), band.scores(signs)
        said = {kind.name: kind.suspicion for kind in KINDS}
        warnings = [f"Suspected {kind}: {said[kind]}." for kind in found]
        ui = {"ipro_warning": [*warnings, *filter(None, [band.reason])], "text": [json.dumps(scores)]}
        return io.NodeOutput(bool(found), scores["stiffness"], ", ".join(found), ui=ui)


@lru_cache(maxsize=2)
def _band(clips: ClipChoice, face_models: Path, framing: Framing) -> Band:
    """Measured once for one set of clips and one size of video."""
    from ..ipro_core.clips.scenes import clip_scenes
    from ..ipro_core.evaluation.bands import band_of
    from ..ipro_core.evaluation.signs import real_signs
    from ..ipro_core.faces.packs import load_face_models
    from ..ipro_core.tinyworld.scenes import tiny_scenes

    networks = load_face_models(face_models)
    scenes = (
        clip_scenes(clips.videos, framing)
        if clips.videos
        else list(tiny_scenes(clips.split, clips.count, clips.seed))
    )
    rows = []
    for scene in _comfy.shown(scenes, len(scenes)):
        try:
            rows.append(real_signs(scene.frames(), *networks))
        except ValueError:  # a clip that does not begin with a face says nothing
            continue
    return band_of(rows)


NODES = [VideoQuality, RewardHacking]
