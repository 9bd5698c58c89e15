"""The frozen values that pass between the rooms, and `knob`, the one place where a setting is declared.

Shape suffixes, used in the whole project: B batch, T frames, C channels, H W pixels (or latents),
D embedding, P faces in a pool, K gradient steps, N people. Frames are RGB in [0, 1]; boxes and points are
in pixels, x before y, with pixel centres at integer coordinates (InsightFace's convention); embeddings have
unit length; sigma, the noise level, runs 1 → 0.
"""

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import fingerprint, write_atomically

Choose = Literal["tracked", "largest"]
"""Whose faces a video's are: the subject's, followed from frame to frame, or each frame's largest."""
AnchorWeighting = Literal["sigma", "uniform"]
"""w'_t of Eq. 7: 1 / (2 sigma²) or 1."""
KLThrough = Literal["detached", "exact", "biased"]
"""Which gradient of the anchor goes through x_t."""


def knob(default: Any, help: str, *, min: float | None = None, max: float | None = None) -> Any:
    """A dataclass field that declares one setting: default, help and limits.

    The command line's flag, the node's widget with its tooltip and the line in config.json are made of it.
    """
    metadata = {"help": help, "min": min, "max": max}
    return field(
        default=default, metadata={name: value for name, value in metadata.items() if value is not None}
    )


def check_knobs(settings: Any) -> None:
    """Raise ValueError, naming the setting, where an instance breaks the limits its knobs declare."""
    for declared in fields(settings):
        name, limits = declared.name, declared.metadata
        value = getattr(settings, name)
        low, high = limits.get("min", -float("inf")), limits.get("max", float("inf"))
        if isinstance(value, int | float) and not low <= value <= high:
            raise ValueError(f"{name} must lie between {low} and {high}, not {value}: {limits['help']}")
        assert declared.default is not MISSING or "help" not in limits


@dataclass(frozen=True)
class Framing:
    """What a model makes of a clip: its size, length and pace. 0: the model's own."""

    width: int = knob(0, "Width of the videos in pixels; 0: as the model was trained.", min=0)
    height: int = knob(0, "Height of the videos in pixels; 0: as the model was trained.", min=0)
    frames: int = knob(0, "Frames of a video, 1 + a multiple of 4; 0: as the model was trained.", min=0)
    fps: float = knob(0.0, "Frames per second; 0: as the model was trained.", min=0)

    def filled(self, own: "Framing") -> "Framing":
        """With the model's own numbers where there is none."""
        return Framing(
            self.width or own.width, self.height or own.height, self.frames or own.frames, self.fps or own.fps
        )


@dataclass(frozen=True)
class Clip:
    """A stretch of a real video file: the ground truth that a pool is built from."""

    video: Path
    prompt: str = ""
    start: float = 0.0
    """Seconds after the video's first frame."""
    end: float | None = None
    """Seconds: when the first frame that is not the clip's any more is shown; None: the video's end."""

    def __str__(self) -> str:
        """`film.mp4`; of a part `film.mp4#t=3.2,8.1`, as addresses of media name it."""
        if not self.start and self.end is None:
            return str(self.video)
        return f"{self.video}#t={self.start:.3f}," + (f"{self.end:.3f}" if self.end is not None else "")


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face."""

    box_4: Tensor
    """left, top, right, bottom, in pixels."""
    points_52: Tensor
    """left eye, right eye, nose, left and right mouth corner (as seen in the picture), in pixels."""
    score: float
    """The detector's confidence in [0, 1]."""


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """One person through one video. Where `seen_T` is False the box and points are carried over from the seen
    frames around it, so that every frame can be cropped; all zeros if the person is seen nowhere."""

    boxes_T4: Tensor
    points_T52: Tensor
    seen_T: Tensor
    """bool: the detector found the person in this frame."""


