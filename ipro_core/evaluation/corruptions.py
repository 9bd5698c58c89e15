"""Known damage to real clips, each a way to please a face reward: what the signs of a hack are proved by, and
what a vision-language judge is tested with (control clips).

Every function takes frames in [0, 1] and the track of the subject, and leaves frame 0, the input, as it is.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.alignment import crop_faces, similarity, template
from ..types import FaceTrack

CROP = 192
"""Pixels of a face that is taken out and laid in again."""
Corruption = Callable[[Tensor, FaceTrack], Tensor]


def still(frames_TCHW: Tensor, track: FaceTrack) -> Tensor:
    """The first frame, shown for ever."""
    return frames_TCHW[:1].expand_as(frames_TCHW).clone()


def frozen_face(frames_TCHW: Tensor, track: FaceTrack) -> Tensor:
    """The first frame's face laid onto the moving head: the paper's copy-paste."""
    crops = crop_faces(frames_TCHW[:1], track.points_T52[:1], CROP).expand(len(frames_TCHW), -1, -1, -1)
    return lay_faces(frames_TCHW, crops, track.points_T52)


def smoothed_face(frames_TCHW: Tensor, track: FaceTrack, *, blur: float = 0.04) -> Tensor:
    """A face without pores; `blur` is the filter's standard deviation in crops."""
    crops = crop_faces(frames_TCHW, track.points_T52, CROP)
    return lay_faces(frames_TCHW, _blurred(crops, blur * CROP), track.points_T52)


def sharpened_face(frames_TCHW: Tensor, track: FaceTrack, *, amount: float = 2.0) -> Tensor:
    """Edges enhanced as a recogniser likes them: the face plus `amount` times its difference from a blur."""
    crops = crop_faces(frames_TCHW, track.points_T52, CROP)
    # Finer than the face's own pixels there is nothing to enhance.
    face = 112 / crops.shape[-1] / similarity(track.points_T52)[:, :, 0].norm(dim=1).median().item()
    sharp = crops + amount * (crops - _blurred(crops, max(1.5, 0.7 / max(face, 1e-6))))
    return lay_faces(frames_TCHW, sharp.clamp(0, 1), track.points_T52)


def growing_face(frames_TCHW: Tensor, track: FaceTrack, *, factor: float = 1.5) -> Tensor:
    """The face grows on its head until it is `factor` as large: a larger face is recognised better."""
    crops = crop_faces(frames_TCHW, track.points_T52, CROP)
    centre = track.points_T52.mean(dim=1, keepdim=True)
    growth = torch.linspace(1, factor, len(frames_TCHW)).view(-1, 1, 1)
    return lay_faces(frames_TCHW, crops, centre + growth * (track.points_T52 - centre))


def second_face(frames_TCHW: Tensor, track: FaceTrack) -> Tensor:
    """The face once more, beside the head."""
    crops = crop_faces(frames_TCHW, track.points_T52, CROP)
    boxes = track.boxes_T4
    wide = (boxes[:, 2] - boxes[:, 0]).view(-1, 1)
    middle = (boxes[:, 0] + boxes[:, 2]).view(-1, 1) / 2
    beside = torch.where(middle < frames_TCHW.shape[3] / 2, 1.3 * wide, -1.3 * wide)
    return lay_faces(frames_TCHW, crops, track.points_T52 + F.pad(beside, (0, 1))[:, None])


def other_face(frames_TCHW: Tensor, track: FaceTrack, crop_CHW: Tensor, *, at_once: bool = False) -> Tensor:
    """The face turns into another one, little by little or in the middle of the clip.

    Args:
        crop_CHW: the other face, aligned.
    """
    crops = crop_faces(frames_TCHW, track.points_T52, CROP)
    other = F.interpolate(crop_CHW[None], (CROP, CROP), mode="bilinear", antialias=True)
    share = torch.linspace(0, 1, len(frames_TCHW)).view(-1, 1, 1, 1)
    share = (share >= 0.5).float() if at_once else share
    return lay_faces(frames_TCHW, crops + share * (other - crops), track.points_T52)


