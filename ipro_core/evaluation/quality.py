"""VBench's seven image-to-video dimensions as formulas over wrapped networks (Table 2's columns).

Compatible, not official: frames, resizing, pairing and averages are VBench's, the networks come from
maintained packages (`quality_networks`). Only `vbench_runner` gives official numbers. Networks are
functions here, so that each formula is tested on features that are known.

    SC  subject consistency      DINO      BC  background consistency   CLIP B/32
    AQ  aesthetic quality        CLIP L/14 with LAION's head            IQ  imaging quality   MUSIQ
    TF  temporal flickering      none      MS  motion smoothness        AMT
    DD  dynamic degree, three figures      RAFT

TF rewards stillness: read it beside a figure of motion. BC looks at the whole frame, as VBench does.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Features = Callable[[Tensor], Tensor]
"""(T, 3, H, W) normalised → (T, D)."""
Flow = Callable[[Tensor, Tensor], Tensor]
"""Two frames (3, H, W) of levels 0 to 255, sides divisible by 8 → flow in pixels, (2, H, W)."""
Middle = Callable[[Tensor, Tensor], Tensor]
"""Two frames (3, H, W) in [0, 1] → the one between them."""

SIDE = 224
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CHUNK = 32
FLOW_RATE = 8
"""Frames a second between which VBench looks for motion."""
FASTEST = 0.05
"""Share of the pixels whose flow counts, the fastest."""


def dino_frames(frames_TCHW: Tensor) -> Tensor:
    """Levels 0 to 255 for DINO: shorter side 224, not cropped."""
    return _normalised(_shorter_side(frames_TCHW, "bilinear"), *IMAGENET)


def clip_frames(frames_TCHW: Tensor) -> Tensor:
    """Levels 0 to 255 for CLIP: shorter side 224, the middle square."""
    small = _shorter_side(frames_TCHW, "bicubic")
    top, left = (round((side - SIDE) / 2) for side in small.shape[2:])
    return _normalised(small[:, :, top : top + SIDE, left : left + SIDE], *CLIP)


def consistency(features_TD: Tensor) -> float:
    """SC and BC: each frame's cosine to the one before and to the first, negative ones as 0, halved; mean."""
    unit_TD = F.normalize(features_TD.double(), dim=1)
    before_T = (unit_TD[1:] * unit_TD[:-1]).sum(dim=1).clamp_min(0)
    first_T = (unit_TD[1:] @ unit_TD[0]).clamp_min(0)
    return ((before_T + first_T) / 2).mean().item()


def subject_consistency(frames_TCHW: Tensor, dino: Features) -> float:
    """Of frames in [0, 1]."""
    return consistency(_in_chunks(levels(frames_TCHW), lambda part: dino(dino_frames(part))))


def background_consistency(frames_TCHW: Tensor, clip: Features) -> float:
    return consistency(_in_chunks(levels(frames_TCHW), lambda part: clip(clip_frames(part))))


def aesthetic_quality(frames_TCHW: Tensor, clip: Features, head: Features) -> float:
    """The head's mark of the unit feature, 0 to 10, over 10; mean over the frames."""
    features_TD = _in_chunks(levels(frames_TCHW), lambda part: clip(clip_frames(part)))
    return (head(F.normalize(features_TD.float(), dim=1)) / 10).mean().item()


def imaging_quality(frames_TCHW: Tensor, musiq: Features) -> float:
    """MUSIQ's mark, 0 to 100, over 100, of frames in [0, 1] whose longer side is at most 512; mean."""
    pictures = levels(frames_TCHW)
    height, width = pictures.shape[2:]
    if max(height, width) > 512:
        scale = 512.0 / max(height, width)
        size = int(scale * height), int(scale * width)
        pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
    marks = [musiq(picture[None] / 255).flatten() for picture in pictures]
    return torch.cat(marks).mean().item() / 100


