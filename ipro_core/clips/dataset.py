"""Clips made ready for training: prompt, first frame, faces and video, each encoded once and kept (5.1).

Stages, each with a network of its own, which is in memory only while its stage runs: text encoder,
video autoencoder, face networks. Training reads what they left. A stage that was broken off goes on.
"""

import logging
from collections.abc import Callable, Mapping

from torch import Tensor

from ..cache import Stage
from ..faces.clip_face import ClipFace
from ..faces.detector import Detector
from ..faces.people import people_shown
from ..faces.pool import NoFace, build_pools, empty_pool
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
    """The face pools of the clip's people, seen as large as it was filmed; see `pools_of`. The subject's is
    first, an empty one where no face is; of the others those are kept whom the input image shows as the model
    gets it: nobody else can be known to it."""

    def make() -> Callable[[Scene], Mapping[str, Tensor]]:
        models = open_models()

        def pools(scene: Scene) -> dict[str, Tensor]:
            try:
                people = build_pools(scene.pieces(), *models, source=scene.name, min_face=min_face)
            except NoFace as reason:
                logger.warning("%s", reason)
                people = [empty_pool(models[1], 0)]
            if len(people) > 1:
                shown = people_shown(scene.first(), *models, people)
                people = [pool for n, pool in enumerate(people) if shown[n] or not n]
            return {name: part for n, pool in enumerate(people) for name, part in _parts(n, pool).items()}

        return pools

    key = {"stage": "faces", "made_by": made_by, "min_face": min_face, "people": "all"}
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


def _parts(number: int, pool: FacePool) -> dict[str, Tensor]:
    """One person's part of an entry; number 0 is the subject, who needs no name."""
    person = f"person {number} " if number else ""
    return {
        f"{person}embeddings": pool.embeddings_PD,
        f"{person}frames": pool.frames_P,
        f"{person}seen": pool.seen_T,
        f"{person}boxes": pool.boxes_P4,
    }


def pools_of(entry: Mapping[str, Tensor], recognizer: str, source: str) -> list[FacePool]:
    """The pools that `faces_stage` kept, the subject's first."""
    people = [""]
    while f"person {len(people)} frames" in entry:
        people.append(f"person {len(people)} ")
    return [
        FacePool(
            entry[f"{person}embeddings"],
            entry[f"{person}frames"],
            entry[f"{person}seen"],
            entry[f"{person}boxes"],
            recognizer,
            source,
        )
        for person in people
    ]


def video_stage(made_by: str, open_encoder: Callable[[], Callable[[Tensor], Tensor]]) -> Stage[Scene]:
    """`video`: the real clip's latents, (C, T, H, W), for methods that learn from it.

    Args:
        made_by: identifies the autoencoder's weights.
        open_encoder: gives a function of frames (1, T, 3, H, W).
    """

    def make() -> Callable[[Scene], Mapping[str, Tensor]]:
        encode = open_encoder()
        return lambda scene: {"video": encode(scene.frames()[None])[0]}

    key = {"stage": "video", "made_by": made_by}
    return Stage("videos", lambda scene: {**key, **scene.key()}, make)