def swapped_faces(frames_TCHW: Tensor, one: FaceTrack, other: FaceTrack, *, start: int) -> Tensor:
    """From frame `start` on, later than the first, each of two people has the other's face."""
    crops = [crop_faces(frames_TCHW, track.points_T52, CROP) for track in (one, other)]
    out = lay_faces(lay_faces(frames_TCHW, crops[1], one.points_T52), crops[0], other.points_T52)
    return torch.cat([frames_TCHW[:start], out[start:]])


def frozen_background(frames_TCHW: Tensor, track: FaceTrack) -> Tensor:
    """All but the head stands still as in the first frame."""
    head = _cover(frames_TCHW, track.points_T52, reach=3.0)
    return frames_TCHW[:1] + head * (frames_TCHW - frames_TCHW[:1])


def blocks(frames_TCHW: Tensor, track: FaceTrack, *, size: int = 8, amount: float = 0.7) -> Tensor:
    """Squares of the latents' grid show in the picture: each is drawn to its mean."""
    height, width = frames_TCHW.shape[2] // size * size, frames_TCHW.shape[3] // size * size
    out = frames_TCHW.clone()
    inner = frames_TCHW[1:, :, :height, :width]
    coarse = F.interpolate(F.avg_pool2d(inner, size), scale_factor=size, mode="nearest")
    out[1:, :, :height, :width] = inner + amount * (coarse - inner)
    return out


def flicker(frames_TCHW: Tensor, track: FaceTrack, *, amount: float = 0.03) -> Tensor:
    """Every other frame is brighter, the ones between darker."""
    sign = torch.tensor([1.0, -1.0]).repeat(len(frames_TCHW) // 2 + 1)[: len(frames_TCHW)].clone()
    sign[0] = 0
    return (frames_TCHW + amount * sign.view(-1, 1, 1, 1)).clamp(0, 1)


def lay_faces(frames_TCHW: Tensor, crops_TCHW: Tensor, points_T52: Tensor) -> Tensor:
    """Aligned crops laid back onto the frames at the given points, through a soft oval."""
    size = crops_TCHW.shape[-1]
    out = frames_TCHW.clone()
    cover = _cover(frames_TCHW, points_T52)
    for t in range(1, len(frames_TCHW)):
        crop_HW2 = _crop_places(frames_TCHW[t], points_T52[t : t + 1], size)
        grid = 2 * (crop_HW2 + 0.5) / size - 1
        face = F.grid_sample(
            crops_TCHW[t][None].float(), grid[None].float(), padding_mode="border", align_corners=False
        )[0]
        out[t] = frames_TCHW[t] + cover[t] * (face - frames_TCHW[t])
    return out


def _crop_places(frame_CHW: Tensor, points_152: Tensor, size: int) -> Tensor:
    """For every pixel of the frame its place in the crop, (H, W, 2)."""
    (crop_of_frame,) = similarity(points_152, size)
    height, width = frame_CHW.shape[1:]
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place_HW2 = torch.stack([across, down], dim=-1).double()
    return place_HW2 @ crop_of_frame[:, :2].T + crop_of_frame[:, 2]


def _cover(frames_TCHW: Tensor, points_T52: Tensor, *, reach: float = 1.0) -> Tensor:
    """(T, 1, H, W): 1 on the face (`reach` times as far), 0 off it, soft between."""
    centre_2 = template(112).mean(dim=0)
    # An oval around the five points from brow to chin, in pixels of the template.
    radii_2 = reach * torch.tensor([38.0, 48.0], dtype=torch.float64)
    covers = []
    for t in range(len(frames_TCHW)):
        place = _crop_places(frames_TCHW[t], points_T52[t : t + 1], 112)
        distance = ((place - centre_2) / radii_2).norm(dim=-1)
        covers.append(((1.15 - distance) / 0.3).clamp(0, 1).float())
    return torch.stack(covers)[:, None]


def _blurred(pictures_NCHW: Tensor, deviation: float) -> Tensor:
    reach = max(1, round(3 * deviation))
    line = torch.exp(-((torch.arange(-reach, reach + 1) / deviation) ** 2) / 2)
    line = (line / line.sum()).view(1, 1, -1)
    channels = pictures_NCHW.flatten(0, 1)[:, None]
    padded = F.pad(channels, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, line[:, :, None])
    return F.conv2d(across, line[..., None]).view(pictures_NCHW.shape)
