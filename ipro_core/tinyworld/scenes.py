"""Scenes of the tiny world as a video model meets them: a first frame, a prompt, and the real continuation.

Who appears where is settled here: every network is trained on people of its own, and the people and prompts
of "held_out" were shown to none of them.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..clips.scenes import ShownScene
from .painting import render
from .world import EXPRESSIONS, MOVES, draw_clips, truth

TEXT_WIDTH = 4096
"""Wan's text embedding width, so that the tiny model is an ordinary Wan file."""

PROMPT_WORDS = 8
"""Every prompt is filled up with zeros to this length, as Wan's are to 512."""

SPLITS = {
    "recognizer": 1,
    "judge": 2,
    "detector": 3,
    "codec": 4,
    "video": 5,
    "tuning": 6,
    "held_out": 7,
    "checks": 8,
}

_pairs = [f"a person {move} and {expression}" for move, expression in product(MOVES, EXPRESSIONS)]
PROMPTS_HELD_OUT = tuple(prompt for i, prompt in enumerate(_pairs) if (i // 6 + i) % 6 == 0)
"""One of six combinations; each of its halves is known from other combinations."""
PROMPTS = tuple(prompt for prompt in _pairs if prompt not in PROMPTS_HELD_OUT)


@dataclass(frozen=True, eq=False)
class TinyScene(ShownScene):
    """One clip of the world, (9, 3, 48, 48), with what is known of it."""

    boxes_TK4: Tensor
    """Where every head is, exactly; person 0 is the subject, person 1 a bystander or nobody."""
    points_TK52: Tensor
    visible_TK: Tensor


def split_generator(split: str, seed: int = 0) -> torch.Generator:
    """The stream of random numbers of one split: no two splits or seeds share a person."""
    return torch.Generator().manual_seed(SPLITS[split] * 1_000_003 + seed)


def tiny_scenes(split: str, count: int, seed: int = 0) -> Iterator[TinyScene]:
    """`count` scenes of a split, the same for the same seed.

    "tuning" is for training on; "held_out" and "checks" have people and prompts that no training has seen.
    """
    prompts = PROMPTS_HELD_OUT if split in ("held_out", "checks") else PROMPTS
    for index in range(count):
        generator = split_generator(split, seed * 100_000 + index)
        prompt = prompts[int(torch.randint(len(prompts), (), generator=generator))]
        clip = draw_clips([prompt], generator)
        known = truth(clip)
        exact = known.boxes_NTK4[0], known.points_NTK52[0], known.visible_NTK[0]
        yield TinyScene(f"{split}-{seed}-{index}", prompt, render(clip)[0], *exact)


def tiny_person(number: int = 0, pictures: int = 3) -> list[Tensor]:
    """Pictures of one of the people to tune on: frames of a scene, from its first to its last."""
    *_, scene = tiny_scenes("tuning", number + 1)
    at_N = torch.linspace(0, len(scene.frames_TCHW) - 1, pictures).round().long()
    return list(scene.frames_TCHW[at_N].unbind())


def embed_prompt(prompt: str) -> Tensor:
    """(8, 4096), one row per word: a random vector that the word itself seeds, so there is no vocabulary
    file."""
    rows = torch.zeros(PROMPT_WORDS, TEXT_WIDTH)
    for row, word in zip(rows, prompt.lower().split(), strict=False):
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        row.copy_(torch.randn(TEXT_WIDTH, generator=generator))
    return rows
