"""A procedural world of faces: who someone is, apart from pose, expression and light.

A head is an ellipsoid seen orthographically. Its features are soft masks in longitude and latitude on that
surface, so that turning foreshortens and hides them; the nose stands out and shifts against the rest.
Thirty-four identity numbers and fifteen state numbers share nothing, hence boxes, landmarks and every
corruption of a face are known exactly.

N pictures or clips, T frames, K people, I identity, S state; positions and scales are fractions of the
picture's side, y runs down, angles are radians: yaw > 0 turns to the picture's right, pitch > 0 looks down,
roll > 0 is clockwise. A head's scale is half its height.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

IDENTITY = (
    "skin_tone", "skin_red", "skin_yellow", "width", "jaw", "eye_apart", "eye_height", "eye_width",
    "eye_open", "eye_tilt", "iris_hue", "iris_dark", "brow_height", "brow_thick", "brow_length",
    "brow_tilt", "nose_length", "nose_width", "nose_out", "mouth_height", "mouth_width", "lip_thick",
    "lip_red", "hair_dark", "hair_warm", "hair_grey", "hairline", "hair_volume", "hair_length", "parting",
    "beard", "glasses", "mole_lon", "mole_lat",
)  # fmt: skip
STATE = (
    "x", "y", "scale", "yaw", "pitch", "roll", "mouth_open", "smile", "lids", "brows", "gaze_x", "gaze_y",
    "light_side", "light_up", "light_power",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scenes:
    """Everything that a batch of N clips of T frames shows; T = 1 is a picture."""

    identities_NKI: Tensor
    """In [0, 1]; person 0 is in front."""
    states_NTKS: Tensor
    present_NK: Tensor
    """1 where there is such a person."""
    clothes_NK7: Tensor
    """Two colours and the stripes' frequency."""
    ground_NG: Tensor
    """The background: three colours, then nine numbers that shape its texture."""
    occluders_NTO8: Tensor
    """Rectangles: centre x y, half width and height, colour, opacity."""

    def __getitem__(self, index: slice) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[index] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.identities_NKI)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of every face: boxes (left top right bottom) and points in pixels, InsightFace's
    order."""

    boxes_NTK4: Tensor
    points_NTK52: Tensor
    visible_NTK: Tensor
    """Share of the five points that are inside the picture and not covered; 0 for an absent person."""


def between(low: float, high: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(tuple(shape), generator=generator)


def draw_identities(count: int, generator: torch.Generator) -> Tensor:
    """(count, 34) in [0, 1]; a third wears a beard, a quarter glasses, half a mole (parting and mole are
    one-sided)."""
    identities_NI = torch.rand(count, len(IDENTITY), generator=generator)
    rarely = {"beard": 0.35, "glasses": 0.25, "mole_lat": 0.5, "hair_grey": 0.3}
    for name, share in rarely.items():
        column = identities_NI[:, IDENTITY.index(name)]
        column.copy_((column - (1 - share)).clamp_min(0) / share)
    return identities_NI


def state(**columns: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*(columns[name] for name in STATE)), dim=-1)


def surroundings(count: int, frames: int, people: int, occluded: float, generator: torch.Generator):
    """Clothes, background and occluders; a rectangle covers part of the picture in a share of the scenes."""
    clothes_NK7 = torch.rand(count, people, 7, generator=generator)
    ground_NG = torch.rand(count, 18, generator=generator)
    occluders = torch.cat(
        (
            between(0.1, 0.9, (count, 1, 2, 2), generator),
            between(0.04, 0.16, (count, 1, 2, 2), generator),
            torch.rand(count, 1, 2, 3, generator=generator),
            (torch.rand(count, 1, 2, 1, generator=generator) < occluded).float(),
        ),
        dim=-1,
    )
    drift = between(-0.15, 0.15, (count, 1, 2, 2), generator) * torch.linspace(0, 1, frames).view(1, -1, 1, 1)
    occluders_NTO8 = occluders.repeat(1, frames, 1, 1)
    occluders_NTO8[..., :2] += drift
    return clothes_NK7, ground_NG, occluders_NTO8


def draw_pictures(
    identities_NKI: Tensor,
    generator: torch.Generator,
    *,
    present_NK: Tensor | None = None,
    smallest: float = 0.12,
    occluded: float = 0.13,
) -> Scenes:
    """Unrelated pictures (T = 1) of given people in any state: for recognisers (K = 1) and detectors (K =
    3)."""
    shape = identities_NKI.shape[:2]
    scale_NK = smallest * (0.36 / smallest) ** torch.rand(shape, generator=generator)
    states_NKS = state(
        x=between(0.1, 0.9, shape, generator) * (1 - 1.2 * scale_NK) + 0.6 * scale_NK,
        y=between(0.1, 0.8, shape, generator) * (1 - 1.2 * scale_NK) + 0.6 * scale_NK,
        scale=scale_NK,
        yaw=between(-0.75, 0.75, shape, generator),
        pitch=between(-0.35, 0.35, shape, generator),
        roll=between(-0.35, 0.35, shape, generator),
        mouth_open=between(-0.6, 1.1, shape, generator).clamp_min(0),
        smile=between(-1.0, 1.1, shape, generator),
        lids=between(-0.8, 1.0, shape, generator).clamp_min(0),
        brows=between(-0.7, 1.0, shape, generator),
        gaze_x=between(-0.8, 0.8, shape, generator),
        gaze_y=between(-0.5, 0.5, shape, generator),
        light_side=between(-1.0, 1.0, shape, generator),
        light_up=between(-0.3, 0.8, shape, generator),
        light_power=between(0.65, 1.2, shape, generator),
    )
    count, people = shape
    present_NK = torch.ones(shape) if present_NK is None else present_NK
    around = surroundings(count, 1, people, occluded, generator)
    return Scenes(identities_NKI, states_NKS[:, None], present_NK, *around)


class Named:
    """The columns of a tensor by name, shaped to broadcast over pictures."""

    def __init__(self, values: Tensor, names: Sequence[str]) -> None:
        self.__dict__.update(zip(names, values[..., None, None].unbind(-3), strict=True))

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(name)


def face_plan(who: Named, how: Named) -> dict[str, Tensor]:
    """Longitudes and latitudes of the features that move or carry landmarks."""
    mouth_lat = 0.56 + 0.12 * (who.mouth_height - 0.5)
    mouth_lon = (0.24 + 0.2 * who.mouth_width) * (1 + 0.22 * how.smile - 0.12 * how.mouth_open)
    return {
        "width": 0.70 + 0.18 * who.width,
        "jaw": 0.04 + 0.34 * who.jaw,
        "eye_lon": 0.36 + 0.16 * who.eye_apart,
        "eye_lat": -0.14 + 0.16 * who.eye_height,
        "nose_lat": 0.2 + 0.16 * who.nose_length,
        "nose_out": 1.12 + 0.22 * who.nose_out,
        "mouth_lat": mouth_lat,
        "mouth_lon": mouth_lon,
        "curl": 0.13 * how.smile,
    }


def to_view(x: Tensor, y: Tensor, z: Tensor, how: Named) -> tuple[Tensor, Tensor, Tensor]:
    """Turn a point of the unit sphere by yaw, then pitch."""
    x, z = x * how.yaw.cos() + z * how.yaw.sin(), z * how.yaw.cos() - x * how.yaw.sin()
    return x, y * how.pitch.cos() + z * how.pitch.sin(), z * how.pitch.cos() - y * how.pitch.sin()


def truth(scenes: Scenes, size: int = 48) -> Truth:
    """Boxes, landmarks and visibility at a picture size; exact, nothing is detected."""
    who = Named(scenes.identities_NKI[:, None], IDENTITY)
    how = Named(scenes.states_NTKS, STATE)
    plan = face_plan(who, how)
    corner_lat = plan["mouth_lat"] - plan["curl"]
    places = (
        (-plan["eye_lon"], plan["eye_lat"], 1.0),
        (plan["eye_lon"], plan["eye_lat"], 1.0),
        (0 * plan["eye_lon"], plan["nose_lat"], plan["nose_out"]),
        (-plan["mouth_lon"], corner_lat, 1.0),
        (plan["mouth_lon"], corner_lat, 1.0),
    )
    points, depths = [], []
    for lon, lat, radius in places:
        x, y, z = to_view(
            radius * lon.sin() * lat.cos(), radius * lat.sin(), radius * lon.cos() * lat.cos(), how
        )
        u = x * plan["width"] * (1 - plan["jaw"] * y.clamp(0, 1) ** 2)
        across = how.roll.cos() * u - how.roll.sin() * y
        down = how.roll.sin() * u + how.roll.cos() * y
        points.append(torch.cat((how.x + how.scale * across, how.y + how.scale * down), dim=-1)[..., 0, :])
        depths.append(z[..., 0, 0])
    points_NTK52 = torch.stack(points, dim=-2)

    half_x = how.scale * ((plan["width"] * how.roll.cos()) ** 2 + how.roll.sin() ** 2).sqrt()
    half_y = how.scale * (how.roll.cos() ** 2 + (plan["width"] * how.roll.sin()) ** 2).sqrt()
    boxes_NTK4 = torch.cat((how.x - half_x, how.y - half_y, how.x + half_x, how.y + half_y), dim=-1)[
        ..., 0, :
    ]

    seen = (torch.stack(depths, -1) > 0) & ((points_NTK52 > 0) & (points_NTK52 < 1)).all(-1)
    for centre, half, opacity in (
        (
            scenes.occluders_NTO8[:, :, o, 0:2],
            scenes.occluders_NTO8[:, :, o, 2:4],
            scenes.occluders_NTO8[:, :, o, 7],
        )
        for o in range(scenes.occluders_NTO8.shape[2])
    ):
        inside = ((points_NTK52 - centre[:, :, None, None]).abs() < half[:, :, None, None]).all(-1)
        seen &= ~(inside & (opacity > 0.5)[:, :, None, None])
    for front in range(scenes.present_NK.shape[1] - 1):
        box = boxes_NTK4[:, :, front, None, None]
        centre, half = (box[..., :2] + box[..., 2:]) / 2, (box[..., 2:] - box[..., :2]) / 2
        inside = (((points_NTK52 - centre) / half) ** 2).sum(-1) < 1
        inside[:, :, : front + 1] = False
        seen &= ~(inside & (scenes.present_NK[:, front] > 0.5)[:, None, None, None])
    visible_NTK = seen.float().mean(-1) * scenes.present_NK[:, None]
    return Truth(boxes_NTK4 * size - 0.5, points_NTK52 * size - 0.5, visible_NTK)