def temporal_flickering(frames_TCHW: Tensor) -> float:
    """(255 − mean change from frame to frame) / 255, of 8-bit frames: 1 for a still picture."""
    shown = levels(frames_TCHW)
    changes = torch.stack([(after - before).abs().mean() for before, after in pairwise(shown)])
    return (255 - changes.double().mean().item()) / 255


def motion_smoothness(frames_TCHW: Tensor, middle: Middle) -> float:
    """Odd frames made anew from their even neighbours: (255 − mean difference) / 255 of 8-bit frames."""
    shown = levels(frames_TCHW)
    differences = []
    for t in range(1, len(shown) - 1, 2):
        made = (middle(shown[t - 1] / 255, shown[t + 1] / 255) * 255).clamp(0, 255).floor()
        differences.append((made - shown[t]).abs().mean().item())
    return (255 - sum(differences) / len(differences)) / 255


def fastest_flow(frames_TCHW: Tensor, fps: float, flow: Flow) -> list[float]:
    """The mean length in pixels of the fastest 5 % of the flow, between frames an eighth of a second
    apart."""
    taken = levels(frames_TCHW)[:: flow_stride(fps)]
    lengths = []
    for before, after in pairwise(taken):
        moved = flow(*_padded(before, after)).norm(dim=0).flatten()
        lengths.append(moved.topk(int(len(moved) * FASTEST)).values.mean().item())
    return lengths


def flow_stride(fps: float) -> int:
    return max(1, round(fps / FLOW_RATE))


def is_dynamic(fastest: list[float], height: int, width: int) -> bool:
    """VBench's question of one clip; the share of clips of which it is true is its Dynamic Degree."""
    limit = 6.0 * min(height, width) / 256
    wanted = round(4 * (len(fastest) + 1) / 16)
    return bool(fastest) and sum(length > limit for length in fastest) >= max(1, wanted)


def flow_figures(fastest: list[float], height: int, width: int, fps: float) -> dict[str, float]:
    """`dynamic`, 1 or 0; `top5_px`, pixels a look, which grows with resolution and falls with fps;
    `top5_rel`, shorter sides a second, which compares between both."""
    pixels = sum(fastest) / len(fastest) if fastest else math.nan
    return {
        "dynamic": float(is_dynamic(fastest, height, width)) if fastest else math.nan,
        "top5_px": pixels,
        "top5_rel": pixels * fps / flow_stride(fps) / min(height, width),
    }


def levels(frames_TCHW: Tensor) -> Tensor:
    """Frames in [0, 1] as 8-bit levels, as a file would hold them."""
    return (frames_TCHW.float() * 255).round().clamp(0, 255)


def _shorter_side(pictures_TCHW: Tensor, mode: str) -> Tensor:
    """Without antialiasing, as VBench resizes."""
    height, width = pictures_TCHW.shape[2:]
    short = min(height, width)
    size = (SIDE, int(SIDE * width / short)) if height == short else (int(SIDE * height / short), SIDE)
    return F.interpolate(pictures_TCHW, size, mode=mode, align_corners=False)


def _normalised(pictures_TCHW: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    shape = 1, 3, 1, 1
    return (pictures_TCHW / 255 - torch.tensor(mean).view(shape)) / torch.tensor(deviation).view(shape)


def _padded(*pictures: Tensor) -> list[Tensor]:
    """Sides brought to a multiple of 8 by their own edge, half on each side."""
    height, width = pictures[0].shape[1:]
    more_h, more_w = -height % 8, -width % 8
    pads = more_w // 2, more_w - more_w // 2, more_h // 2, more_h - more_h // 2
    return [F.pad(picture[None], pads, mode="replicate")[0] for picture in pictures]


@torch.no_grad()
def _in_chunks(pictures_TCHW: Tensor, network: Features) -> Tensor:
    return torch.cat([network(part).float().cpu() for part in pictures_TCHW.split(CHUNK)])
