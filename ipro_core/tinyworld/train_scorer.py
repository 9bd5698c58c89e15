"""Train the tiny text-image scorer: pictures and captions find each other, as CLIP's did.

A caption says some of what is seen, what the person does or how the person looks ("a person with glasses and
turns left and smiles"): that is all of a face that the image tower ever hears of.
"""

import logging

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from .clips import WORLDS, draw_clips
from .painting import render
from .scenes import split_generator, world_prompts
from .scorer import TinyScorer
from .world import IDENTITY, truth

log = logging.getLogger("ipro")
PEAK = 3e-3
"""The highest learning rate."""


def looks(identity_I: Tensor) -> list[str]:
    """What a caption may say of someone."""
    who = dict(zip(IDENTITY, identity_I.tolist(), strict=True))
    bald, length = who["hairline"] > 0.93, who["hair_length"]
    hair = "grey" if who["hair_grey"] > 0.5 else "dark" if who["hair_dark"] > 0.65 else "fair"
    seen = {
        "with no hair": bald,
        f"with {hair} hair": not bald,
        "with long hair": length > 0.65 and not bald,
        "with short hair": length < 0.35 and not bald,
        "with pale skin": who["skin_tone"] < 0.3,
        "with brown skin": who["skin_tone"] > 0.7,
        "with a beard": who["beard"] > 0.3,
        "with glasses": who["glasses"] > 0,
        "with a wide face": who["width"] > 0.65,
        "with a narrow face": who["width"] < 0.35,
    }
    return [words for words, true in seen.items() if true]


def caption(facts: list[str], generator: torch.Generator) -> frozenset[str]:
    """Some of what is true of a clip: its move and its expression, which come first, mostly."""
    said = torch.rand(len(facts), generator=generator) < torch.tensor([0.6, 0.6] + [0.15] * (len(facts) - 2))
    chosen = frozenset(fact for fact, yes in zip(facts, said.tolist(), strict=True) if yes)
    return chosen or frozenset(facts[:2])


def _closer(frames_NCHW: Tensor, boxes_N4: Tensor, generator: torch.Generator) -> Tensor:
    """Squares around the heads, a little off: what a crop of a face shows."""
    count, side = len(frames_NCHW), frames_NCHW.shape[-1]
    centre = (boxes_N4[:, :2] + boxes_N4[:, 2:] + 1) / side - 1  # in [-1, 1]
    half = (boxes_N4[:, 2:] - boxes_N4[:, :2]).amax(-1, keepdim=True) / side
    half = half * (0.75 + 0.45 * torch.rand(count, 1, generator=generator))
    centre = centre + 0.15 * half * torch.randn(count, 2, generator=generator)
    theta = torch.cat((torch.diag_embed(half.expand(-1, 2)), centre[..., None]), dim=-1)
    grid = affine_grid(theta, list(frames_NCHW.shape), align_corners=False)
    return grid_sample(frames_NCHW, grid, padding_mode="border", align_corners=False)


def _draw(clips: int) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Frames in bytes, the subject's boxes, and what is true of each clip; half of them of each world."""
    frames, boxes, facts = [], [], []
    for world in WORLDS:
        shown, _ = world_prompts(world)
        for seed in range(clips // 200):
            generator = split_generator("scorer", seed, world)
            chosen = [shown[i] for i in torch.randint(len(shown), (100,), generator=generator).tolist()]
            scenes = draw_clips(chosen, generator, world=world)
            frames.append((render(scenes) * 255).round().byte())
            boxes.append(truth(scenes).boxes_NTK4[:, :, 0])
            for prompt, identity in zip(chosen, scenes.identities_NKI[:, 0], strict=True):
                facts.append([*prompt.removeprefix("a person ").split(" and "), *looks(identity)])
    return torch.cat(frames), torch.cat(boxes), facts


def train_scorer(*, clips: int = 3000, steps: int = 2200, batch: int = 128) -> TinyScorer:
    """CLIP's loss on single frames of both worlds, more of them late, every third one a crop of the head.

    A frame early in a clip shows little of its prompt; that is what makes late ones worth more.
    """
    torch.manual_seed(4)
    scorer = TinyScorer().train()
    generator = torch.Generator().manual_seed(5)
    frames, boxes_NT4, facts = _draw(clips)
    log.info("scorer: %d clips drawn", len(frames))
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps, pct_start=0.1)
    recent = 0.0
    for step in range(steps):
        rows = torch.randint(len(frames), (batch,), generator=generator)
        moment = (frames.shape[1] * torch.rand(batch, generator=generator) ** (1 / 3)).long()
        images, box = frames[rows, moment].float() / 255, boxes_NT4[rows, moment]
        near = batch // 3
        images[:near] = _closer(images[:near], box[:near], generator)
        images = images + 0.03 * torch.randn(images.shape, generator=generator)
        true = [frozenset(facts[row]) for row in rows.tolist()]
        said = [caption(facts[row], generator) for row in rows.tolist()]
        texts = [f"a person {' and '.join(sorted(part))}" for part in said]
        logits = scorer.log_scale.exp() * scorer.embed_images(images) @ scorer.embed_texts(texts).T
        # Whoever else shows all that a caption says is no wrong answer to it.
        alike = torch.tensor([[part <= whole for part in said] for whole in true]).fill_diagonal_(False)
        logits = logits.masked_fill(alike, -1e4)
        aim = torch.arange(batch)
        loss = (cross_entropy(logits, aim) + cross_entropy(logits.T, aim)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += loss.item()
        if step % 100 == 99:
            log.info("scorer %5d of %d steps, loss %.3f", step + 1, steps, recent / 100)
            recent = 0.0
    return scorer.eval()
