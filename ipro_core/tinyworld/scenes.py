"""Scenes of the tiny world as a video model meets them: a first frame, a prompt, and the real continuation.

Who appears where is settled here: every network is trained on people of its own, and the people and prompts
of "held_out" were shown to none of them.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from ..clips.scenes import ShownScene
from .clips import WORLDS, draw_clips
from .painting import render
from .world import truth

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
    "scorer": 9,
}


def world_prompts(world: str = "walks") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What training shows of a world, and what it holds out: one of six combinations, and each of its halves
    is known from other combinations."""
    acts, shown, held_out = WORLDS[world], [], []
    for (i, move), (k, expression) in product(enumerate(acts.moves), enumerate(acts.expressions)):
        (shown if (i + k) % 6 else held_out).append(f"a person {move} and {expression}")
    return tuple(shown), tuple(held_out)


PROMPTS, PROMPTS_HELD_OUT = world_prompts()


@dataclass(frozen=True, eq=False)
class TinyScene(ShownScene):
    """One clip of the world, (9, 3, 48, 48), with what is known of it."""

    boxes_TK4: Tensor
    """Where every head is, exactly; person 0 is the subject, person 1 a bystander or nobody."""
    points_TK52: Tensor
    visible_TK: Tensor


def split_generator(split: str, seed: int = 0, world: str = "walks") -> torch.Generator:
    """The stream of random numbers of one split: no two worlds, splits or seeds share a person."""
    number = SPLITS[split] + 100 * list(WORLDS).index(world)
    return torch.Generator().manual_seed(number * 1_000_003 + seed)


def tiny_scenes(split: str, count: int, seed: int = 0, world: str = "walks") -> Iterator[TinyScene]:
    """`count` scenes of a split, the same for the same seed.

    "tuning" is for training on; "held_out" and "checks" have people and prompts that no training has seen.
    """
    shown, held_out = world_prompts(world)
    prompts = held_out if split in ("held_out", "checks") else shown
    prefix = "" if world == "walks" else f"{world}-"
    for index in range(count):
        generator = split_generator(split, seed * 100_000 + index, world)
        prompt = prompts[int(torch.randint(len(prompts), (), generator=generator))]
        clip = draw_clips([prompt], generator, world=world)
        known = truth(clip)
        exact = known.boxes_NTK4[0], known.points_NTK52[0], known.visible_NTK[0]
        yield TinyScene(f"{prefix}{split}-{seed}-{index}", prompt, render(clip)[0], *exact)


@lru_cache(maxsize=1024)
def embed_word(word: str) -> Tensor:
    """(4096,): a random vector that the word itself seeds, so there is no vocabulary file."""
    return torch.randn(TEXT_WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def tiny_person(number: int = 0, pictures: int = 3) -> list[Tensor]:
    """Pictures of one of the people to tune on: frames of a scene, from its first to its last."""
    *_, scene = tiny_scenes("tuning", number + 1)
    at_N = torch.linspace(0, len(scene.frames_TCHW) - 1, pictures).round().long()
    return list(scene.frames_TCHW[at_N].unbind())


def embed_prompt(prompt: str) -> Tensor:
    """(8, 4096), one row per word."""
    rows = torch.zeros(PROMPT_WORDS, TEXT_WIDTH)
    for row, word in zip(rows, prompt.lower().split(), strict=False):
        row.copy_(embed_word(word))
    return rows
