"""Clips made ready for training: prompt, first frame and faces, each encoded once and kept (Section 5.1).

Three stages, each with a network of its own, which is in memory only while its stage runs: text encoder,
video autoencoder, face networks. Training reads what they left. A stage that was broken off goes on.
"""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..cache import Stage
from ..faces.clip_face import ClipFace
from ..faces.detector import Detector
from ..faces.pool import NoFace, build_pool
from ..faces.recognizer import Recognizer
from ..faces.references import reference_faces
from ..types import FacePool
from .scenes import Scene

logger = logging.getLogger("ipro")


def text_stage(made_by: str, open_encoder: Callable[[], Callable[[str], Tensor]]) -> Stage[Scene]:
    """`text`: the prompt's embedding, (L, D).

    Args:
        made_by: identifies the encoder's weights.
    """

    def make() -> Callable[[Scene], Mapping[str, Tensor]]:
        embed_prompt = open_encoder()
        return lambda scene: {"text": embed_prompt(scene.prompt)}

    key = {"stage": "text", "made_by": made_by}
    return Stage("prompts", lambda scene: {**key, "prompt": scene.prompt}, make)


def image_stage(
    made_by: str, open_encoder: Callable[[], Callable[[Tensor], Mapping[str, Tensor]]]
) -> Stage[Scene]:
    """What the model is told of the first frame, by name, without the batch axis.

    Args:
        made_by: identifies the autoencoder's weights and what is made with them.
        open_encoder: gives a function of first frames (1, 3, H, W).
    """

    def make() -> Callable[[Scene], Mapping[str, Tensor]]:
        encode = open_encoder()
        return lambda scene: {name: told[0] for name, told in encode(scene.first()[None]).items()}

    key = {"stage": "image", "made_by": made_by}
    return Stage("first frames", lambda scene: {**key, **scene.key()}, make)


def faces_stage(
    made_by: str, open_models: Callable[[], tuple[Detector, Recognizer | ClipFace]], *, min_face: float = 24.0
) -> Stage[Scene]:
    """The clip's face pool, seen as large as it was filmed; see `pool_of`. An empty one where no face is."""

    def make() -> Callable[[Scene], Mapping[str, Tensor]]:
        models = open_models()

        def pool(scene: Scene) -> dict[str, Tensor]:
            try:
                pool = build_pool(scene.pieces(), *models, source=scene.name, min_face=min_face)
            except NoFace as reason:
                logger.warning("%s", reason)
                none = {"embeddings": (0, 0), "frames": (0,), "seen": (0,), "boxes": (0, 4)}
                return {name: torch.zeros(shape) for name, shape in none.items()}
            return {
                "embeddings": pool.embeddings_PD,
                "frames": pool.frames_P,
                "seen": pool.seen_T,
                "boxes": pool.boxes_P4,
            }

        return pool

    key = {"stage": "faces", "made_by": made_by, "min_face": min_face}
    return Stage("faces", lambda scene: {**key, **scene.key()}, make)


def pictures_stage(
    made_by: str, open_models: Callable[[], tuple[Detector, Recognizer | ClipFace]]
) -> Stage[Scene]:
    """`squares` and `points` of the person's face in each picture, see `ReferenceFaces`."""

    def make() -> Callable[[Scene], Mapping[str, Tensor]]:
        models = open_models()

        def found(scene: Scene) -> dict[str, Tensor]:
            pictures = [picture for piece in scene.pieces() for picture in piece]
            faces = reference_faces(pictures, *models)
            return {"squares": faces.squares_P3SS, "points": faces.points_P52}

        return found

    key = {"stage": "pictures", "made_by": made_by}
    return Stage("pictures", lambda scene: {**key, **scene.key()}, make)


def pool_of(entry: Mapping[str, Tensor], recognizer: str, source: str) -> FacePool:
    """The pool that `faces_stage` kept."""
    return FacePool(entry["embeddings"], entry["frames"], entry["seen"], entry["boxes"], recognizer, source)
