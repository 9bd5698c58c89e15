"""What tells a hacked face from a real one, clip by clip: frozen, pasted, smoothed, grown, changed (Section
4.3).

FaceSim alone ranks a frozen face above the real clip, and a held-out recogniser agrees. Each sign here is one
number of one clip; alone it means nothing: `hacking` compares it with the same sign of real clips.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clips.luma import luma
from ..clips.measures import nose_place, quality
from ..faces.alignment import crop_faces, similarity, template
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import SeenFaces, follow_person, see_faces, track_of
from ..types import FaceTrack
from .facesim import embed_reference, largest, reference_faces
from .motion import head_turn
from .registering import unlike

SMALL = 64
"""Pixels of the face whose change is looked at."""
GRID = 12
"""Cells on a side of the picture whose light is looked at."""
BLOCK = 8
"""Pixels of a latent in the picture: Wan's autoencoders and patches have edges there (TI2V-5B: every
second)."""


@dataclass(frozen=True)
class Sign:
    """One number of a clip."""

    name: str
    meaning: str
    ratio: bool = True
    """Whether values compare by ratio, or by difference."""
    grain: float = 0.0
    """The least difference that means anything; of ratios in logarithms."""


SIGNS = (
    Sign("face_change", "change inside the face that no shift, slant or light explains, over its contrast"),
    Sign("expression", "how far the five points stray once aligned, in face sizes"),
    Sign("turn", "how far the head turns and nods, in face sizes"),
    Sign("frontal", "how far the nose lies off the middle of the eyes, in face sizes"),
    Sign("diversity", "1 − mean cosine between two frames of the clip"),
    Sign("likeness", "mean cosine to the face of the input", ratio=False),
    Sign("copy_index", "cosine to the input less that to the real clip's faces", ratio=False),
    Sign("jump", "largest step of the embedding between two frames", ratio=False),
    Sign("growth", "size of the face, end over start", grain=0.02),
    Sign("sharpness", "of the face, over that of the input's", grain=0.02),
    Sign("blocks", "steps at every eighth pixel of the face over those between", grain=0.02),
    Sign("flicker", "light that goes to and fro, in levels of 255", grain=0.05),
    Sign("background", "change off the head from frame to frame, in levels of 255", grain=0.05),
    Sign("extra_faces", "mean number of faces less the input's", ratio=False, grain=0.1),
    Sign("coverage", "share of frames that show the subject", ratio=False, grain=0.1),
)
NAMES = tuple(sign.name for sign in SIGNS)


@dataclass(frozen=True, eq=False)
class Watched:
    """A clip with its subject found; the signs are taken of it."""

    frames_TCHW: Tensor
    seen: SeenFaces
    track: FaceTrack
    embeddings_FD: Tensor
    """Of the subject, in the frames that show it."""
    frames_F: Tensor
    """Those frames."""


@torch.no_grad()
def watch(
    frames_TCHW: Tensor, detector: Detector, recognizer: Recognizer, reference_D: Tensor | None = None
) -> Watched:
    seen = see_faces(frames_TCHW, detector, recognizer)
    followed = follow_person(seen.detections, seen.embeddings, reference_D=reference_D)
    times = sorted(followed)
    vectors = [seen.embeddings[t][followed[t]] for t in times]
    return Watched(
        frames_TCHW,
        seen,
        track_of({t: seen.detections[t][face] for t, face in followed.items()}, len(seen.detections)),
        torch.stack(vectors) if vectors else torch.zeros(0, recognizer.dim),
        torch.tensor(times, dtype=torch.long),
    )


def real_signs(frames_TCHW: Tensor, detector: Detector, recognizer: Recognizer) -> dict[str, float]:
    """The signs of a real clip, whose first frame is its input.

    Raises:
        ValueError: that frame shows no face.
    """
    reference_D, faces = input_face(frames_TCHW[0], detector, recognizer)
    clip = watch(frames_TCHW, detector, recognizer, reference_D)
    return measure_signs(clip, frames_TCHW[0], reference_D, faces, clip)


def measure_signs(
    clip: Watched, reference_CHW: Tensor, reference_D: Tensor, faces: int, real: Watched | None = None
) -> dict[str, float]:
    """Every sign by name; NaN where the clip shows the subject too seldom to tell.

    Args:
        reference_CHW: the input image.
        reference_D: the embedding of its face.
        faces: how many it shows.
        real: the clip that was really filmed, whose faces are the pool; the clip itself, if it is that one.
    """
    signs = dict.fromkeys(NAMES, float("nan"))
    frames_TCHW, track = clip.frames_TCHW, clip.track
    counts = [len(found) for found in clip.seen.detections]
    signs["coverage"] = track.seen_T.float().mean().item()
    signs["extra_faces"] = sum(counts) / len(counts) - faces
    signs["flicker"] = flicker(frames_TCHW)
    if len(clip.frames_F) < 3:
        return signs
    points_F52 = steady(track.points_T52[clip.frames_F])
    faces_FCHW = frames_TCHW[clip.frames_F]
    embeddings_FD = clip.embeddings_FD
    likeness = (embeddings_FD @ reference_D).mean().item()
    signs |= {
        "face_change": face_change(crop_faces(faces_FCHW, points_F52, SMALL)),
        "expression": expression(points_F52),
        "turn": head_turn(track.points_T52, track.seen_T),
        "frontal": nose_place(points_F52).abs().mean().item(),
        "diversity": diversity(embeddings_FD),
        "likeness": likeness,
        "copy_index": likeness - _likeness_to_pool(clip, real) if real else float("nan"),
        "jump": (1 - (embeddings_FD[1:] * embeddings_FD[:-1]).sum(dim=1)).max().item(),
        "growth": growth(points_F52),
        "sharpness": _sharpness(faces_FCHW, points_F52) / _sharpness(reference_CHW[None], points_F52[:1]),
        "blocks": block_steps(frames_TCHW, track),
        "background": background_motion(frames_TCHW, track),
    }
    return signs


def steady(points_F52: Tensor) -> Tensor:
    """Running median of three frames: one jumping landmark is no motion."""
    padded = torch.cat([points_F52[:1], points_F52, points_F52[-1:]])
    return padded.unfold(0, 3, 1).median(dim=-1).values


def face_change(crops_FCHW: Tensor) -> float:
    """How far the aligned faces stray from the middle frame's, in standard deviations of that face, once
    place, size, slant and light are matched by the pixels: the landmarks' own noise would drown it. Mean
    over frames.

    A face that is pasted on gives 0, whatever the head under it does.
    """
    middle = len(crops_FCHW) // 2
    faces_FHW = luma(crops_FCHW)
    left_F = unlike(faces_FHW, faces_FHW[middle].expand_as(faces_FHW))
    return left_F[torch.arange(len(left_F)) != middle].mean().item()


def expression(points_F52: Tensor) -> float:
    """How far the five points stray from their mean place in the aligned face: root mean square, in face
    sizes. Moving, turning in the picture's plane and coming closer do not count."""
    matrix_F23 = similarity(points_F52)
    placed_F52 = points_F52.double() @ matrix_F23[:, :, :2].transpose(1, 2) + matrix_F23[:, None, :, 2]
    centred_52 = template(112) - template(112).mean(dim=0)
    size = centred_52.square().sum(dim=1).mean().sqrt()
    strayed = (placed_F52 - placed_F52.mean(dim=0)).square().sum(dim=-1).mean().sqrt()
    return (strayed / size).item()


