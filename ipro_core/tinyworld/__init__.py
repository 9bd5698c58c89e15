"""The embedded default: a procedural world of faces with its own small networks, complete and offline.

`world` and `painting` make scenes, `scenes` deals them out, `codec` stands in for a VAE; `weights/` holds the
networks as ordinary files, opened by the loaders that open users' files. `train_models` made them; README.md
and `weights/figures.json` say what they can do.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..cache import MemoryCache
from ..clips.scenes import Place, ShownScene, clip_scenes
from ..faces.packs import face_model_names, load_face_models, load_recognizer, recognizer_name
from ..files import sha256
from ..models.memory import Placement
from ..models.wan import WanVideoModel, load_video_model
from ..models.wan_files import open_wan_file
from ..studio import Network, Studio
from ..types import Framing
from .codec import LinearCodec
from .scenes import embed_prompt
from .scorer import TinyScorer

WEIGHTS = Path(__file__).parent / "weights"
FACE_PACK = WEIGHTS / "faces"
"""A face pack like any user's: det_tiny.onnx and w600k_tiny.onnx."""
JUDGE = WEIGHTS / "judge"
"""Trained on other people with another design; measures, never rewards."""
VIDEO_MODELS = {"walks": WEIGHTS / "video.safetensors", "turns": WEIGHTS / "video_turns.safetensors"}
"""One for each world of clips, see `tinyworld.clips`."""
VIDEO_MODEL = VIDEO_MODELS["walks"]
CODEC = WEIGHTS / "codec.safetensors"
SCORER = WEIGHTS / "scorer.safetensors"
"""Says how well a frame shows a prompt, see `tinyworld.scorer`."""
FRAMING = Framing(48, 48, 9, 8.0)


def open_tiny_world(
    faces: Path | str | None = None, device: torch.device | str = "cpu", world: str = "walks"
) -> Studio:
    """The embedded world's networks in float32.

    Args:
        faces: takes the place of its own pack.
        world: "walks", or "turns" with clips in which copying the first frame pays and shows.

    Raises:
        ValueError: the pack is not one.
    """
    faces, video = faces or FACE_PACK, VIDEO_MODELS[world]
    names = ", ".join(face_model_names(faces))
    return Studio(
        kind="I2V-A14B",  # what it is told of the first frame is the same
        base=video.name,
        shapes=open_wan_file(video).shapes,
        framing=FRAMING,
        latent_shape=(16, 3, 12, 12),
        text=Network(lambda: "words", lambda: embed_prompt),
        codec=Network(lambda: sha256(CODEC), lambda: LinearCodec.load(CODEC, device)),
        faces=Network(lambda: names, lambda: load_face_models(faces, device)),
        model=Network(lambda: sha256(video), lambda: _video_model(video, device)),
        high_noise=None,
        judge=Network(lambda: recognizer_name(JUDGE), lambda: load_recognizer(JUDGE, device)),
        cache=MemoryCache(),
        read_clips=_small_clips,
        scorer=Network(lambda: sha256(SCORER), lambda: TinyScorer.load(SCORER, device)),
        device=device,
        min_face=0,
    )


def _video_model(path: Path, device: torch.device | str) -> WanVideoModel:
    return load_video_model(path, dtype=torch.float32, placement=Placement(device, recompute=False))


def _small_clips(places: Sequence[Place]) -> list[ShownScene]:
    """The user's clips; their faces are looked for at the embedded model's size too."""
    return [ShownScene(scene.name, scene.prompt, scene.frames()) for scene in clip_scenes(places, FRAMING)]
