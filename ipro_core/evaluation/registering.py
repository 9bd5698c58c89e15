"""How far two aligned faces differ once one is laid on the other as well as a flat picture can be.

An affine map and a change of light are fitted to the pixels of the face's oval (Lucas and Kanade's method,
that is Gauss and Newton's); what is left is a change of view or expression. F pairs, P pixels of the oval.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDES = 16, 32
"""Pixels of the faces, coarse to fine: finer than that, noise moves and faces do not."""
ROUNDS = 6
LARGEST_STEP = 0.2
"""Of the picture's half side, in one round."""
CENTRE, RADII = (0.0, 0.2), (0.48, 0.62)
"""The oval from brow to chin in an aligned face, in half sides from its middle."""


def unlike(faces_FHW: Tensor, targets_FHW: Tensor) -> Tensor:
    """What no affine map of a face and no change of its light explains of its target: root mean square, in
    standard deviations of the target's oval, (F,)."""
    maps_F23 = torch.eye(2, 3).expand(len(faces_FHW), -1, -1)
    left_F = torch.zeros(len(faces_FHW))
    for side in SIDES:
        faces_F1HW, targets_F1HW = (
            F.interpolate(pictures[:, None], (side, side), mode="bilinear", antialias=True)
            for pictures in (faces_FHW, targets_FHW)
        )
        maps_F23, left_F = _register(faces_F1HW, targets_F1HW, maps_F23)
    return left_F


def _register(faces_F1HW: Tensor, targets_F1HW: Tensor, maps_F23: Tensor) -> tuple[Tensor, Tensor]:
    """The best maps met on the way, and what they leave."""
    count, _, side, _ = faces_F1HW.shape
    shape = [count, 1, side, side]
    places_P3, oval = _oval(side)
    target_FP = targets_F1HW.flatten(1)[:, oval]
    deviation_F1 = target_FP.std(dim=1, keepdim=True).clamp_min(1 / 255)
    target_FP = (target_FP - target_FP.mean(dim=1, keepdim=True)) / deviation_F1
    best_F, best_F23 = torch.full((count,), torch.inf), maps_F23
    for _ in range(ROUNDS + 1):
        grid = F.affine_grid(maps_F23, shape, align_corners=False)
        laid = F.grid_sample(faces_F1HW, grid, padding_mode="border", align_corners=False)[:, 0]
        down, across = torch.gradient(laid, dim=(1, 2))
        laid_FP, across_FP, down_FP = (part.flatten(1)[:, oval] for part in (laid, across, down))
        light_FP2 = torch.stack([laid_FP, torch.ones_like(laid_FP)], dim=-1)
        left_F = (target_FP - _fitted(light_FP2, target_FP)[1]).square().mean(dim=1).sqrt()
        better_F = left_F < best_F
        best_F = torch.where(better_F, left_F, best_F)
        best_F23 = torch.where(better_F[:, None, None], maps_F23, best_F23)
        # Slopes in levels per half side, times the place: how the picture changes with each number of the
        # map.
        slopes = [part[..., None] * (side / 2) * places_P3 for part in (across_FP, down_FP)]
        step = _fitted(torch.cat([*slopes, light_FP2], dim=-1), target_FP)[0]
        # The slopes are those of the face before its light is matched: steps are in units of the light's
        # gain.
        moved = (step[:, :6] / step[:, 6:7].clamp_min(0.3)).clamp(-LARGEST_STEP, LARGEST_STEP)
        maps_F23 = maps_F23 + moved.view(-1, 2, 3)
    return best_F23, best_F


def _oval(side: int) -> tuple[Tensor, Tensor]:
    """(x, y, 1) of the oval's pixels in half sides from the middle, and which they are of all."""
    places = F.affine_grid(torch.eye(2, 3)[None], [1, 1, side, side], align_corners=False)[0].flatten(0, 1)
    off = (places - torch.tensor(CENTRE)) / torch.tensor(RADII)
    oval = off.square().sum(dim=1) < 1
    return F.pad(places[oval], (0, 1), value=1.0), oval


def _fitted(columns_FPN: Tensor, target_FP: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares with a trace of ridge, for pictures without any detail: weights (F, N) and fit (F, P)."""
    turned = columns_FPN.transpose(1, 2)
    gram = turned @ columns_FPN
    ridge = 1e-4 * gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-6)
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[-1])
    weights = torch.linalg.solve(gram, turned @ target_FP[..., None])
    return weights[..., 0], (columns_FPN @ weights)[..., 0]
