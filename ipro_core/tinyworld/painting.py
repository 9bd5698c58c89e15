"""The world's painter: scenes to frames, by soft masks, with nothing but elementwise torch.

F flattened frames. Masks are sigmoids about one pixel wide, so every picture is smooth in every number.
Layers go from back to front: ground, then for each person hair, body, head with its features, then
occluders.
"""

import math

import torch
from torch import Tensor

from .world import IDENTITY, STATE, Named, Scenes, face_plan, to_view

CHUNK = 24
"""Frames painted at once: small enough to stay in a core's cache."""


def render(scenes: Scenes, size: int = 48) -> Tensor:
    """(N, T, 3, size, size) in [0, 1]. Elementwise, hence the same on any number of threads."""
    count, frames = scenes.states_NTKS.shape[:2]
    per_frame = [
        scenes.identities_NKI[:, None].expand(-1, frames, -1, -1),
        scenes.states_NTKS,
        scenes.present_NK[:, None].expand(-1, frames, -1),
        scenes.clothes_NK7[:, None].expand(-1, frames, -1, -1),
        scenes.ground_NG[:, None].expand(-1, frames, -1),
        scenes.occluders_NTO8,
    ]
    chunks = zip(*(value.flatten(0, 1).split(CHUNK) for value in per_frame), strict=True)
    frames_FCHW = torch.cat([_paint(*chunk, size=size) for chunk in chunks])
    return frames_FCHW.view(count, frames, 3, size, size)


def _paint(
    identities_FKI, states_FKS, present_FK, clothes_FK7, ground_FG, occluders_FO8, *, size: int
) -> Tensor:
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    across, down = axis[None, None, :], axis[None, :, None]
    picture = _ground(ground_FG, across, down)
    for person in reversed(range(identities_FKI.shape[1])):
        present_F = present_FK[:, person]
        chosen = present_F > 0  # absent people cost nothing
        if not chosen.any():
            continue
        who = Named(identities_FKI[chosen, person], IDENTITY)
        how = Named(states_FKS[chosen, person], STATE)
        picture[chosen] = _person(picture[chosen], who, how, clothes_FK7[chosen, person], across, down, size)
    for cover_F8 in occluders_FO8.unbind(1):
        x, y, w, h = cover_F8[:, :4, None, None].unbind(1)
        mask = (
            _soft(torch.maximum((across - x).abs() - w, (down - y).abs() - h) * size)
            * cover_F8[:, 7, None, None]
        )
        picture = _over(picture, mask, cover_F8[:, 4:7])
    return picture.clamp(0, 1)


def _soft(distance_px: Tensor) -> Tensor:
    """Coverage of a pixel from the signed distance to an edge, in pixels, negative inside."""
    return torch.sigmoid(distance_px * -3.0)


def _over(picture: Tensor, mask_FHW: Tensor, colour_F3: Tensor) -> Tensor:
    return torch.lerp(picture, colour_F3[:, :, None, None], mask_FHW[:, None])


