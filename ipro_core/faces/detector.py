"""Finds faces and their five points with SCRFD, at two scales: one alone misses close-ups. Never a gradient.

Keeps the numbers of InsightFace's `FaceAnalysis` and departs from it in what runs: whole batches, the frame's
aspect (no square of padding), and 640 and 320 px; 320 only adds what 640 missed: its points are coarser. It
is looked at where 640 px find nothing, or a glance at 160 px, a fifth of the work, hints at a face more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Face
from .onnx_graph import OnnxGraph

LONG_SIDES = (640, 320)
"""Pixels. 640 alone loses 8 to 100 % of the frames of close-ups; add 1280 for faces below 30 px."""
BORDER = 64
"""Pixels of black beside the frame: SCRFD looks beyond its stride, and InsightFace shows it black there."""
OVERLAP = 0.4
"""Two boxes with more in common (intersection over union) are one face; InsightFace's number."""
HINT, GLANCED = 0.1, 16
"""Confidence of a glance from which a face may have been missed, and the width in its pixels below which it
counts for less, in proportion: there a glance sees things. See docs/evaluation.md for what that misses."""
LAYOUTS = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
"""Number of outputs → strides, anchors per place; for each stride scores, then boxes, then points."""


class Detector:
    """A detector of an InsightFace pack: SCRFD, or any network with its outputs."""

    def __init__(self, network: OnnxGraph, name: str, long_sides: tuple[int, ...] = LONG_SIDES):
        """`long_sides`: scales to look at, in pixels; a file that fixes its input size runs at that size."""
        self.network, self.name = network, name
        self.strides, self.anchors = LAYOUTS[len(network.output_shapes)]
        height, width = network.input.shape[-2:]
        self.fixed_size = (height, width) if height and width else None
        self.long_sides = tuple(sorted(long_sides, reverse=True))

    @torch.no_grad()
    def detect(self, frames_TCHW: Tensor, threshold: float = 0.5, chunk: int = 0) -> list[list[Face]]:
        """The faces of every frame, the surest first, on the CPU.

        Args:
            frames_TCHW: RGB in [0, 1], on any device.
            threshold: the least confidence.
            chunk: frames at a time; 0: 2 on a CPU, whose memory for more would be fetched anew every time
                and cost a tenth, else 8.
        """
        chunk = chunk or (2 if next(self.network.buffers()).device.type == "cpu" else 8)
        return [
            faces for frames in frames_TCHW.detach().split(chunk) for faces in self._detect(frames, threshold)
        ]

    def _detect(self, frames_BCHW: Tensor, threshold: float) -> list[list[Face]]:
        # Channels last resizes in half the time on a CPU, to the same numbers.
        frames = frames_BCHW.to(next(self.network.buffers())).contiguous(memory_format=torch.channels_last)
        windows = [self.fixed_size] if self.fixed_size else [(side, side) for side in self.long_sides]
        looks = [self._look(frames, window, threshold) for window in windows[:-1] or windows]
        found = [_best(_of_frame(looks, index)) for index in range(len(frames))]
        if len(windows) == 1:
            return found
        doubtful = self._doubtful(frames, found, threshold)
        if doubtful:
            some = frames if len(doubtful) == len(frames) else frames[doubtful]
            rows = self._look(some, windows[-1], threshold)
            rows[:, 0] = rows.new_tensor(doubtful)[rows[:, 0].long()]
            for index in doubtful:
                found[index] = _best(_of_frame([*looks, rows], index))
        return found

    def _doubtful(self, frames_BCHW: Tensor, found: list[list[Face]], threshold: float) -> list[int]:
        """Where the coarsest scale may add a face: in frames without any, and where a glance at half that
        scale, nothing beside the frame, hints at a face elsewhere than at those that are known."""
        sure = [index for index, faces in enumerate(found) if faces]
        if not sure:
            return list(range(len(found)))
        glance = self.long_sides[-1] // 2
        some = frames_BCHW if len(sure) == len(found) else frames_BCHW[sure]
        hints = self._look(some, (glance, glance), min(HINT, threshold), border=0)
        width_N = (hints[:, 4] - hints[:, 2]) * glance / max(frames_BCHW.shape[2:])
        hints = hints[hints[:, 1] * (width_N / GLANCED).clamp(max=1) >= min(HINT, threshold)]
        hinted = []
        for place, index in enumerate(sure):
            boxes_N4 = hints[hints[:, 0] == place, 2:6]
            known_FN = [_overlap(face.box_4, boxes_N4) > OVERLAP for face in found[index]]
            if not torch.stack(known_FN).any(dim=0).all():
                hinted.append(index)
        return [index for index in range(len(found)) if index in hinted or index not in sure]

    def _look(
        self, frames_BCHW: Tensor, window: tuple[int, int], threshold: float, border: int = BORDER
    ) -> Tensor:
        """One scale: rows of frame index, score, box and points, in pixels of the frames; on the CPU."""
        images_BCHW, scale = self._fit(frames_BCHW, window, border)
        outputs = self.network(images_BCHW)
        levels = len(self.strides)
        rows = []
        for level, stride in enumerate(self.strides):
            scores, boxes, points = (
                output.reshape(len(images_BCHW), -1, columns)
                for output, columns in zip(outputs[level::levels], (1, 4, 10), strict=True)
            )
            frame, anchor = (scores[..., 0] >= threshold).nonzero(as_tuple=True)
            cell = anchor // self.anchors
            cells_across = images_BCHW.shape[3] // stride
            centre_2 = torch.stack([cell % cells_across, cell // cells_across], dim=1)
            sign_4 = boxes.new_tensor([-1, -1, 1, 1])  # distances to left, top, right, bottom
            box_4 = centre_2.repeat(1, 2) + sign_4 * boxes[frame, anchor]
            points_10 = centre_2.repeat(1, 5) + points[frame, anchor]
            # Divided by the scale alone, although pixel centres lie at integers: so does InsightFace, and its
            # recognisers have learnt crops placed by such points.
            rows.append(
                torch.cat(
                    [
                        frame[:, None],
                        scores[frame, anchor],
                        box_4 * stride / scale,
                        points_10 * stride / scale,
                    ],
                    dim=1,
                )
            )
        return torch.cat(rows).cpu()

    def _fit(
        self, frames_BCHW: Tensor, window: tuple[int, int], border: int = BORDER
    ) -> tuple[Tensor, float]:
        """Resize the frames into the window at the top left, aspect kept, black beside them; as SCRFD knows
        them, (x · 255 − 127.5) / 128."""
        height, width = frames_BCHW.shape[2:]
        # InsightFace's rounding, down to the float: a pixel here moves every landmark.
        aspect, (tall, wide) = height / width, window
        if aspect > tall / wide:
            size = tall, max(int(tall / aspect), 1)
        else:
            size = max(int(wide * aspect), 1), wide
        step = self.strides[-1]
        padded = self.fixed_size or [
            min(-(-(side + border) // step) * step, -(-full // step) * step)
            for side, full in zip(size, window, strict=True)
        ]
        resized = F.interpolate(frames_BCHW, size, mode="bilinear", align_corners=False)
        # Written once, and channels last, which takes a third less time on a CPU.
        images = torch.empty(
            (len(frames_BCHW), 3, *padded),
            device=resized.device,
            dtype=resized.dtype,
            memory_format=torch.channels_last,
        ).fill_(-127.5 / 128)
        images[:, :, : size[0], : size[1]] = resized.mul_(255 / 128).sub_(127.5 / 128)
        return images, size[0] / height


def _of_frame(looks: list[Tensor], index: int) -> list[Tensor]:
    return [rows[rows[:, 0] == index, 1:] for rows in looks]


def _best(looks: list[Tensor]) -> list[Face]:
    """Of the rows of one frame, finest scale first, drop every box that overlaps a finer or surer one."""
    rows = torch.cat([look[look[:, 0].argsort(descending=True, stable=True)] for look in looks])
    faces = []
    while len(rows):
        score, box, points = rows[0, 0], rows[0, 1:5], rows[0, 5:].reshape(5, 2)
        faces.append(Face(box.clone(), points.clone(), score.item()))
        rows = rows[1:][_overlap(box, rows[1:, 1:5]) <= OVERLAP]
    return sorted(faces, key=lambda face: -face.score)


def _overlap(box_4: Tensor, boxes_N4: Tensor) -> Tensor:
    """Intersection over union by InsightFace's areas, which count the pixels of both borders."""
    shared_N2 = torch.minimum(box_4[2:], boxes_N4[:, 2:]) - torch.maximum(box_4[:2], boxes_N4[:, :2]) + 1
    shared_N = shared_N2.clamp_min(0).prod(dim=1)
    area, area_N = (box_4[2:] - box_4[:2] + 1).prod(), (boxes_N4[:, 2:] - boxes_N4[:, :2] + 1).prod(dim=1)
    return shared_N / (area + area_N - shared_N)
