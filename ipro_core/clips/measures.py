"""What each shot of a video shows, measured once: size and pace, who is in it, how large, how sharp, how lit
(Section 5.1). Nothing is judged here: see `curation`.

A video is decoded twice: small and whole for its cuts (`shots`), then large, a few frames a second.
"""

import math
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..faces.alignment import crop_faces
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import SeenFaces, follow_people, see_faces
from ..files import sha256
from ..types import Face
from .luma import luma, sharpness
from .pictures import portrait, small_frame
from .settings import MeasureSettings
from .shots import SAMPLED, Shot, find_shots
from .video import TIME_ROUNDING, VideoFacts, iterate_frames, probe

PIECE = 8
"""Frames in memory at a time."""
MOST_PIXELS = 1920
"""Of the longer side; larger frames are shrunk, as they are for training."""
FACE = 56
"""Pixels that a face's quality is looked at with: larger ones are shrunk, so that large and small compare."""


@dataclass(frozen=True)
class PersonMeasures:
    """One person of a shot."""

    coverage: float
    """Share of the looked-at frames that show this person."""
    face_px: float
    """The shorter side of the face's box, median, in pixels of the frames."""
    alike: float | None
    """Mean cosine between two of the faces: mixed people give 0.2 to 0.35, one person 0.5 and more."""
    least_alike: float | None
    """The least cosine of a face to the mean face."""
    sharpness: float
    """Laplacian of the face at 56 px over its contrast, median: blur lowers it, light does not."""
    light: float
    """Mean luma of the face in [0, 1], median."""
    clipped: float
    """Share of the face's pixels that are black or white, median."""
    turns: float
    """How far the nose travels to the side between the eyes, 5th to 95th percentile, in face sizes."""
    embedding: str
    """The mean face's embedding: float16, base64."""

    @property
    def embedding_D(self) -> Tensor:
        return torch.from_numpy(np.frombuffer(b64decode(self.embedding), np.float16).astype(np.float32))


@dataclass(frozen=True)
class ShotMeasures:
    """One shot of one file."""

    video: str
    sha256: str
    made_by: str
    """Tells the face networks and the settings it was measured with from others."""
    shot: int = 0
    shots: int = 1
    """Of the file."""
    problem: str = ""
    """Why the file could not be read; nothing else is known of it then."""
    first_frame: int = 0
    """Of the file's own frames."""
    frames: int = 0
    start: float = 0.0
    """Seconds after the file's first frame."""
    end: float = 0.0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    codec: str = ""
    rotation: int = 0
    variable_rate: bool = False
    hashes: tuple[str, ...] = ()
    """dHash of eight frames."""
    looks: int = 0
    """Frames that faces were looked for in."""
    coverage: float = 0.0
    """Share of them that shows any face."""
    largest_face: float | None = None
    """The longer side of each frame's largest face, 95th percentile, as a share of the frame's shorter side;
    960 times it are the paper's pixels at 960p."""
    people: tuple[PersonMeasures, ...] = field(default=())
    """Everybody who was seen twice, the most seen first."""

    @property
    def name(self) -> str:
        """For people: the file, and which of its shots."""
        stem = Path(self.video).stem
        return stem if self.shots == 1 else f"{stem} {self.shot + 1}"

    @property
    def key(self) -> str:
        """Tells its frames from others'."""
        return f"{self.sha256[:16]}-{self.first_frame}-{self.frames}"

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)

    @property
    def largest_at_960p(self) -> float | None:
        return None if self.largest_face is None else 960 * self.largest_face


@dataclass(eq=False)
class Look:
    """What is kept of a shot's frames while they pass."""

    seen: SeenFaces = field(default_factory=lambda: SeenFaces([], []))
    quality: list[Tensor] = field(default_factory=list)
    """Of the faces of each frame, (F, 3): sharpness, light, clipped."""
    frames: list[Tensor] = field(default_factory=list)
    """A few, small, for people to look at."""
    portraits: list[Tensor] = field(default_factory=list)
    """The largest face of each of these."""
    short_side: int = 0

    def add(self, frame_CHW: Tensor, faces: list[Face], embeddings_FD: Tensor, passed: float) -> None:
        """`passed`: how much of the shot has been shown before this frame."""
        self.seen.detections.append(faces)
        self.seen.embeddings.append(embeddings_FD)
        self.short_side = min(frame_CHW.shape[1:])
        points = torch.stack([face.points_52 for face in faces]) if faces else torch.zeros(0, 5, 2)
        self.quality.append(quality(crop_faces(frame_CHW.expand(len(faces), -1, -1, -1), points, FACE)))
        if len(self.frames) <= SAMPLED * passed:
            self.frames.append(small_frame(frame_CHW))
            if faces:
                largest = max(faces, key=lambda face: (face.box_4[2:] - face.box_4[:2]).prod().item())
                self.portraits.append(portrait(frame_CHW, largest.box_4))


def measure_video(
    path: Path, detector: Detector, recognizer: Recognizer, settings: MeasureSettings, *, made_by: str
) -> list[tuple[ShotMeasures, Look | None]]:
    """Every shot of a file, with pictures of it; of a file that cannot be read one line that says so."""
    content = sha256(path)
    try:
        facts = probe(path)
        shots = find_shots(path, facts.fps, longest=settings.longest)
        looks = _look(path, shots, detector, recognizer, settings.looks)
    except ValueError as problem:
        return [(ShotMeasures(str(path), content, made_by, problem=str(problem)), None)]
    return [
        (_measured(path, content, made_by, facts, shots, number, look), look)
        for number, look in enumerate(looks)
    ]