def _ground(ground_FG: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Two colours in a gradient, waves, and a soft upright panel in the third."""
    top, bottom, panel = (ground_FG[:, i : i + 3] * 0.8 + 0.1 for i in (0, 3, 6))
    fx, fy, phase, wave, wave2, phase2, place, wide, strength = ground_FG[:, 9:, None, None].unbind(1)
    picture = torch.lerp(top[:, :, None, None], bottom[:, :, None, None], down[:, None])
    waves = (0.5 + wave) * (5 * math.pi * (fx * across + fy * down) + 6.28 * phase).sin()
    waves = waves + wave2 * (9 * math.pi * ((fy - 0.5) * across + fx * down) + 6.28 * phase2).sin()
    picture = picture + 0.05 * waves[:, None]
    edge = _soft(((across - place).abs() - 0.05 - 0.15 * wide) * 48)
    return _over(picture, edge * strength.round() + 0 * down, panel)


def _colours(who: Named) -> dict[str, Tensor]:
    """(F, 3) each: skin from fair to dark, hair from fair to black, red or grey, iris, lips."""

    def rgb(*channels: Tensor) -> Tensor:
        return torch.stack([channel.flatten() for channel in channels], dim=-1)

    light = 0.92 - 0.6 * who.skin_tone
    skin = rgb(
        light + 0.06 + 0.06 * who.skin_red,
        light * (0.84 - 0.14 * who.skin_red),
        light * (0.78 - 0.28 * who.skin_yellow - 0.08 * who.skin_red),
    )
    fair = 1 - who.hair_dark
    hair = rgb(
        0.06 + fair * (0.55 + 0.35 * who.hair_warm),
        0.05 + fair * (0.5 - 0.15 * who.hair_warm),
        0.06 + fair * (0.42 - 0.38 * who.hair_warm),
    )
    hair = torch.lerp(hair, torch.full_like(hair, 0.72), who.hair_grey.flatten()[:, None])
    hue = 6.28 * who.iris_hue
    iris = rgb(
        *(0.1 + (0.75 - 0.6 * who.iris_dark) * (0.5 + 0.5 * (hue + turn).cos()) for turn in (0.0, 2.1, 4.2))
    )
    lips = rgb(0.5 + 0.35 * who.lip_red, 0.42 - 0.3 * who.lip_red, 0.4 - 0.22 * who.lip_red)
    return {"skin": skin, "hair": hair, "iris": iris, "lips": torch.lerp(skin * 0.85, lips, 0.75)}


def _person(
    picture, who: Named, how: Named, clothes_F7: Tensor, across: Tensor, down: Tensor, size: int
) -> Tensor:
    plan, colour = face_plan(who, how), _colours(who)
    sharp = size * how.scale  # pixels per head unit
    dx, dy = (across - how.x) / how.scale, (down - how.y) / how.scale
    u = how.roll.cos() * dx + how.roll.sin() * dy
    v = how.roll.cos() * dy - how.roll.sin() * dx

    # Behind everything of the person: the hair's outline.
    volume = 1.04 + 0.2 * who.hair_volume
    shifted = u + 0.12 * how.yaw.sin()
    outline = ((shifted / (plan["width"] * volume)) ** 2 + (v / volume) ** 2 + 1e-6).sqrt() - 1
    length = -0.35 + 1.6 * who.hair_length
    bald = torch.sigmoid((who.hairline - 0.9) * 60)
    hair_back = _soft(outline * sharp * 0.8) * _soft((v - length) * sharp) * (1 - bald)
    picture = _over(picture, hair_back, colour["hair"] * 0.8)

    # Body: neck and shoulders do not turn with the head.
    shade = 0.75 + 0.25 * how.light_power
    neck = _soft((dx.abs() - 0.36) * sharp) * _soft((0.3 - dy) * sharp)
    picture = _over(picture, neck, colour["skin"] * 0.72 * shade[:, 0])
    shoulders = ((dx / 1.75) ** 2 + ((dy - 2.35).clamp_max(0) / 1.15) ** 2 + 1e-6).sqrt() - 1
    body = _soft(shoulders * sharp)
    picture = _over(picture, body, (clothes_F7[:, :3] * 0.85 + 0.05))
    stripes = 0.5 + 0.5 * (dx * (3 + 9 * clothes_F7[:, 6, None, None])).cos()
    picture = _over(picture, body * stripes * 0.6, clothes_F7[:, 3:6] * 0.85 + 0.05)

    # The head's surface under every pixel: back through jaw, silhouette, pitch and yaw.
    x = u / (plan["width"] * (1 - plan["jaw"] * v.clamp(0, 1) ** 2))
    radius = (x * x + v * v + 1e-6).sqrt()
    head = _soft((radius - 1) * plan["width"] * sharp)
    onto = (0.995 / radius).clamp_max(1)
    x, y = x * onto, v * onto
    z = (1 - x * x - y * y).clamp_min(1e-4).sqrt()
    side, up = how.light_side, how.light_up
    lambert = (0.7 * side.sin() * x - up.sin() * y + side.cos() * up.cos() * z).clamp_min(0)
    y, z_turned = y * how.pitch.cos() - z * how.pitch.sin(), y * how.pitch.sin() + z * how.pitch.cos()
    x, z_head = x * how.yaw.cos() - z_turned * how.yaw.sin(), x * how.yaw.sin() + z_turned * how.yaw.cos()
    lon, lat = torch.atan2(x, z_head), torch.asin(y.clamp(-0.999, 0.999))
    face = _features(who, how, plan, colour, lon, lat, sharp)
    face = _nose(face, how, plan, who, colour, u, v, sharp)
    light = how.light_power * (0.5 + 0.55 * lambert)
    return torch.lerp(picture, face * light[:, None], head[:, None])


def _features(who: Named, how: Named, plan, colour, lon: Tensor, lat: Tensor, sharp: Tensor) -> Tensor:
    """The head's own colours (F, 3, H, W), before light: all that moves with longitude and latitude."""
    face = colour["skin"][:, :, None, None].expand(-1, -1, *lon.shape[1:])
    side = lon.abs()

    beard = _soft((0.42 + 0.18 * (1 - side / 1.4) - lat) * sharp) * _soft((side - 1.5) * sharp)
    moustache = _soft(((lat - plan["mouth_lat"] + 0.17).abs() - 0.07) * sharp) * _soft((side - 0.36) * sharp)
    face = _over(face, torch.maximum(beard, moustache) * 0.85 * who.beard, colour["hair"] * 0.8)

    # Mouth: lips around an opening, bent by a smile.
    along = lon / plan["mouth_lon"]
    middle = lat - (plan["mouth_lat"] - plan["curl"] * along * along)
    gap = 0.2 * how.mouth_open
    thick = 0.045 + 0.075 * who.lip_thick
    taper = (1 - along * along).clamp_min(0.0).sqrt()
    within = _soft((along.abs() - 1) * plan["mouth_lon"] * sharp)
    lips = within * _soft((middle.abs() - (thick + gap) * taper) * sharp)
    face = _over(face, lips, colour["lips"])
    inside = within * _soft((middle.abs() - (gap + 0.012) * taper) * sharp)
    face = _over(face, inside * 0.9, torch.full_like(colour["lips"], 0.12))

    # Eyes: lids close from above; the iris follows the gaze, the same way in both eyes.
    centre = plan["eye_lon"]
    tilt = 0.5 * (who.eye_tilt - 0.5)
    ex = side - centre
    ey = lat - plan["eye_lat"] + tilt * ex
    wide = 0.16 + 0.09 * who.eye_width
    tall = (0.075 + 0.075 * who.eye_open) * (1 - how.lids).clamp_min(0) + 0.012
    eye = _soft((((ex / wide) ** 2 + (ey / tall) ** 2 + 1e-6).sqrt() - 1) * tall * sharp)
    face = _over(face, eye, torch.full_like(colour["iris"], 0.93))
    gaze = lon - torch.sign(lon) * centre - 0.09 * how.gaze_x
    iris_far = (gaze**2 + (ey - 0.05 * how.gaze_y) ** 2 + 1e-6).sqrt()
    iris = eye * _soft((iris_far - 0.105) * sharp)
    face = _over(face, iris, colour["iris"])
    face = _over(face, eye * _soft((iris_far - 0.045) * sharp), torch.zeros_like(colour["iris"]))
    lash = _soft(((ey + tall * (1 - (ex / wide) ** 2).clamp_min(0)).abs() - 0.02) * sharp) * _soft(
        (ex.abs() - wide) * sharp
    )
    face = _over(face, 0.7 * lash, colour["skin"] * 0.35)

    # Brows
    bx = side - centre
    lift = 0.2 + 0.12 * who.brow_height + 0.1 * how.brows
    bend = 0.6 * (who.brow_tilt - 0.5) + 0.35 * how.brows.clamp_max(0)
    by = lat - plan["eye_lat"] + lift + bend * bx + 0.8 * bx * bx
    brow = _soft((by.abs() - 0.025 - 0.055 * who.brow_thick) * sharp)
    brow = brow * _soft((bx.abs() - 0.16 - 0.12 * who.brow_length) * sharp)
    face = _over(face, 0.9 * brow, colour["hair"] * 0.65)

    mole_lon, mole_lat = 1.0 * who.mole_lon - 0.5, 0.1 + 0.6 * who.mole_lat
    mole = ((lon - mole_lon) ** 2 + (lat - mole_lat) ** 2 + 1e-6).sqrt()
    has_mole = (who.mole_lat > 0).float()
    face = _over(face, has_mole * 0.85 * _soft((mole - 0.06) * sharp), colour["skin"] * 0.3)

    ring = ((ex / 1.15) ** 2 + (ey - 0.02) ** 2 + 1e-6).sqrt()
    rims = _soft(((ring - 0.25).abs() - 0.035) * sharp)
    bridge = _soft((ey.abs() - 0.03) * sharp) * _soft(((centre - 0.24) * -1 + side) * sharp)
    has_glasses = (who.glasses > 0).float() * (lon.cos() > 0)
    tint = colour["hair"] * 0 + (0.05 + 0.45 * who.glasses.flatten())[:, None] * torch.tensor(
        [0.5, 0.3, 0.25]
    )
    face = _over(face, has_glasses * torch.maximum(rims, bridge), tint)

    # Hair: fringe with a one-sided parting, temples, and the whole back of the head.
    part = (who.parting - 0.5) * 2
    line = (
        -0.95
        - 0.75 * (who.hairline - 0.6)
        + 0.28 * part * (1.6 * lon).sin()
        + 0.5 * (side - 0.75).clamp_min(0)
    )
    fringe = _soft((lat - line) * sharp)
    back = _soft((1.45 - side) * sharp) * _soft((lat - (-0.1 + 1.2 * who.hair_length)) * sharp)
    bald = torch.sigmoid((who.hairline - 0.9) * 60)
    strands = 0.9 + 0.14 * (9 * lon + 5 * part * lat).sin()
    hair = torch.maximum(fringe, back) * (1 - bald)
    shaded = colour["hair"][:, :, None, None] * strands[:, None]
    return torch.lerp(face, shaded, hair[:, None])


def _nose(face: Tensor, how: Named, plan, who: Named, colour, u: Tensor, v: Tensor, sharp: Tensor) -> Tensor:
    """A ridge from between the eyes to a tip that stands out of the surface, hence shifts as the head
    turns."""

    def seen(lat: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        x, y, _ = to_view(torch.zeros_like(lat), radius * lat.sin(), radius * lat.cos(), how)
        return x * plan["width"] * (1 - plan["jaw"] * y.clamp(0, 1) ** 2), y

    root_u, root_v = seen(plan["eye_lat"], 1.02)
    tip_u, tip_v = seen(plan["nose_lat"], plan["nose_out"])
    along_u, along_v = tip_u - root_u, tip_v - root_v
    span = along_u**2 + along_v**2 + 1e-4
    t = (((u - root_u) * along_u + (v - root_v) * along_v) / span).clamp(0, 1)
    off_u, off_v = u - root_u - t * along_u, v - root_v - t * along_v
    wide = 0.05 + (0.05 + 0.11 * who.nose_width) * t * t
    away = (off_u**2 + off_v**2 + 1e-6).sqrt()
    ridge = _soft((away - wide) * sharp)
    shadow = torch.sigmoid((off_u * torch.sign(how.light_side)) * -2 * sharp)
    tone = 1.12 - 0.32 * shadow
    face = torch.lerp(face, colour["skin"][:, :, None, None] * tone[:, None], 0.85 * ridge[:, None])
    nostrils = ((u - tip_u).abs() - 0.5 * (0.1 + 0.11 * who.nose_width)) ** 2 + (v - tip_v - 0.07) ** 2
    return _over(face, 0.75 * _soft(((nostrils + 1e-6).sqrt() - 0.035) * sharp), colour["skin"] * 0.35)
