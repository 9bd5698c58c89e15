"""FaceSim: how like the face of the input image the subject stays, frame by frame (Section 5.1).

Raw cosines of every frame, never clamped. The subject is the person of the input image, followed through the
video, never "the largest face". The paper does not say what a frame without the face counts, so both answers
are given: `found` leaves it out, `all` counts it as 0, what a stranger gets, so that losing hard faces does
not pay. A cosine means little without its `Scale`: what the same recogniser gives strangers and real clips.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..faces.alignment import crop_faces
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import SAME_PERSON, SeenFaces, follow_person, see_faces
from ..types import Face, FaceTrack

PROTOCOL = "Every frame; RGB crops on ArcFace's template; raw cosine; a frame without the face counts 0"


@dataclass(frozen=True)
class Scale:
    """What a recogniser's cosines mean: 0 for strangers, 1 for the real clip by the same protocol."""

    floor: float
    """Of impostors: mean cosine between faces of different people; NaN if unknown."""
    ceiling: float
    """FaceSim of real clips, which is no 1, because people turn and speak; NaN if unknown."""

    @property
    def known(self) -> bool:
        return self.ceiling > self.floor

    def calibrated(self, cosine: float) -> float:
        """0 at the floor, 1 at the ceiling; NaN where the scale is not known."""
        return (cosine - self.floor) / (self.ceiling - self.floor) if self.known else math.nan


