"""Small pictures of a shot, for people and for models that look at it: frames, faces, and sheets of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

FRAME, PORTRAIT = 320, 160
"""Pixels of a frame's longer side, and of a face's picture."""
AROUND = 1.7
"""A face's picture to its box: hands and masks are beside it."""
COLUMNS = 4


def small_frame(frame_CHW: Tensor) -> Tensor:
    """The frame, shrunk where it is larger than `FRAME`."""
    height, width = frame_CHW.shape[1:]
    share = min(1.0, FRAME / max(height, width))
    size = max(1, round(height * share)), max(1, round(width * share))
    return interpolate(frame_CHW[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def portrait(frame_CHW: Tensor, box_4: Tensor) -> Tensor:
    """The face in the box and what is around it, (3, PORTRAIT, PORTRAIT); black beyond the frame."""
    left, top, right, bottom = box_4.tolist()
    side = max(2, round(AROUND * max(right - left, bottom - top)))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    height, width = frame_CHW.shape[1:]
    square_CHW = frame_CHW.new_zeros(3, side, side)
    up, down = max(0, y), min(height, y + side)
    first, last = max(0, x), min(width, x + side)
    if up < down and first < last:
        square_CHW[:, up - y : down - y, first - x : last - x] = frame_CHW[:, up:down, first:last]
    return interpolate(square_CHW[None], (PORTRAIT, PORTRAIT), mode="bilinear", antialias=True)[0].clamp(0, 1)


def sheet(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures of one size in rows of four, in reading order; black where there is none."""
    wide, blank = min(COLUMNS, len(pictures)), torch.zeros_like(pictures[0])
    rows = [list(pictures[first : first + wide]) for first in range(0, len(pictures), wide)]
    return torch.cat([torch.cat(row + [blank] * (wide - len(row)), dim=2) for row in rows], dim=1)
