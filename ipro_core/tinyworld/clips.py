"""What people do in the tiny world: prompts, and the clips in which they do what a prompt says.

Two worlds of the same people. In "walks" they walk, turn a little and speak: the embedded default. In "turns"
every clip goes from one far side of the face to the other while its expression changes, so that the first
frame is a poor likeness of the rest: whoever copies it pleases a first-frame reference and nobody else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .world import STATE, Scenes, between, draw_identities, state, surroundings


@dataclass(frozen=True)
class Repertoire:
    """All that people of one world do: "a person <move> and <expression>"."""

    moves: Mapping[str, Mapping[str, float]]
    """What a person does with the head: the change of state from the first frame to the last."""
    expressions: Mapping[str, Mapping[str, float]]
    before: Mapping[str, float]
    """The share of a change by which a clip begins on the other side, so that the face stays in sight."""
    start: Mapping[str, float]
    """How far the first pose may lie to either side of straight ahead."""
    size: tuple[float, float]
    """A change is taken so many times as large, by chance."""


WALKS = Repertoire(
    moves={
        "turns left": {"yaw": -0.8, "x": -0.14},
        "turns right": {"yaw": 0.8, "x": 0.14},
        "looks up": {"pitch": -0.5, "y": -0.08},
        "looks down": {"pitch": 0.5, "y": 0.08},
        "leans left": {"roll": -0.4, "x": -0.18},
        "leans right": {"roll": 0.4, "x": 0.18},
        "walks left": {"x": -0.32, "yaw": -0.35},
        "walks right": {"x": 0.32, "yaw": 0.35},
        "comes closer": {"scale": 0.10},
        "steps back": {"scale": -0.10},
    },
    expressions={
        "keeps calm": {},
        "smiles": {"smile": 1.0},
        "frowns": {"smile": -0.9, "brows": -0.7},
        "opens mouth": {"mouth_open": 1.0},
        "closes eyes": {"lids": 0.95},
        "raises brows": {"brows": 1.0},
    },
    before={"yaw": 0.35, "pitch": 0.3, "roll": 0.3, "x": 0.5, "y": 0.5, "scale": 0.5},
    start={"yaw": 0.25, "pitch": 0.12, "roll": 0.12},
    size=(0.85, 1.15),
)

TURNS = Repertoire(
    moves={
        "turns far left": {"yaw": -1.62, "x": -0.10},
        "turns far right": {"yaw": 1.62, "x": 0.10},
        "looks up left": {"yaw": -1.4, "pitch": -0.58, "x": -0.08, "y": -0.06},
        "looks up right": {"yaw": 1.4, "pitch": -0.58, "x": 0.08, "y": -0.06},
        "looks down left": {"yaw": -1.4, "pitch": 0.58, "x": -0.08, "y": 0.06},
        "looks down right": {"yaw": 1.4, "pitch": 0.58, "x": 0.08, "y": 0.06},
    },
    expressions={
        "smiles": {"smile": 1.6, "brows": 0.4},
        "frowns": {"smile": -1.6, "brows": -0.7},
        "opens mouth": {"mouth_open": 1.0, "smile": -0.5},
        "closes eyes": {"lids": 0.95, "smile": 0.8},
        "raises brows": {"brows": 1.2, "mouth_open": 0.6},
    },
    before={"yaw": 0.5, "pitch": 0.5, "x": 0.5, "y": 0.5, "smile": 0.5, "brows": 0.4},
    start={"yaw": 0.04, "pitch": 0.04, "roll": 0.12},
    size=(0.9, 1.05),
)
"""Yaw goes to 0.89, a little beyond the 0.75 of the face networks' training; pitch to its 0.35."""

WORLDS = {"walks": WALKS, "turns": TURNS}


def draw_clips(
    prompts: Sequence[str],
    generator: torch.Generator,
    *,
    identities_NI: Tensor | None = None,
    frames: int = 9,
    world: str = "walks",
) -> Scenes:
    """One clip per prompt of a world: the person does what it says, a little more or less, from some first
    pose. Every fifth clip has a bystander, every eighth an occluder."""
    acts = WORLDS[world]
    count = len(prompts)
    first_NI = draw_identities(count, generator) if identities_NI is None else identities_NI
    identities_NKI = torch.stack((first_NI, draw_identities(count, generator)), dim=1)
    changes = torch.zeros(count, len(STATE))
    for row, prompt in zip(changes, prompts, strict=True):
        move, expression = prompt.removeprefix("a person ").split(" and ")
        for part in (acts.moves[move], acts.expressions[expression]):
            for name, change in part.items():
                row[STATE.index(name)] += change

    shape = (count, 2)
    yaw, pitch, roll = (acts.start[name] for name in ("yaw", "pitch", "roll"))
    crowded_N = torch.rand(count, generator=generator) < 0.2
    start = state(
        x=between(0.44, 0.56, shape, generator),
        y=between(0.38, 0.46, shape, generator),
        scale=between(0.24, 0.32, shape, generator),
        yaw=between(-yaw, yaw, shape, generator),
        pitch=between(-pitch, pitch, shape, generator),
        roll=between(-roll, roll, shape, generator),
        mouth_open=between(0.0, 0.25, shape, generator),
        smile=between(-0.2, 0.3, shape, generator),
        lids=between(0.0, 0.2, shape, generator),
        brows=between(-0.2, 0.2, shape, generator),
        gaze_x=between(-0.5, 0.5, shape, generator),
        gaze_y=between(-0.3, 0.3, shape, generator),
        light_side=between(-0.8, 0.8, shape, generator),
        light_up=between(0.0, 0.6, shape, generator),
        light_power=between(0.75, 1.1, shape, generator),
    )
    x, scale = start[..., STATE.index("x")], start[..., STATE.index("scale")]
    side_N = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    x[:, 1] = 0.5 + 0.36 * side_N
    scale[:, 1] *= 0.62
    x[:, 0] -= 0.14 * side_N * crowded_N
    scale[:, 0] *= 1 - 0.2 * crowded_N
    amount_N1 = between(*acts.size, (count, 1), generator)  # everybody has a size and a pace
    pace_N1 = between(0.9, 1.25, (count, 1), generator)
    for name, share in acts.before.items():
        column = STATE.index(name)
        start[:, 0, column] -= share * changes[:, column] * amount_N1[:, 0]
    time_NT = torch.linspace(0, 1, frames).expand(count, -1) ** pace_N1
    ease_NT = time_NT * time_NT * (3 - 2 * time_NT) * 0.6 + time_NT * 0.4
    states_NTKS = start[:, None].repeat(1, frames, 1, 1)
    states_NTKS[:, :, 0] += (ease_NT * amount_N1)[..., None] * changes[:, None]
    present_NK = torch.stack((torch.ones(count), crowded_N.float()), dim=1)
    return Scenes(identities_NKI, states_NTKS, present_NK, *surroundings(count, frames, 2, 0.06, generator))