def _look(
    path: Path, shots: Sequence[Shot], detector: Detector, recognizer: Recognizer, rate: float
) -> list[Look]:
    """Faces and pictures of each shot's frames, at `rate` a second or what lets no shot go unseen."""
    looks = [Look() for _ in shots]
    rate = max(rate, 1.01 / min(shot.end - shot.start for shot in shots))
    frame = 0
    for piece_TCHW in iterate_frames(path, fps=rate, max_side=MOST_PIXELS, chunk=PIECE):
        seen = see_faces(piece_TCHW, detector, recognizer)
        for picture_CHW, faces, embeddings_FD in zip(
            piece_TCHW, seen.detections, seen.embeddings, strict=True
        ):
            number = max(0, sum(shot.start <= frame / rate + TIME_ROUNDING for shot in shots) - 1)
            passed = (frame / rate - shots[number].start) / (shots[number].end - shots[number].start)
            looks[number].add(picture_CHW, faces, embeddings_FD, passed)
            frame += 1
    return looks


def _measured(
    path: Path, content: str, made_by: str, facts: VideoFacts, shots: Sequence[Shot], number: int, look: Look
) -> ShotMeasures:
    shot, seen = shots[number], look.seen
    largest = [
        max((face.box_4[2:] - face.box_4[:2]).max().item() for face in faces) / look.short_side
        for faces in seen.detections
        if faces
    ]
    return ShotMeasures(
        str(path),
        content,
        made_by,
        shot=number,
        shots=len(shots),
        first_frame=shot.first_frame,
        frames=shot.frames,
        start=round(shot.start, 4),
        end=round(shot.end, 4),
        width=facts.width,
        height=facts.height,
        fps=round(facts.fps, 4),
        codec=facts.codec,
        rotation=facts.rotation,
        variable_rate=facts.variable_rate,
        hashes=shot.hashes,
        looks=len(seen.detections),
        coverage=round(len(largest) / max(1, len(seen.detections)), 4),
        largest_face=round(float(np.percentile(largest, 95)), 4) if largest else None,
        people=tuple(
            _person(look, followed)
            for followed in sorted(follow_people(seen.detections, seen.embeddings), key=len, reverse=True)
            if len(followed) > 1 or len(seen.detections) == 1
        ),
    )


def _person(look: Look, followed: dict[int, int]) -> PersonMeasures:
    faces = [look.seen.detections[t][face] for t, face in followed.items()]
    embeddings_FD = torch.stack([look.seen.embeddings[t][face] for t, face in followed.items()])
    mean_D, count = normalize(embeddings_FD.mean(dim=0), dim=0), len(faces)
    alike = (embeddings_FD.sum(dim=0).square().sum().item() - count) / (count * (count - 1) or math.nan)
    quality_3 = torch.stack([look.quality[t][face] for t, face in followed.items()]).median(dim=0).values
    sides_F = torch.stack([face.box_4[2:] - face.box_4[:2] for face in faces]).amin(dim=1)
    turns_F = nose_place(torch.stack([face.points_52 for face in faces]))
    low, high = np.percentile(turns_F.numpy(), [5, 95])
    return PersonMeasures(
        coverage=round(count / len(look.seen.detections), 4),
        face_px=round(sides_F.median().item(), 1),
        alike=round(alike, 4) if count > 1 else None,
        least_alike=round((embeddings_FD @ mean_D).min().item(), 4) if count > 1 else None,
        sharpness=round(quality_3[0].item(), 4),
        light=round(quality_3[1].item(), 4),
        clipped=round(quality_3[2].item(), 4),
        turns=round(float(high - low), 4),
        embedding=b64encode(mean_D.numpy().astype(np.float16).tobytes()).decode(),
    )


def quality(crops_F3HW: Tensor) -> Tensor:
    """Sharpness, light and clipped share of aligned faces, (F, 3); see `PersonMeasures`."""
    if not len(crops_F3HW):
        return torch.zeros(0, 3)
    luma_FHW = luma(crops_F3HW)
    clipped_F = ((luma_FHW < 0.02) | (luma_FHW > 0.98)).float().flatten(1).mean(dim=1)
    return torch.stack([sharpness(luma_FHW), luma_FHW.flatten(1).mean(dim=1), clipped_F], dim=1)


def nose_place(points_F52: Tensor) -> Tensor:
    """How far the nose lies to the side of the middle between the eyes, (F,), along the line through them: it
    says how a head is turned. In face sizes: the root mean square distance of the five points from their
    centre, because the eyes' own distance vanishes in profile."""
    size_F = (points_F52 - points_F52.mean(dim=1, keepdim=True)).square().sum(dim=2).mean(dim=1).sqrt()
    eyes_F2 = normalize(points_F52[:, 1] - points_F52[:, 0], dim=1)
    nose_F2 = points_F52[:, 2] - (points_F52[:, 0] + points_F52[:, 1]) / 2
    return (nose_F2 * eyes_F2).sum(dim=1) / size_F.clamp_min(1e-6)