UNKNOWN = Scale(math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class FaceSim:
    """The similarity of one video to one person. Means leave out the first `given` frames: in image-to-video
    they are the reference itself. They are NaN if nothing is left."""

    cosine_T: Tensor
    """In [-1, 1]; NaN where the subject was not found."""
    seen_T: Tensor
    """bool: the subject was found."""
    given: int
    recognizer: str
    """Name and SHA-256; FaceSims of different recognisers do not compare."""

    @property
    def counted_T(self) -> Tensor:
        """The cosines that `all` is the mean of."""
        return self.cosine_T[self.given :].nan_to_num(0.0)

    @property
    def all(self) -> float:
        """Mean over all frames, a missing face counting as 0: the headline."""
        return self.counted_T.mean().item()

    @property
    def found(self) -> float:
        """Mean over the frames that show the subject: other people's convention. NaN if none does."""
        return self.cosine_T[self.given :].nanmean().item()

    @property
    def coverage(self) -> float:
        """The share of frames that show the subject, in [0, 1]."""
        return self.seen_T[self.given :].float().mean().item()

    @property
    def first(self) -> float:
        """Of frame 0 alone: in image-to-video, what the codec and the first step keep of the input."""
        return self.cosine_T[0].item()

    @property
    def drift_tail(self) -> float:
        """The last quarter's mean less the first's, a missing face counting as 0: below 0 identity drifts."""
        quarter = max(1, len(self.counted_T) // 4)
        return (self.counted_T[-quarter:].mean() - self.counted_T[:quarter].mean()).item()

    @property
    def worst_frame(self) -> int | None:
        """The counted frame that is least like the reference; one without the face is worse than any."""
        counted = self.cosine_T[self.given :]
        return self.given + int(counted.nan_to_num(-2.0).argmin()) if len(counted) else None

    def figures(self, scale: Scale = UNKNOWN) -> dict[str, Any]:
        """For JSON: what could not be measured is None."""
        return jsonable(
            {
                "all": self.all,
                "found": self.found,
                "coverage": self.coverage,
                "first": self.first,
                "drift_tail": self.drift_tail,
                "calibrated": scale.calibrated(self.all),
                "floor": scale.floor,
                "ceiling": scale.ceiling,
                "worst_frame": self.worst_frame,
                "per_frame": self.cosine_T.tolist(),
                "frames": len(self.cosine_T),
                "given": self.given,
                "recognizer": self.recognizer,
                "protocol": PROTOCOL,
            }
        )


def face_sim(
    frames_TCHW: Tensor | Iterable[Tensor],
    reference_CHW: Tensor,
    detector: Detector,
    recognizer: Recognizer,
    *,
    given: int = 1,
) -> FaceSim:
    """The similarity of a video's subject to the (largest) face of a reference image.

    Args:
        frames_TCHW: in [0, 1], or such pieces of a long video one after the other; a video that shows no face
            gives coverage 0, no error.
        given: frames at the beginning that are the reference itself and do not count; 0 counts all.

    Raises:
        ValueError: the reference shows no face.
    """
    face = find_reference(reference_CHW, detector)
    reference_D = embed_reference(reference_CHW, face, recognizer)
    seen = see_faces(frames_TCHW, detector, recognizer)
    followed = follow_person(seen.detections, seen.embeddings, reference_D=reference_D)
    return followed_sim(seen, followed, reference_D, recognizer.name, given=given)


def find_reference(reference_CHW: Tensor, detector: Detector) -> Face:
    """The largest face of the input image; raises as `reference_faces`."""
    return largest(reference_faces(reference_CHW, detector))


def reference_faces(reference_CHW: Tensor, detector: Detector) -> list[Face]:
    """The faces of the input image.

    Raises:
        ValueError: it shows none.
    """
    (faces,) = detector.detect(reference_CHW[None])
    if not faces:
        raise ValueError("The reference image shows no face: choose one in which the person's face is seen.")
    return faces


def largest(faces: Sequence[Face]) -> Face:
    return max(faces, key=lambda face: float((face.box_4[2:] - face.box_4[:2]).prod()))


@torch.no_grad()
def embed_reference(reference_CHW: Tensor, face: Face, recognizer: Recognizer) -> Tensor:
    """(D,), unit length."""
    crops = crop_faces(reference_CHW[None], face.points_52[None], recognizer.size)
    return recognizer.embed(crops)[0].float().cpu()


def followed_sim(
    seen: SeenFaces, followed: Mapping[int, int], reference_D: Tensor, recognizer: str, *, given: int = 1
) -> FaceSim:
    """The similarity of embedded faces, frame → index, to a reference or to a pool's mean."""
    cosine_T = torch.full((len(seen.detections),), float("nan"))
    for t, face in followed.items():
        cosine_T[t] = seen.embeddings[t][face] @ reference_D
    return FaceSim(cosine_T, ~cosine_T.isnan(), given, recognizer)


@torch.no_grad()
def similarity(
    frames_TCHW: Tensor, track: FaceTrack, reference_D: Tensor, recognizer: Recognizer, *, given: int = 1
) -> FaceSim:
    """The similarity along a track. A judge looks at the very faces that the reward's recogniser saw."""
    seen_T = track.seen_T.cpu()
    cosine_T = torch.full((len(frames_TCHW),), float("nan"))
    if seen_T.any():
        crops = crop_faces(frames_TCHW[seen_T], track.points_T52[seen_T], recognizer.size)
        cosine_T[seen_T] = recognizer.embed(crops).float().cpu() @ reference_D.float().cpu()
    return FaceSim(cosine_T, seen_T, given, recognizer.name)


def common(a: FaceSim, b: FaceSim) -> tuple[float, float]:
    """The means of two videos over the frames in which both show the subject; NaN if there is none."""
    both_T = a.seen_T & b.seen_T
    both_T[: max(a.given, b.given)] = False
    return a.cosine_T[both_T].mean().item(), b.cosine_T[both_T].mean().item()


def stranger_floor(references: Sequence[Tensor]) -> float:
    """Mean cosine between the faces of different people; NaN if there are no two. Two references as like as
    `SAME_PERSON` are one person's and no impostors."""
    if len(references) < 2:
        return float("nan")
    reference_ND = torch.stack(list(references)).double()
    cosine_NN = (reference_ND @ reference_ND.T).fill_diagonal_(1)
    return cosine_NN[cosine_NN < SAME_PERSON].mean().item()


def jsonable(value: Any) -> Any:
    """JSON knows no NaN: what could not be measured is None."""
    if isinstance(value, Mapping):
        return {name: jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
