"""Clips of the embedded world as files, of which everything is known: who, when, how often encoded."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ipro_core.clips.video import write_video
from ipro_core.tinyworld.clips import draw_clips
from ipro_core.tinyworld.painting import render
from ipro_core.tinyworld.world import draw_identities

FPS, SIDE, FRAMES = 8.0, 96, 16
PEOPLE = draw_identities(4, torch.Generator().manual_seed(3))


def scene(person: int, prompt: str = "a person looks up and smiles", seed: int = 0) -> Tensor:
    """(16, 3, 96, 96): one of the people, alone, before a background of the seed."""
    drawn = draw_clips(
        [prompt],
        torch.Generator().manual_seed(seed),
        identities_NI=PEOPLE[person : person + 1],
        frames=FRAMES,
    )
    alone = torch.tensor([[1.0, 0.0]])
    no_occluder = drawn.occluders_NTO8 * torch.tensor([1.0] * 7 + [0.0])
    return render(replace(drawn, present_NK=alone, occluders_NTO8=no_occluder), SIDE)[0]


def write_clips(folder: Path) -> Path:
    """`film`: 0, then 1, then 0 again, elsewhere; `zero`: 0; `two` and `two_again`, smaller and coarser;
    `three`; `nobody`: grey."""
    folder.mkdir(parents=True, exist_ok=True)
    shots = [scene(0, seed=1), scene(1, "a person walks right and keeps calm", 2), scene(0, seed=5)]
    write_video(folder / "film.mp4", torch.cat(shots), FPS)
    write_video(folder / "zero.mp4", scene(0, "a person turns left and opens mouth", 4), FPS)
    two = scene(2, "a person comes closer and keeps calm", 7)
    write_video(folder / "two.mp4", two, FPS)
    small = interpolate(two, (64, 64), mode="bilinear", antialias=True)
    write_video(folder / "two_again.mp4", small, FPS, crf=28)
    write_video(folder / "three.mp4", scene(3, "a person leans left and smiles", 9), FPS)
    write_video(folder / "nobody.mp4", torch.full((FRAMES, 3, SIDE, SIDE), 0.5), FPS)
    return folder
