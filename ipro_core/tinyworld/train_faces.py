"""Train the tiny world's two recognisers and its detector, and measure them on people they never saw."""

import logging
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, normalize, smooth_l1_loss

from ..faces.alignment import crop_faces
from .clips import draw_clips
from .networks import DETECTOR_SIDE, STRIDES, WIDTH, anchor_centres
from .painting import render
from .scenes import PROMPTS, split_generator
from .world import draw_identities, draw_pictures, truth

log = logging.getLogger("ipro")
JITTER = 0.03
"""Landmark noise while training, as a share of the head's height."""
PEAK = 3e-3
"""The highest learning rate."""


def draw_crops(
    split: str, identities: int, views: int, seed: int = 0, *, smallest: float = 0.16, occluded: float = 0.13
) -> Tensor:
    """(identities, views, 3, 112, 112) in [0, 1]: aligned faces of new people, landmarks 3 % off."""
    generator = split_generator(split, seed)
    people_NI = draw_identities(identities, generator)
    crops = []
    for chunk in people_NI.split(64):
        repeated = chunk[:, None].expand(-1, views, -1).reshape(-1, 1, chunk.shape[-1])
        pictures = draw_pictures(repeated, generator, smallest=smallest, occluded=occluded)
        known = truth(pictures)
        points_52 = known.points_NTK52[:, 0, 0]
        height = (known.boxes_NTK4[:, 0, 0, 3] - known.boxes_NTK4[:, 0, 0, 1])[:, None, None]
        points_52 = points_52 + JITTER * height * torch.randn(points_52.shape, generator=generator)
        crops.append(crop_faces(render(pictures)[:, 0], points_52).view(len(chunk), views, 3, 112, 112))
    return torch.cat(crops)


def _small_crops(split: str, identities: int, views: int) -> Tensor:
    """Training crops at the 28 px the networks look at, in bytes to save memory."""
    parts = []
    for seed in range(math.ceil(identities / 64)):
        crops = draw_crops(split, 64, views, 1000 + seed).flatten(0, 1)
        parts.append((avg_pool2d(crops, 4) * 255).round().byte())
    return torch.cat(parts).view(-1, views, 3, 28, 28)


