"""The embedded default: a procedural world of faces with its own small networks, complete and offline.

`world` and `painting` make scenes, `scenes` deals them out, `codec` stands in for a VAE; `weights/` holds the
networks as ordinary files, opened by the loaders that open users' files. `train_models` made them; README.md
and `weights/figures.json` say what they can do.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..faces.detector import Detector
from ..faces.packs import load_face_models, load_recognizer
from ..faces.recognizer import Recognizer
from ..models.wan import WanVideoModel, load_video_model
from .codec import LinearCodec

WEIGHTS = Path(__file__).parent / "weights"
FACE_PACK = WEIGHTS / "faces"
"""A face pack like any user's: det_tiny.onnx and w600k_tiny.onnx."""
JUDGE = WEIGHTS / "judge"
VIDEO_MODEL = WEIGHTS / "video.safetensors"
CODEC = WEIGHTS / "codec.safetensors"


@dataclass(frozen=True, eq=False)
class TinyWorld:
    """Every network of the tiny world, opened."""

    detector: Detector
    recognizer: Recognizer
    judge: Recognizer
    """Trained on other people with another design; measures, never rewards."""
    codec: LinearCodec
    model: WanVideoModel


def load_tiny_world(device: torch.device | str = "cpu") -> TinyWorld:
    """Open the shipped networks in float32; ValueError if a file is missing."""
    detector, recognizer = load_face_models(FACE_PACK, device)
    judge = load_recognizer(JUDGE, device)
    codec = LinearCodec.load(CODEC, device)
    return TinyWorld(detector, recognizer, judge, codec, load_video_model(VIDEO_MODEL, device, torch.float32))
