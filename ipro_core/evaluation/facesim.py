"""FaceSim: how like the face of the input image the subject stays, frame by frame (Section 5.1).

Raw cosines, never clamped. The subject is the person of the input image, followed through the video, never
"the largest face". The paper does not say what a frame without the face counts, so both answers are given:
`found` leaves it out, `all` counts it as 0, what a stranger gets, so that losing hard faces does not pay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..faces.alignment import crop_faces
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import find_person
from ..types import Face, FaceTrack


@dataclass(frozen=True, eq=False)
class FaceSim:
    """The similarity of one video to one reference face. Means leave out the first `given` frames: in
    image-to-video they are the reference itself. They are NaN if nothing is left."""

    cosine_T: Tensor
    """In [-1, 1]; NaN where the subject was not found."""
    seen_T: Tensor
    """bool: the subject was found."""
    given: int
    recognizer: str
    """Name and SHA-256; FaceSims of different recognisers do not compare."""

    @property
    def all(self) -> float:
        """Mean over all frames, a missing face counting as 0: the headline."""
        return self.cosine_T[self.given :].nan_to_num(0.0).mean().item()

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
        """Mean of the last third, a missing face counting as 0: where identity drifts most."""
        counted = self.cosine_T[self.given :].nan_to_num(0.0)
        return counted[-max(1, len(counted) // 3) :].mean().item() if len(counted) else float("nan")

    @property
    def worst_frame(self) -> int | None:
        """The counted frame that is least like the reference; one without the face is worse than any."""
        counted = self.cosine_T[self.given :]
        return self.given + int(counted.nan_to_num(-2.0).argmin()) if len(counted) else None


def face_sim(
    frames_TCHW: Tensor,
    reference_CHW: Tensor,
    detector: Detector,
    recognizer: Recognizer,
    *,
    given: int = 1,
) -> FaceSim:
    """The similarity of a video's subject to the (largest) face of a reference image.

    Args:
        frames_TCHW: in [0, 1]; a video that shows no face gives coverage 0, no error.
        given: frames at the beginning that are the reference itself and do not count; 0 counts all.

    Raises:
        ValueError: the reference shows no face.
    """
    face = find_reference(reference_CHW, detector)
    reference_D = embed_reference(reference_CHW, face, recognizer)
    track = find_person(frames_TCHW, detector, recognizer, reference_D=reference_D)
    return similarity(frames_TCHW, track, reference_D, recognizer, given=given)


def find_reference(reference_CHW: Tensor, detector: Detector) -> Face:
    """The largest face of the input image.

    Raises:
        ValueError: it shows none.
    """
    (faces,) = detector.detect(reference_CHW[None])
    if not faces:
        raise ValueError("The reference image shows no face: choose one in which the person's face is seen.")
    return max(faces, key=lambda face: float((face.box_4[2:] - face.box_4[:2]).prod()))


@torch.no_grad()
def embed_reference(reference_CHW: Tensor, face: Face, recognizer: Recognizer) -> Tensor:
    """(D,), unit length."""
    crops = crop_faces(reference_CHW[None], face.points_52[None], recognizer.size)
    return recognizer.embed(crops)[0].cpu()


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