@dataclass(frozen=True, eq=False)
class FacePool:
    """The faces of a real clip: the references of the facial scoring mechanism (Section 4.2)."""

    embeddings_PD: Tensor
    """Unit length."""
    frames_P: Tensor
    """int64: the frame of the clip each face was taken from."""
    seen_T: Tensor
    """bool, one for every frame of the clip: whether it showed the face."""
    boxes_P4: Tensor
    """In pixels of the clip's frames."""
    recognizer: str
    """Name and SHA-256 of the recogniser; pools of different recognisers do not compare."""
    source: str = ""
    """The clip's file name, for people to read."""

    @property
    def coverage(self) -> float:
        """The share of the clip's frames that show the face, in [0, 1]."""
        return self.seen_T.float().mean().item() if len(self.seen_T) else 0.0

    @property
    def self_similarity(self) -> float:
        """The mean cosine between two different faces of the pool; the quality gate: mixed people give 0.2 to
        0.35, a clean pool 0.8 and more. NaN for fewer than two faces."""
        count = len(self.embeddings_PD)
        if count < 2:
            return float("nan")
        cosine_PP = self.embeddings_PD @ self.embeddings_PD.T
        return ((cosine_PP.sum() - cosine_PP.diagonal().sum()) / (count * (count - 1))).item()

    @property
    def ceiling(self) -> float:
        """||mean embedding||: the highest value Eq. 6 can reach against this pool."""
        return self.embeddings_PD.mean(dim=0).norm().item() if len(self.embeddings_PD) else float("nan")

    @property
    def name(self) -> str:
        """Tells its faces from any others."""
        return fingerprint({"embeddings": self.embeddings_PD, "frames": self.frames_P})

    def save(self, path: Path | str) -> None:
        """Write the pool as safetensors, complete or not at all."""
        tensors = {
            "embeddings": self.embeddings_PD.float().cpu().contiguous(),
            "frames": self.frames_P.cpu().contiguous(),
            "seen": self.seen_T.cpu().contiguous(),
            "boxes": self.boxes_P4.float().cpu().contiguous(),
        }
        note = json.dumps({"kind": "face pool", "recognizer": self.recognizer, "source": self.source})
        write_atomically(path, save(tensors, metadata={"ipro": note}))

    @classmethod
    def load(cls, path: Path | str) -> "FacePool":
        """Read a pool that `save` wrote.

        Raises:
            ValueError: the file is missing, damaged, or no face pool.
        """
        advice = "give a .safetensors file written by `ipro pool`"
        try:
            with safe_open(str(path), framework="pt") as file:
                note = json.loads((file.metadata() or {}).get("ipro", "{}"))
                if note.get("kind") != "face pool":
                    raise ValueError(f"{path} is no face pool: {advice}.")
                tensors = {key: file.get_tensor(key) for key in ("embeddings", "frames", "seen", "boxes")}
        except FileNotFoundError:
            raise ValueError(f"There is no face pool at {path}: {advice}.") from None
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise ValueError(f"{path} cannot be read as a face pool ({error}): {advice}.") from None
        return cls(
            tensors["embeddings"],
            tensors["frames"],
            tensors["seen"],
            tensors["boxes"],
            note["recognizer"],
            note["source"],
        )


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody whose face is to be kept: what it is compared with."""

    pool: FacePool | None = None
    reference_D: Tensor | None = None
    """The embedding of the face in the input image; it also says who is followed."""


@dataclass(frozen=True, eq=False)
class PersonFaces:
    """One person in a generated video, and what to compare this person with."""

    embeddings_TD: Tensor
    """Unit length, with gradients; a frame without a face holds the embedding of where it should be."""
    seen_T: Tensor
    pool: FacePool | None = None
    reference_D: Tensor | None = None
    """The embedding of the face in the input image."""


@dataclass(frozen=True, eq=False)
class SeenFaces:
    """Every face of a video: what is kept of frames that do not fit into memory."""

    detections: list[list[Face]]
    """Of every frame."""
    embeddings: list[Tensor]
    """Of the same faces, (F, D) a frame, unit length, on the CPU: they tell people apart."""
    encoded: list[Tensor] | None = None
    """What is compared instead, where it is another network's (`ClipFace`)."""

    @property
    def compared(self) -> list[Tensor]:
        return self.embeddings if self.encoded is None else self.encoded


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """All that a reward may look at; it never sees a model or a codec."""

    people: tuple[PersonFaces, ...]
    prompt: str = ""
    frames_TCHW: Tensor | None = None
    frozen_frames_TCHW: Tensor | None = None
    """The same noise and prompt through the frozen model, for rewards that compare with it."""
    seen: SeenFaces | None = None
    """Everybody in it, for rewards that ask who is who."""


@dataclass(frozen=True, eq=False)
class RewardScore:
    """What a reward says of one video."""

    value: Tensor
    """Scalar, differentiable."""
    per_frame_T: Tensor
    seen_T: Tensor
    """bool: the frame shows everybody's face."""
    people: tuple["RewardScore", ...] = ()
    """Of each of several people, for the record, without gradients."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """One batch of sampled latents, and what was met on the way."""

    latents: Tensor
    """x_0, (B, C, T, H, W) in latent units."""
    sigmas_K: Tensor
    """Noise level of each gradient step that was compared with the frozen model: by default all K."""
    drift_K: Tensor
    """||v_θ − v_ref||², mean over elements, at those steps."""


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step, as written to metrics.jsonl."""

    step: int
    metrics: dict[str, float]
