"""Crops every face onto the ArcFace template: differentiable in the pixels, never in the landmarks.

Departs from InsightFace's `norm_crop` in one point: a face larger than the crop is averaged down, not sampled
with one bilinear tap. One tap hands the reward's gradient to a fifth of a large face's pixels, as dots.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# ArcFace's public template for a crop of 112 px: left eye, right eye, nose, left and right mouth corner.
TEMPLATE_52 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
MOST_TAPS = 16
"""Per crop pixel and side; enough for a face of 1800 px."""


def template(size: int) -> Tensor:
    """The five points in a crop of `size` px, (5, 2) float64: InsightFace's 112 layout, or its 128 layout."""
    points_52 = torch.tensor(TEMPLATE_52, dtype=torch.float64)
    if size % 112 and size % 128 == 0:  # eight columns more at each side
        return (points_52 + torch.tensor([8.0, 0.0], dtype=torch.float64)) * (size / 128)
    return points_52 * (size / 112)


def similarity(points_T52: Tensor, size: int = 112) -> Tensor:
    """The similarity (rotation, scale, shift) that brings five points onto the template in least squares.

    Closed form of Umeyama's method: with the centred points as complex numbers p and the template as q,
    the best q ≈ a p has a = Σ p* q / Σ |p|², whose modulus is the scale and whose angle the rotation.

    Returns:
        (T, 2, 3) float64 on the CPU: crop = M [x, y, 1]. Five equal points get scale 1.
    """
    source_T52, target_52 = points_T52.detach().cpu().double(), template(size)
    source_mean, target_mean = source_T52.mean(dim=1), target_52.mean(dim=0)
    p = torch.view_as_complex((source_T52 - source_mean[:, None]).contiguous())
    q = torch.view_as_complex((target_52 - target_mean).contiguous())
    spread = p.abs().square().sum(dim=1)
    a = torch.where(spread > 1e-6, (p.conj() * q).sum(dim=1) / spread.clamp_min(1e-6), 1.0)
    rotation = torch.stack([torch.stack([a.real, -a.imag], -1), torch.stack([a.imag, a.real], -1)], 1)
    shift = target_mean[:, None] - rotation @ source_mean[..., None]
    return torch.cat([rotation, shift], dim=2)


def crop_faces(
    frames_TCHW: Tensor | Sequence[Tensor],
    points_T52: Tensor,
    size: int = 112,
    *,
    antialias: bool = True,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One aligned face per frame.

    Args:
        frames_TCHW: in [0, 1]; also one by one, and then one of them several times.
        points_T52: one face per frame, in pixels; carries no gradient.
        antialias: average k × k taps where a crop pixel covers k frame pixels; False: one, as `norm_crop`.
        jitter: standard deviation, in crop pixels, of noise on each landmark; 1 to 2 in training keeps a
            generator from fitting one exact crop.
        generator: where that noise comes from.

    Returns:
        (T, 3, size, size), differentiable in the frames; black outside of them.
    """
    assert len(frames_TCHW) == len(points_T52), "one face per frame"
    if not len(frames_TCHW):
        like = frames_TCHW if isinstance(frames_TCHW, Tensor) else points_T52
        return like.new_zeros(0, 3, size, size)
    crop_of_frame = similarity(points_T52, size)
    if jitter:
        place = generator.device if generator else "cpu"
        noise_T52 = jitter * torch.randn(points_T52.shape, generator=generator, device=place).cpu()
        scale_T = crop_of_frame[:, :, 0].norm(dim=1)  # crop pixels per frame pixel
        crop_of_frame = similarity(points_T52.detach().cpu() + noise_T52 / scale_T[:, None, None], size)
    # unbind, not frames[t]: the backward pass of an index would fill a whole video of zeros for every face.
    frames = frames_TCHW.unbind() if isinstance(frames_TCHW, Tensor) else frames_TCHW
    crops = [
        _sample(frame_CHW, matrix, size, antialias)
        for frame_CHW, matrix in zip(frames, crop_of_frame, strict=True)
    ]
    return torch.stack(crops)


def crop_corners(points_T52: Tensor, size: int = 112) -> Tensor:
    """The four corners of what `crop_faces` looks at, in pixels of the frames, (T, 4, 2) float64."""
    crop_of_frame = similarity(points_T52, size)
    low, high = -0.5, size - 0.5
    corners_42 = crop_of_frame.new_tensor([[low, low], [high, low], [low, high], [high, high]])
    frame_of_crop = torch.linalg.inv(crop_of_frame[:, :, :2])
    return (corners_42 - crop_of_frame[:, None, :, 2]) @ frame_of_crop.transpose(1, 2)


def _sample(frame_CHW: Tensor, crop_of_frame: Tensor, size: int, antialias: bool) -> Tensor:
    frame = frame_CHW if frame_CHW.dtype == torch.float64 else frame_CHW.float()
    frame_of_crop = torch.linalg.inv(crop_of_frame[:, :2])
    frame_pixels = frame_of_crop[:, 0].norm().item()  # per crop pixel
    taps = min(max(math.ceil(frame_pixels - 1e-3), 1), MOST_TAPS) if antialias else 1
    # affine_grid's places run from −1 to 1 over the crop's outer edges, as do grid_sample's over the frame's:
    # half a pixel beyond the centres of the border pixels, which lie at integers.
    half = size / 2
    middle_2 = frame_of_crop @ (half - 0.5 - crop_of_frame[:, 2]) + 0.5
    across_2 = 2 / middle_2.new_tensor([frame.shape[2], frame.shape[1]])
    matrix_23 = across_2[:, None] * torch.cat([half * frame_of_crop, middle_2[:, None]], dim=1)
    matrix_23[:, 2] -= 1
    grid = F.affine_grid(matrix_23[None].to(frame), [1, 1, size * taps, size * taps], align_corners=False)
    taken = F.grid_sample(frame[None], grid, padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(taken, taps)[0]