def diversity(embeddings_FD: Tensor) -> float:
    count = len(embeddings_FD)
    cosine_sum = embeddings_FD.sum(dim=0).square().sum().item() - embeddings_FD.square().sum().item()
    return 1 - cosine_sum / (count * (count - 1))


def growth(points_F52: Tensor) -> float:
    """The face's size in the last fifth of the frames over that in the first."""
    size_F = (points_F52 - points_F52.mean(dim=1, keepdim=True)).square().sum(dim=2).mean(dim=1).sqrt()
    part = max(1, len(size_F) // 5)
    return (size_F[-part:].median() / size_F[:part].median().clamp_min(1e-6)).item()


def flicker(frames_TCHW: Tensor) -> float:
    """Light that goes to and fro: the second difference in time of a coarse picture, over 4, in levels.

    Every other frame brighter by a and darker by a gives a; light that changes steadily gives 0.
    """
    if len(frames_TCHW) < 3:
        return float("nan")
    coarse = F.adaptive_avg_pool2d(luma(frames_TCHW)[:, None], GRID)
    second = coarse[2:] - 2 * coarse[1:-1] + coarse[:-2]
    return 255 * second.abs().mean().item() / 4


def block_steps(frames_TCHW: Tensor, track: FaceTrack) -> float:
    """Steps between pixels across the edges of the latents' grid over those within, around the face; 1: no
    blocks."""
    across, within = [], []
    for t in track.seen_T.nonzero()[:, 0].tolist():
        left, top, right, bottom = (round(value) for value in track.boxes_T4[t].tolist())
        luma_HW = luma(frames_TCHW[t : t + 1])[0]
        for axis, (first, last, low, high) in enumerate(
            ((left, right, top, bottom), (top, bottom, left, right))
        ):
            lines = luma_HW.transpose(0, 1) if axis else luma_HW
            part = lines[max(0, low) : high, max(0, first) : last]
            steps = (part[:, 1:] - part[:, :-1]).abs().mean(dim=0)
            edge = (max(0, first) + torch.arange(len(steps)) + 1) % BLOCK == 0
            across.append(steps[edge])
            within.append(steps[~edge])
    return (
        (torch.cat(across).mean() / torch.cat(within).mean().clamp_min(1e-4)).item()
        if across
        else float("nan")
    )


def background_motion(frames_TCHW: Tensor, track: FaceTrack) -> float:
    """Mean change from frame to frame where no head is, in levels of 255; NaN if heads fill the picture."""
    luma_T1HW = luma(frames_TCHW)[:, None]
    coarse = F.avg_pool2d(luma_T1HW, 2)[:, 0]
    down, across = (torch.arange(side) * 2 + 0.5 for side in coarse.shape[1:])
    middle = (track.boxes_T4[:, :2] + track.boxes_T4[:, 2:]) / 2
    # A head with hair and neck is about twice its face.
    reach = 1.1 * (track.boxes_T4[:, 2:] - track.boxes_T4[:, :2])
    off_TH = (down - middle[:, 1:]).abs() > reach[:, 1:]
    off_TW = (across - middle[:, :1]).abs() > reach[:, :1]
    off = off_TH[:, :, None] | off_TW[:, None, :]
    both = off[1:] & off[:-1]
    change = (coarse[1:] - coarse[:-1]).abs()
    return 255 * change[both].mean().item() if both.float().mean() > 0.05 else float("nan")


def _sharpness(frames_FCHW: Tensor, points_F52: Tensor) -> float:
    return quality(crop_faces(frames_FCHW, points_F52, 56))[:, 0].median().item()


def _likeness_to_pool(clip: Watched, real: Watched) -> float:
    """Mean cosine to the real clip's faces; of the real clip itself to those of other frames."""
    cosine_FP = clip.embeddings_FD @ real.embeddings_FD.T
    if clip is real:
        return 1 - diversity(clip.embeddings_FD)
    return cosine_FP.mean().item()


def input_face(reference_CHW: Tensor, detector: Detector, recognizer: Recognizer) -> tuple[Tensor, int]:
    """The embedding of the input's face, and how many it shows.

    Raises:
        ValueError: it shows none.
    """
    faces = reference_faces(reference_CHW, detector)
    return embed_reference(reference_CHW, largest(faces), recognizer), len(faces)
