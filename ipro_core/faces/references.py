"""A person's pictures as references (ICR of PersonalVideo, Section 3.2): their faces, seen anew each time.

A few pictures are soon known by heart. Each time they are compared with, the crop lies a little elsewhere and
the light and colours are a little others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Face
from .alignment import crop_faces
from .clip_face import ClipFace
from .detector import Detector
from .recognizer import Recognizer
from .tracks import follow_person, see_faces

SQUARE, AROUND = 256, 2.2
"""Side of the squares in pixels, and what of the face's box it is: crops keep within it wherever they lie."""


@dataclass(frozen=True, eq=False)
class ReferenceFaces:
    """One person's face in each picture that shows it."""

    squares_P3SS: Tensor
    """The face and what is around it."""
    points_P52: Tensor
    """In pixels of the squares."""


def reference_faces(
    pictures: Sequence[Tensor], detector: Detector, recognizer: Recognizer | ClipFace
) -> ReferenceFaces:
    """Who is the largest in the first picture with a face, found in all of them.

    Args:
        pictures: (3, H, W) in [0, 1], each of any size.
    """
    seen = see_faces([picture[None] for picture in pictures], detector, recognizer)
    followed = follow_person(seen.detections, seen.embeddings)
    found = [_square(pictures[t], seen.detections[t][face]) for t, face in sorted(followed.items())]
    if not found:
        return ReferenceFaces(torch.zeros(0, 3, SQUARE, SQUARE), torch.zeros(0, 5, 2))
    squares, points = zip(*found, strict=True)
    return ReferenceFaces(torch.stack(squares), torch.stack(points))


@torch.no_grad()
def embed_references(
    faces: ReferenceFaces,
    recognizer: Recognizer | ClipFace,
    generator: torch.Generator,
    *,
    crop_jitter: float = 0.0,
    colour_jitter: float = 0.0,
) -> Tensor:
    """(P, D), unit length: the faces as one look finds them.

    Args:
        crop_jitter: see `crop_faces`.
        colour_jitter: see `jitter_colours`.
    """
    how = {"jitter": crop_jitter, "generator": generator}
    crops = crop_faces(faces.squares_P3SS, faces.points_P52, recognizer.size, **how)
    return recognizer.embed(jitter_colours(crops, colour_jitter, generator))


def jitter_colours(crops_P3HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation, each times a number between 1 − strength and 1 + strength that
    every crop draws for itself; differentiable. Not clamped: a clamped pixel has no gradient."""
    if not strength:
        return crops_P3HW
    draws_3P = 1 + strength * (2 * torch.rand(3, len(crops_P3HW), generator=generator) - 1)
    light, contrast, colour = draws_3P.to(crops_P3HW)[..., None, None, None]
    lit = crops_P3HW * light
    middle_P111 = _grey(lit).mean(dim=(1, 2, 3), keepdim=True)
    hard = middle_P111 + contrast * (lit - middle_P111)
    grey_P1HW = _grey(hard)
    return grey_P1HW + colour * (hard - grey_P1HW)


def _grey(crops_P3HW: Tensor) -> Tensor:
    """Luma (BT.601), (P, 1, H, W)."""
    return torch.einsum("c,pchw->phw", crops_P3HW.new_tensor([0.299, 0.587, 0.114]), crops_P3HW)[:, None]


def _square(picture_CHW: Tensor, face: Face) -> tuple[Tensor, Tensor]:
    """What is around a face, SQUARE pixels wide, black beyond the picture; and its points there."""
    left, top, right, bottom = face.box_4.tolist()
    side = max(2, round(AROUND * max(right - left, bottom - top)))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    height, width = picture_CHW.shape[1:]
    beyond = -x, x + side - width, -y, y + side - height  # negative where it lies inside
    square = F.pad(picture_CHW, beyond)[None]
    points_52 = (face.points_52 - torch.tensor([x, y]) + 0.5) * (SQUARE / side) - 0.5
    return F.interpolate(square, (SQUARE, SQUARE), mode="bilinear", antialias=True)[0], points_52
