"""How much a head moves, from its landmarks: the guard against a face that is kept by freezing it.

FaceSim alone ranks a frozen face above the real clip, and a second recogniser agrees. Motion of pixels is no
guard either: a base model that flickers moves every pixel, so that any tuning seems to lose motion.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SMOOTHING = 3
"""Frames of the running median: one jumping landmark is no motion."""


def head_motion(points_T52: Tensor, seen_T: Tensor) -> float:
    """How far the five points stray from their mean place: root mean square, in face sizes.

    The place in the picture counts, and with it turning, nodding and speaking, all through the points. A face
    size is the root mean square distance of the five points from their centre (median over the video; 23 of
    the ArcFace template's 112 px). Noise adds to it in quadrature only, not frame by frame as it does to the
    length of the path. Measured on seven real clips whose points were made to shake by 0.05 face sizes:
    motion cut to half reads as 0.49 to 0.57 of the whole; by the length of the path it would be 0.50 to 1.03.

    Returns:
        NaN if the face was seen in fewer than three frames.
    """
    points = _smooth(points_T52, seen_T)
    if not len(points):
        return float("nan")
    size = (points - points.mean(dim=1, keepdim=True)).square().sum(dim=-1).mean(dim=1).sqrt().median()
    strayed = (points - points.mean(dim=0)).square().sum(dim=-1).mean().sqrt()
    return (strayed / size.clamp_min(1e-6)).item()


def head_turn(points_T52: Tensor, seen_T: Tensor) -> float:
    """How far the head turns and nods: the standard deviation of the nose's place between eyes and mouth.

    In face sizes, unmoved by anything that moves the picture as a whole; a head that travels with a frozen
    face gives 0. It rests on small differences of landmarks: read it beside `head_motion`, not alone.

    Returns:
        NaN if the face was seen in fewer than three frames.
    """
    points = _smooth(points_T52, seen_T)
    if not len(points):
        return float("nan")
    centred = torch.view_as_complex((points - points.mean(dim=1, keepdim=True)).contiguous())
    size = centred.abs().square().mean(dim=1).sqrt().clamp_min(1e-6)
    # Turn the picture so that the eyes lie level.
    level = centred[:, 1] - centred[:, 0]
    nose = centred[:, 2] * (level.conj() / level.abs().clamp_min(1e-6)) / size
    return (nose - nose.mean()).abs().square().mean().sqrt().item()


def motion_ratio(tuned: Sequence[float], base: Sequence[float]) -> float:
    """Motion kept: the sum over videos of the tuned model's motion over that of the base's.

    Pairs in which one is NaN are left out of both sums; NaN if nothing is left or the base does not move.
    """
    pairs = np.array([tuned, base], dtype=np.float64)
    tuned_sum, base_sum = pairs[:, np.isfinite(pairs).all(axis=0)].sum(axis=1)
    return float(tuned_sum / base_sum) if base_sum > 0 else float("nan")


def _smooth(points_T52: Tensor, seen_T: Tensor) -> Tensor:
    """Running median over the frames that show the face, float64; empty if they are fewer than three."""
    points = points_T52.detach()[seen_T].double().cpu()
    if len(points) < SMOOTHING:
        return points[:0]
    return points.unfold(0, SMOOTHING, 1).median(dim=-1).values
