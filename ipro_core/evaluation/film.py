"""Pictures of videos for people: strips of frames, and two videos side by side."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

TITLE_HEIGHT = 28
TITLE_PAPER = 0.09
LEAST_HEIGHT = 256
"""Pixels: smaller videos are enlarged by a whole factor, pixel by pixel, so that nothing is smoothed away."""


def side_by_side(videos: Mapping[str, Tensor], *, gap: int = 8) -> Tensor:
    """One video with several beside each other, each under its name: (T, 3, H, W) in [0, 1].

    Args:
        videos: name → frames (T, 3, H, W) of one height and width; the shorter ones end on their last frame.
        gap: pixels between them.
    """
    height, width = next(iter(videos.values())).shape[2:]
    factor = max(1, -(-LEAST_HEIGHT // height))
    length = max(len(frames) for frames in videos.values())
    columns = []
    for name, frames_TCHW in videos.items():
        assert frames_TCHW.shape[2:] == (height, width), "videos of one size"
        held = (
            frames_TCHW.detach()
            .float()
            .cpu()
            .clamp(0, 1)[torch.arange(length).clamp_max(len(frames_TCHW) - 1)]
        )
        large = held.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
        title = _title(name, width * factor)[None].expand(length, -1, -1, -1)
        columns.append(torch.cat([title, large], dim=2))
    space = torch.full((*columns[0].shape[:3], gap), TITLE_PAPER)
    return torch.cat([part for column in columns for part in (column, space)][:-1], dim=3)


def _title(text: str, width: int) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    paper = Image.new("L", (width, TITLE_HEIGHT), round(255 * TITLE_PAPER))
    ImageDraw.Draw(paper).text((8, 6), text, fill=235, font=ImageFont.load_default(15))
    return torch.from_numpy(np.array(paper)).float().div(255).expand(3, -1, -1)


def face_window(boxes_N4: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the part of the frame in which the head moves; the whole frame if that is
    most of it, or if there is no box."""
    if not len(boxes_N4):
        return 0, height, 0, width
    left, top = boxes_N4[:, :2].amin(dim=0).tolist()
    right, bottom = boxes_N4[:, 2:].amax(dim=0).tolist()
    margin = 0.45 * max(right - left, bottom - top)
    top, bottom = max(0, int(top - margin)), min(height, int(bottom + margin) + 1)
    left, right = max(0, int(left - margin)), min(width, int(right + margin) + 1)
    if (bottom - top) * (right - left) > 0.5 * height * width or bottom <= top or right <= left:
        return 0, height, 0, width
    return top, bottom, left, right


def thumbnails(frames_TCHW: Tensor, window: tuple[int, int, int, int], max_side: int = 144) -> Tensor:
    """That part of the frames as uint8, shrunk until the longer side has `max_side` pixels."""
    top, bottom, left, right = window
    part = frames_TCHW[:, :, top:bottom, left:right].detach().float().cpu().clamp(0, 1)
    shrink = max_side / max(part.shape[2:])
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in part.shape[2:]]
        part = interpolate(part, size=size, mode="bilinear", antialias=True).clamp(0, 1)
    return part.mul(255).round().byte()


def picture_address(picture_3HW: Tensor) -> str:
    """A uint8 picture as a data: address, JPEG with full colour resolution."""
    from PIL import Image

    buffer = BytesIO()
    levels = picture_3HW.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(levels).save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()


def contact_sheet(pictures: Sequence[Tensor], boxes_N4: Tensor, *, size: int, columns: int) -> Tensor:
    """The face of each picture (3, H, W), a little more than its box, in rows of `columns`: one picture."""
    rows = max(1, -(-len(pictures) // columns))
    sheet_CHW = torch.full((3, rows * size, columns * size), TITLE_PAPER)
    for n, (picture_CHW, box_4) in enumerate(zip(pictures, boxes_N4.tolist(), strict=True)):
        height, width = picture_CHW.shape[1:]
        side = max(box_4[2] - box_4[0], box_4[3] - box_4[1]) * 1.3
        left, top = (box_4[0] + box_4[2] - side) / 2, (box_4[1] + box_4[3] - side) / 2
        rows_H, columns_W = (
            (first + (torch.arange(size) + 0.5) / size * side).long().clamp(0, last - 1)
            for first, last in ((top, height), (left, width))
        )
        y, x = n // columns * size, n % columns * size
        sheet_CHW[:, y : y + size, x : x + size] = picture_CHW[:, rows_H][:, :, columns_W].clamp(0, 1)
    return sheet_CHW