def _augment(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, a little blur, gain: bytes → [-1, 1]."""
    crops = crops.float() / 127.5 - 1
    count = len(crops)
    blurred = interpolate(
        interpolate(crops, scale_factor=0.5, mode="area"), scale_factor=2.0, mode="bilinear"
    )
    share = (torch.rand(count, 1, 1, 1, generator=generator) - 0.4).clamp_min(0)
    crops = torch.lerp(crops, blurred, share)
    gain = 1 + 0.1 * torch.randn(count, 1, 1, 1, generator=generator)
    level = 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    return crops * gain + level * torch.randn(crops.shape, generator=generator)


def _budget(cpu_seconds: float) -> Iterator[float]:
    """Yields the share of the budget that is spent, until it is."""
    began = time.process_time()
    while (spent := (time.process_time() - began) / cpu_seconds) < 1:
        yield spent


def _rate(spent: float, step: int) -> float:
    return min(1.0, (step + 1) / 100) * max(0.005, 0.5 + 0.5 * math.cos(math.pi * spent))


def train_recognizer(
    network: nn.Module, split: str, *, cpu_seconds: float, margin: str, people: int = 4096, views: int = 10
) -> None:
    """Learn to tell a split's people apart, in two halves.

    First pairs of views find each other among 128 people (InfoNCE), which needs no class centres and so
    learns in a tenth of the steps. Then a margin softmax over all people, whose centres begin as mean
    embeddings: "arcface" adds .35 to the angle, "cosface" takes .25 off the cosine.
    """
    crops = _small_crops(split, people, views)
    people = len(crops)
    log.info("%s: %d people x %d views drawn", split, people, views)
    generator = torch.Generator().manual_seed(2)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    centres = nn.Parameter(torch.zeros(people, WIDTH))
    optimizer = torch.optim.AdamW([*network.parameters(), centres], lr=PEAK, weight_decay=5e-4)

    def embed(chosen: Tensor) -> Tensor:
        batch = _augment(chosen, generator).contiguous(memory_format=torch.channels_last)
        return normalize(network.embed_small(batch))  # type: ignore[operator]

    recent = 0.0
    for step, spent in enumerate(_budget(cpu_seconds)):
        if spent < 0.55:
            who = torch.randperm(people, generator=generator)[:128]
            one = torch.randint(views, (128,), generator=generator)
            two = (one + torch.randint(1, views, (128,), generator=generator)) % views
            embeddings = embed(torch.cat((crops[who, one], crops[who, two])))
            logits = 14.0 * (embeddings @ embeddings.T).fill_diagonal_(-2.0)
            loss = cross_entropy(logits, torch.arange(256).roll(128))
        else:
            if not centres.any():
                with torch.no_grad():
                    # One view of many people at a time: BatchNorm must not see a single person.
                    means = [
                        torch.cat([embed(part[:, view]) for part in crops.split(256)]) for view in range(4)
                    ]
                    centres.copy_(torch.stack(means).mean(0))
            who = torch.randint(people, (256,), generator=generator)
            cosines = (
                embed(crops[who, torch.randint(views, (256,), generator=generator)]) @ normalize(centres).T
            )
            own = cosines[torch.arange(256), who].clamp(-0.9999, 0.9999)
            strength = min(1.0, (spent - 0.55) / 0.2)  # the margin grows in
            if margin == "arcface":
                moved = (own.acos() + 0.35 * strength).clamp_max(math.pi).cos()
            else:
                moved = own - 0.25 * strength
            loss = cross_entropy(24.0 * cosines.scatter(1, who[:, None], moved[:, None]), who)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = PEAK * _rate(spent, step)
        optimizer.step()
        recent += loss.item()
        if step % 50 == 49:
            log.info(
                "%s %5d steps, %3.0f %% of the budget, loss %.3f", split, step + 1, 100 * spent, recent / 50
            )
            recent = 0.0


def draw_crowds(split: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detector pictures (M, 3, 48, 48) of 0 to 3 people, a quarter of them frames of clips, with boxes,
    points, visibility."""
    generator = split_generator(split, seed)
    alone = count // 4
    people = torch.randint(0, 4, (count - alone, 1), generator=generator) > torch.arange(3)
    identities_NKI = torch.stack([draw_identities(count - alone, generator) for _ in range(3)], dim=1)
    crowd = draw_pictures(identities_NKI, generator, present_NK=people.float(), smallest=0.09, occluded=0.12)
    chosen = torch.randint(len(PROMPTS), (alone,), generator=generator).tolist()
    clips = draw_clips([PROMPTS[i] for i in chosen], generator, frames=3)
    moment = torch.randint(3, (alone,), generator=generator)
    row = torch.arange(alone)
    one, two = truth(crowd), truth(clips)
    pad = (0, 0, 0, 1)
    boxes = torch.cat((one.boxes_NTK4[:, 0], nn.functional.pad(two.boxes_NTK4[row, moment], pad)))
    points = torch.cat(
        (one.points_NTK52[:, 0], nn.functional.pad(two.points_NTK52[row, moment], (0, 0, *pad)))
    )
    visible = torch.cat((one.visible_NTK[:, 0], nn.functional.pad(two.visible_NTK[row, moment], (0, 1))))
    return torch.cat((render(crowd)[:, 0], render(clips)[row, moment])), boxes, points, visible


def enlarge(frames_N3HW: Tensor) -> Tensor:
    """[0, 1] frames → the detector's input: fitted into 128 px, in SCRFD's units."""
    scale = DETECTOR_SIDE / frames_N3HW.shape[-1]
    image = interpolate(frames_N3HW, scale_factor=scale, mode="bilinear", align_corners=False)
    return (image * 255 - 127.5) / 128


def _targets(boxes_NK4: Tensor, visible_NK: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per stride: which face each anchor learns (N, A), −1 for none, and whether the anchor counts at all."""
    targets = []
    size_NK = (boxes_NK4[..., 2:] - boxes_NK4[..., :2]).amax(-1)
    centre_NK2 = (boxes_NK4[..., 2:] + boxes_NK4[..., :2]) / 2
    limits = {8: (0.0, 44.0), 16: (36.0, 80.0), 32: (68.0, 1e9)}
    for stride, centres in zip(STRIDES, anchor_centres(), strict=True):
        low, high = limits[stride]
        near = ((centres[None, :, None] - centre_NK2[:, None]).abs() < 0.9 * stride).all(-1)
        fits = ((size_NK >= low) & (size_NK < high))[:, None]
        face = near & fits & (visible_NK >= 0.4)[:, None]
        hidden = near & (visible_NK < 0.4)[:, None]
        first = torch.where(face.any(-1), face.int().argmax(-1), -1)  # the one in front
        targets.append((first, ~(hidden.any(-1) & ~face.any(-1))))
    return targets


def _giou(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes, row by row."""
    overlap = (
        (torch.minimum(one[:, 2:], two[:, 2:]) - torch.maximum(one[:, :2], two[:, :2])).clamp_min(0).prod(-1)
    )
    area = (one[:, 2:] - one[:, :2]).clamp_min(0).prod(-1) + (two[:, 2:] - two[:, :2]).prod(-1) - overlap
    hull = (torch.maximum(one[:, 2:], two[:, 2:]) - torch.minimum(one[:, :2], two[:, :2])).prod(-1)
    iou = overlap / (area + 1e-6)
    return iou, iou - (hull - area) / (hull + 1e-6)


def train_detector(network: nn.Module, *, cpu_seconds: float, pictures: int = 8_000, batch: int = 48) -> None:
    """Quality focal loss on scores, generalised IoU on boxes, smooth L1 on points (in tenths of the face)."""
    parts = [draw_crowds("detector", 1000, seed) for seed in range(pictures // 1000)]
    frames, boxes, points, visible = (torch.cat(column) for column in zip(*parts, strict=True))
    frames = (frames * 255).round().byte()
    log.info("detector: %d pictures drawn", len(frames))
    scale, side = DETECTOR_SIDE / frames.shape[-1], frames.shape[-1]
    swap = torch.tensor([1, 0, 2, 4, 3])
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK, weight_decay=5e-4)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recent = torch.zeros(3)
    for step, spent in enumerate(_budget(cpu_seconds)):
        rows = torch.randint(len(frames), (batch,), generator=generator)
        image, box, point = frames[rows].float() / 255, boxes[rows].clone(), points[rows].clone()
        if step % 2:  # mirrored: left and right change places
            image = image.flip(-1)
            box = torch.stack(
                (side - 1 - box[..., 2], box[..., 1], side - 1 - box[..., 0], box[..., 3]), dim=-1
            )
            point = torch.stack((side - 1 - point[..., 0], point[..., 1]), dim=-1)[..., swap, :]
        image = image + 0.04 * torch.rand(batch, 1, 1, 1, generator=generator) * torch.randn(
            image.shape, generator=generator
        )
        outputs = network(enlarge(image).contiguous(memory_format=torch.channels_last))
        box, point = box * scale, point * scale
        losses = torch.zeros(3)
        faces = 0
        for level, (stride, centres, (face, counts)) in enumerate(
            zip(STRIDES, anchor_centres(), _targets(box, visible[rows]), strict=True)
        ):
            score = outputs[level].view(batch, -1)
            quality = torch.zeros_like(score)
            row, anchor = torch.nonzero(face >= 0, as_tuple=True)
            if len(row):
                faces += len(row)
                centre = centres[anchor]
                reach = outputs[3 + level].view(batch, -1, 4)[row, anchor] * stride
                guess = torch.cat((centre - reach[:, :2], centre + reach[:, 2:]), dim=-1)
                aim = box[row, face[row, anchor]]
                iou, giou = _giou(guess, aim)
                quality[row, anchor] = iou.detach().clamp(0, 1)
                offset = outputs[6 + level].view(batch, -1, 5, 2)[row, anchor] * stride
                unit = 0.1 * (aim[:, 2:] - aim[:, :2]).amax(-1)[:, None, None]
                wanted = point[row, face[row, anchor]] - centre[:, None]
                losses[1] = losses[1] + (1 - giou).sum()
                losses[2] = (
                    losses[2]
                    + smooth_l1_loss(offset / unit, wanted / unit, reduction="none").mean((1, 2)).sum()
                )
            entropy = nn.functional.binary_cross_entropy(score, quality, reduction="none")
            losses[0] = losses[0] + ((score.detach() - quality).abs() ** 2 * entropy * counts).sum()
        total = (losses * torch.tensor([1.0, 2.0, 1.0])).sum() / max(faces, 1)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        for group in optimizer.param_groups:
            group["lr"] = PEAK * _rate(spent, step)
        optimizer.step()
        recent += losses.detach() / max(faces, 1)
        if step % 200 == 199:
            log.info(
                "detector %5d steps, %3.0f %% of the budget, score %.3f box %.3f points %.3f",
                step + 1, 100 * spent, *(recent / 200).tolist(),
            )  # fmt: skip
            recent = torch.zeros(3)
