"""Evaluation of faces: how well one person is kept, and each of several; graphs can gate on it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from comfy_api.latest import io
from torch import Tensor

from ..ipro_core.types import FacePool
from . import _comfy
from ._compared import told
from ._sockets import FACE_MODELS, FACE_POOL, frames_of

CATEGORY = "7 Evaluation"


class FaceSimilarity(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "FaceSimilarity",
            "Face Similarity",
            CATEGORY,
            "FaceSim: how like the face of the input image the subject stays, frame by frame; of one video, "
            "or of two beside each other. A frame without the face counts as a stranger's. `kept` lets a "
            "graph go on only where the face was kept.",
            inputs=[
                io.MultiType.Input("video", [io.Image, io.Video], tooltip="The video to judge."),
                io.Image.Input("reference", tooltip="The input image; its largest face is the subject."),
                FACE_MODELS.Input("face_models", tooltip="From Load Face Models."),
                io.Float.Input("fps", default=16.0, min=0.1, max=240, step=1, tooltip="Of the shown videos."),
                _threshold("The least similarity at which the face is kept"),
                io.MultiType.Input(
                    "other",
                    [io.Image, io.Video],
                    optional=True,
                    tooltip="Another video of the same input image.",
                ),
                io.MultiType.Input(
                    "real",
                    [io.Image, io.Video],
                    optional=True,
                    tooltip="What was really filmed: its similarity is the ceiling, 1 of `calibrated`.",
                ),
                FACE_POOL.Input(
                    "stranger",
                    optional=True,
                    tooltip="Somebody else's faces: their similarity is the floor, 0 of `calibrated`.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="similarity", tooltip="Mean cosine; a missing face counts 0."),
                io.Float.Output(
                    display_name="coverage", tooltip="The share of the frames that show the face."
                ),
                io.Float.Output(
                    display_name="gain", tooltip="The first video's similarity less the other's."
                ),
                io.Boolean.Output(
                    display_name="kept", tooltip="Whether the similarity reaches the threshold."
                ),
                io.Float.Output(
                    display_name="calibrated",
                    tooltip="0 as like as the stranger, 1 as the real clip is to itself; 0 without the two.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("give shorter or smaller videos.")
    def execute(
        cls,
        video,
        reference,
        face_models: Path,
        fps: float,
        threshold: float,
        other=None,
        real=None,
        stranger: FacePool | None = None,
    ) -> io.NodeOutput:
        from ..ipro_core.evaluation.facesim import Scale, embed_reference, face_sim, find_reference, jsonable
        from ..ipro_core.faces.packs import load_face_models

        (detector, recognizer), reference_CHW = load_face_models(face_models), frames_of(reference)[0]
        given_videos = {"video": video, "other": other, "real": real}
        videos = {label: frames_of(one) for label, one in given_videos.items() if one is not None}
        try:
            face = find_reference(reference_CHW, detector)
        except ValueError as reason:
            return io.NodeOutput(0.0, 0.0, 0.0, False, 0.0, ui={"ipro_warning": [str(reason)]})
        sims = {
            label: face_sim(
                frames_TCHW, reference_CHW, detector, recognizer, given=min(1, len(frames_TCHW) - 1)
            )
            for label, frames_TCHW in videos.items()
        }
        scale = Scale(
            _floor(stranger, embed_reference(reference_CHW, face, recognizer), recognizer.name),
            sims["real"].all if "real" in sims else math.nan,
        )
        lost = [label for label, sim in sims.items() if not sim.seen_T.any()]
        first, gain = sims["video"], sims["video"].all - sims["other"].all if "other" in sims else 0.0
        kept, calibrated = first.all >= threshold, scale.calibrated(first.all)
        figures = {"similarity": first.all, "coverage": first.coverage, "drift_tail": first.drift_tail}
        figures |= {"calibrated": calibrated, "floor": scale.floor, "ceiling": scale.ceiling}
        figures |= {"gain": gain} if "other" in sims else {}
        figures |= {"kept": kept, "recognizer": first.recognizer}
        shown = told(
            fps,
            videos,
            [sim.cosine_T for sim in sims.values()],
            jsonable(figures),
            f"No face is found in {' and '.join(lost)}." if lost else "",
        )
        on_scale = calibrated if math.isfinite(calibrated) else 0.0
        return io.NodeOutput(first.all, first.coverage, gain, kept, on_scale, ui=shown)


class PeopleKept(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        more = [
            FACE_POOL.Input(f"pool_{n}", optional=True, tooltip="Another person's faces.") for n in (2, 3, 4)
        ]
        return _comfy.schema(
            "PeopleKept",
            "People Kept",
            CATEGORY,
            "Several people in one video, each against their own pool: who is kept, missing, swapped for "
            "whom, and in which frame.",
            inputs=[
                io.MultiType.Input("video", [io.Image, io.Video], tooltip="The video to judge."),
                FACE_MODELS.Input("face_models", tooltip="The pack that built the pools."),
                io.Float.Input("fps", default=16.0, min=0.1, max=240, step=1, tooltip="Of the shown video."),
                _threshold("The least similarity of everybody, with no swap, at which the people are kept"),
                FACE_POOL.Input("pool_1", tooltip="One person's faces, from Build Face Pool."),
                *more,
            ],
            outputs=[
                io.Float.Output(
                    display_name="worst",
                    tooltip="Similarity of the person kept worst; who is missing has 0.",
                ),
                io.Float.Output(
                    display_name="identity_f1",
                    tooltip="1: everybody is recognised in every frame, each always on one track.",
                ),
                io.Boolean.Output(display_name="kept", tooltip="Whether all are kept and nobody is swapped."),
                io.String.Output(display_name="report", tooltip="All figures, as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("give a shorter or smaller video.")
    def execute(cls, video, face_models: Path, fps: float, threshold: float, **pools) -> io.NodeOutput:
        from ..ipro_core.evaluation.facesim import jsonable
        from ..ipro_core.evaluation.people import judge_people
        from ..ipro_core.faces.packs import load_face_models
        from ..ipro_core.faces.tracks import see_faces

        detector, recognizer = load_face_models(face_models)
        frames_TCHW = frames_of(video)
        people = {}
        for name, pool in sorted(pools.items()):
            if pool is None:
                continue
            _check_pool(pool, recognizer.name)
            people[name.replace("pool_", "person ")] = pool.embeddings_PD
        pieces = _comfy.shown(frames_TCHW.split(8), -(-len(frames_TCHW) // 8))
        seen = see_faces(pieces, detector, recognizer)
        result = judge_people(seen, people, recognizer.name, given=min(1, len(frames_TCHW) - 1))
        worst = result.worst
        kept = worst.facesim.all >= threshold and not result.swaps
        faults = [f"{person.name} is missing." for person in result.people if person.missing]
        faults += [f"{swap.before} becomes {swap.after} at frame {swap.frame}." for swap in result.swaps]
        figures = {"worst": worst.facesim.all, "identity_f1": result.identity_f1, "kept": kept}
        curves = [person.facesim.cosine_T for person in result.people]
        shown = told(fps, {"video": frames_TCHW}, curves, jsonable(figures), " ".join(faults))
        report = json.dumps(result.figures(), indent=2)
        return io.NodeOutput(worst.facesim.all, result.identity_f1, kept, report, ui=shown)


def _threshold(what: str):
    return io.Float.Input(
        "threshold",
        default=0.5,
        min=-1.0,
        max=1.0,
        step=0.01,
        tooltip=f"{what}. Recognisers differ: strangers have about 0, the same person in another picture 0.5 "
        "to 0.8.",
    )


def _check_pool(pool: FacePool, recognizer: str) -> None:
    if pool.recognizer != recognizer:
        raise ValueError(
            f"A pool was built with {pool.recognizer}, but these face models hold {recognizer}: build it "
            "with the same face models."
        )


def _floor(stranger: FacePool | None, reference_D: Tensor, recognizer: str) -> float:
    """How like the reference somebody else is."""
    if stranger is None or not len(stranger.embeddings_PD):
        return math.nan
    _check_pool(stranger, recognizer)
    return (stranger.embeddings_PD @ reference_D).mean().item()


NODES = [FaceSimilarity, PeopleKept]
