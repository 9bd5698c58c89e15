"""Faces: who is to be kept, as a pool of all faces of real clips (Section 4.2)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ipro_core.clips.video import write_picture
from ..ipro_core.types import Choose, FacePool
from . import _comfy
from ._sockets import FACE_MODELS, FACE_POOL, frames_of, images_of

CATEGORY = "2 Faces"
EMBEDDED = "tiny world (embedded)"
COLUMNS, PICTURE, MOST_PICTURES = 12, 96, 96


class LoadFaceModels(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "LoadFaceModels",
            "Load Face Models",
            CATEGORY,
            "A detector and a recogniser: any InsightFace pack in models/insightface/models (antelopev2, "
            "buffalo_l, …), or the embedded pair that knows the tiny world's people only. Nothing is ever "
            "downloaded. InsightFace's own packs are for non-commercial research.",
            inputs=[
                io.Combo.Input(
                    "pack",
                    options=[EMBEDDED, *_comfy.face_packs()],
                    tooltip="The folder in models/insightface/models.",
                )
            ],
            outputs=[
                FACE_MODELS.Output(
                    display_name="face_models", tooltip="Detector and recogniser, not open yet."
                )
            ],
        )

    @classmethod
    def execute(cls, pack: str) -> io.NodeOutput:
        from ..ipro_core.faces.packs import find_pack
        from ..ipro_core.tinyworld import FACE_PACK

        return io.NodeOutput(
            FACE_PACK if pack == EMBEDDED else find_pack(Path(pack).name, _comfy.face_roots())
        )


class BuildFacePool(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "BuildFacePool",
            "Build Face Pool",
            CATEGORY,
            "All faces of one person in a real clip, as the reward compares with them: every pose and "
            "expression counts. A clip without a face gives an empty pool and a warning.",
            inputs=[
                io.MultiType.Input("clip", [io.Image, io.Video], tooltip="Frames, or a video."),
                FACE_MODELS.Input("face_models", tooltip="From Load Face Models."),
                _choose(),
                io.Float.Input(
                    "min_face",
                    default=24.0,
                    min=0,
                    max=4096,
                    step=1,
                    tooltip="Smallest face to keep: the shorter side of its box, in pixels. Below 24 a "
                    "recogniser sees noise. The tiny world's faces are smaller: 0 there.",
                ),
                _comfy.known(
                    io.Boolean.Input,
                    "keep_first",
                    default=True,
                    advanced=True,
                    tooltip="Whether the face of the first frame, the input image, counts. The authors' code "
                    "leaves it out.",
                ),
                FACE_POOL.Input(
                    "person", optional=True, tooltip="Of several people follow the one of this pool."
                ),
                _comfy.known(
                    io.Int.Input,
                    "which",
                    optional=True,
                    default=0,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="Of several people: 0 the subject, 1 and more the others, the largest and most "
                    "seen first.",
                ),
            ],
            outputs=[
                FACE_POOL.Output(display_name="pool", tooltip="The faces; empty where none was found."),
                io.Float.Output(
                    display_name="coverage", tooltip="The share of the frames that show the face."
                ),
                io.Float.Output(
                    display_name="self_similarity",
                    tooltip="Mean cosine between two faces of the pool: 0.8 and more is one person, 0.2 to "
                    "0.35 are several people mixed.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("give a shorter or smaller clip.")
    def execute(cls, clip, face_models, choose, min_face, keep_first, person=None, which=0) -> io.NodeOutput:
        from ..ipro_core.faces.packs import load_face_models
        from ..ipro_core.faces.pool import NoFace, build_pools, empty_pool

        frames_TCHW, models = frames_of(clip), load_face_models(face_models)
        reference_D = None
        if person is not None and len(person.embeddings_PD):
            reference_D = torch.nn.functional.normalize(person.embeddings_PD.mean(dim=0), dim=0)
        pieces, warning = _comfy.shown(frames_TCHW.split(8), -(-len(frames_TCHW) // 8)), ""
        how = {"choose": choose, "min_face": min_face, "keep_first": keep_first, "reference_D": reference_D}
        try:
            pools = build_pools(pieces, *models, source="clip", **how)
        except NoFace as reason:
            pools, which, warning = [empty_pool(models[1], len(frames_TCHW))], 0, str(reason)
        if which >= len(pools):
            raise ValueError(
                f"The clip shows {len(pools)} of its people long enough: choose which below {len(pools)}."
            )
        pool = pools[which]
        told = _told(pool, frames_TCHW, warning)
        return io.NodeOutput(pool, pool.coverage, _finite(pool.self_similarity), ui=told)


def _choose():
    return io.Combo.Input(
        "choose",
        options=list(get_args(Choose)),
        tooltip="Whose face: 'tracked' follows the subject, 'largest' takes each frame's largest.",
    )


class ShowFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "ShowFaces",
            "Show Faces",
            CATEGORY,
            "The faces of a pool, cut out of the clip it was built from: one picture.",
            inputs=[
                io.MultiType.Input("clip", [io.Image, io.Video], tooltip="The clip that the pool is from."),
                FACE_POOL.Input("pool", tooltip="From Build Face Pool."),
            ],
            outputs=[io.Image.Output(display_name="faces", tooltip="One contact sheet.")],
        )

    @classmethod
    @_comfy.working("give a shorter or smaller clip.")
    def execute(cls, clip, pool: FacePool) -> io.NodeOutput:
        return io.NodeOutput(images_of(_sheet(pool, frames_of(clip))[0][None]))


class MergeFacePools(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        more = [
            FACE_POOL.Input(f"pool_{n}", optional=True, tooltip="The same person in another clip.")
            for n in (2, 3, 4)
        ]
        return _comfy.schema(
            "MergeFacePools",
            "Merge Face Pools",
            CATEGORY,
            "One person's pool out of several clips.",
            inputs=[FACE_POOL.Input("pool_1", tooltip="One clip's faces."), *more],
            outputs=[FACE_POOL.Output(display_name="pool", tooltip="All faces; empty pools add none.")],
        )

    @classmethod
    @_comfy.working("merge fewer pools.")
    def execute(cls, pool_1, **more) -> io.NodeOutput:
        from ..ipro_core.faces.pool import merge_pools

        pools = [pool_1, *(more[name] for name in sorted(more) if more[name] is not None)]
        return io.NodeOutput(merge_pools([pool for pool in pools if len(pool.embeddings_PD)] or pools[:1]))


class SaveFacePool(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "SaveFacePool",
            "Save Face Pool",
            CATEGORY,
            "Keep a pool in output/ipro/pools, where Load Face Pool and `ipro score` find it.",
            inputs=[
                FACE_POOL.Input("pool", tooltip="From Build Face Pool."),
                io.String.Input("name", default="person", tooltip="Its file's name."),
            ],
            outputs=[FACE_POOL.Output(display_name="pool", tooltip="The same pool.")],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("free some memory.")
    def execute(cls, pool: FacePool, name: str) -> io.NodeOutput:
        path = _comfy.inside(_pools(), f"{name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        pool.save(path)
        return io.NodeOutput(pool)


class LoadFacePool(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "LoadFacePool",
            "Load Face Pool",
            CATEGORY,
            "A pool that Save Face Pool kept.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=sorted(path.stem for path in _pools().glob("*.safetensors")),
                    tooltip="A file in output/ipro/pools.",
                )
            ],
            outputs=[FACE_POOL.Output(display_name="pool", tooltip="The faces.")],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(FacePool.load(_comfy.inside(_pools(), f"{name}.safetensors")))


def _pools() -> Path:
    return _comfy.output_folder() / "ipro" / "pools"


def _told(pool: FacePool, frames_TCHW: Tensor, warning: str) -> dict[str, list]:
    """For the page: the pool's figures and a contact sheet of its faces."""
    sheet_CHW, columns = _sheet(pool, frames_TCHW)
    place = _comfy.temp_file("ipro_faces", ".png")
    write_picture(place.path, sheet_CHW)
    figures = {
        "source": pool.source,
        "coverage": pool.coverage,
        "self_similarity": _finite(pool.self_similarity),
        "ceiling": _finite(pool.ceiling),
        "frames": pool.frames_P.tolist(),
        "seen": pool.seen_T.int().tolist(),
        "faces": {**place.told, "columns": columns, "size": PICTURE},
        "warning": warning,
    }
    return {"ipro_pool": [figures], "ipro_warning": [warning] if warning else []}


def _sheet(pool: FacePool, frames_TCHW: Tensor) -> tuple[Tensor, int]:
    from ..ipro_core.evaluation.film import contact_sheet

    at_S = torch.linspace(0, len(pool.frames_P) - 1, min(len(pool.frames_P), MOST_PICTURES)).round().long()
    if len(pool.frames_P) and int(pool.frames_P.max()) >= len(frames_TCHW):
        raise ValueError("The pool is of a longer clip than this: give the clip it was built from.")
    pictures = [frames_TCHW[int(frame)] for frame in pool.frames_P[at_S]]
    columns = max(1, min(COLUMNS, math.ceil(math.sqrt(2 * len(pictures)))))  # twice as wide as tall
    return contact_sheet(pictures, pool.boxes_P4[at_S], size=PICTURE, columns=columns), columns


def _finite(value: float) -> float:
    """JSON knows no NaN: of nothing there is nothing."""
    return value if value == value else 0.0


NODES = [
    LoadFaceModels,
    BuildFacePool,
    ShowFaces,
    MergeFacePools,
    SaveFacePool,
    LoadFacePool,
]
