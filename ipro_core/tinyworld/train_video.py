"""Train the tiny world's codec and its Wan-shaped image-to-video model (flow matching, v = noise − x_0).

`python -m ipro_core.tinyworld.train_models codec video` calls this; it needs nothing but the world.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

from ..models.condition import image_condition
from ..models.wan_keys import to_diffusers
from .clips import draw_clips
from .codec import GROUP, PATCH, LinearCodec
from .painting import render
from .scenes import embed_prompt, split_generator, world_prompts
from .world import Scenes, Truth, truth

log = logging.getLogger("ipro")

SHAPE = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 384,
    "num_layers": 5,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
}
"""WanTransformer3DModel in I2V-A14B's pattern, at dim 128. Real Wan heads are 128 wide; here there are four
of 32, which the file's metadata says."""


STEPS = 8
"""Of the sampler."""


def draw_split(
    split: str, count: int, seed: int, world: str = "walks"
) -> tuple[Tensor, list[int], Scenes, Truth]:
    """Frames (count, 9, 3, 48, 48) of training prompts, each clip's prompt number, and what is known of
    them."""
    prompts, _ = world_prompts(world)
    generator = split_generator(split, seed, world)
    chosen = torch.randint(len(prompts), (count,), generator=generator).tolist()
    scenes = draw_clips([prompts[i] for i in chosen], generator, world=world)
    return render(scenes), chosen, scenes, truth(scenes)


def _on_face(known: Truth, side: int) -> Tensor:
    """(N, T, side, side): 1 where a codec patch lies in the box of person 0."""
    centres = (torch.arange(side) + 0.5) * PATCH - 0.5
    box = known.boxes_NTK4[:, :, 0, :, None, None]
    across = (centres > box[:, :, 0]) & (centres < box[:, :, 2])
    down = (centres[:, None] > box[:, :, 1]) & (centres[:, None] < box[:, :, 3])
    return (across & down).float()


def fit_codec(clips: int = 600) -> LinearCodec:
    """Principal components of 600 clips; patches on a face count five times."""
    frames, _, _, known = draw_split("codec", clips, 0)
    return LinearCodec.fit(frames, 1 + 4 * _on_face(known, frames.shape[-1] // PATCH))


class _Muon(torch.optim.Optimizer):
    """Momentum whose every matrix is made orthogonal by five Newton-Schulz steps (K. Jordan's Muon), float32.

    torch.optim.Muon takes those steps in bfloat16, which a CPU without bfloat16 units runs ten times slower.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = []
                for matrix in matrices:
                    assert matrix.grad is not None
                    momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    momentum.lerp_(matrix.grad, 0.05)
                    updates.append(torch.lerp(matrix.grad, momentum, 0.95))
                x = torch.stack(updates)
                x = x.mT if shape[0] > shape[1] else x
                x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
                for _ in range(5):
                    square = x @ x.mT
                    x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
                x = x.mT if shape[0] > shape[1] else x
                # 0.2 sqrt(longer side): steps as long as AdamW's, so that both share one learning rate.
                for matrix, update in zip(matrices, x, strict=True):
                    matrix.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


@dataclass
class _Ring:
    """Encoded clips, drawn as training goes on, the oldest replaced by new ones."""

    codec: LinearCodec
    latents: Tensor
    faces: Tensor
    """1 where a latent pixel shows the face at some moment."""
    prompts: Tensor
    world: str
    filled: int = 0
    drawn: int = 0

    def add(self, count: int) -> None:
        frames, chosen, _, known = draw_split("video", count, self.drawn, self.world)
        at = torch.arange(self.filled, self.filled + count) % len(self.latents)
        self.latents[at] = self.codec.encode(frames)
        face = _on_face(known, self.faces.shape[-1])
        later = face[:, 1:].unflatten(1, (-1, GROUP)).amax(2)
        self.faces[at] = torch.cat((face[:, :1], later), dim=1)
        self.prompts[at] = torch.tensor(chosen)
        self.drawn += count
        self.filled = min(self.filled + count, len(self.latents))


def train_video(
    codec: LinearCodec,
    checkpoint: Path,
    *,
    steps: int,
    batch: int = 24,
    peak: float = 1.7e-3,
    world: str = "walks",
    begin: Path | None = None,
) -> torch.nn.Module:
    """Flow matching on one world's clips, from the file `begin` or nothing; returns the averaged network.

    Started by `torchrun --nproc-per-node 2`, every process draws clips of its own and the gradients are
    averaged. The checkpoint is written every 200 steps and holds everything: a stopped training goes on from
    there, with other clips, and with fewer steps it finishes sooner.

    Noise levels are those that 8 steps meet: sigma = s u / (1 + (s − 1) u), u = 1/8, …, 1, s log-uniform
    in [1.5, 5], which serves the paper's shift 5 and gentler schedules alike. The face counts four times.
    """
    from diffusers import WanTransformer3DModel  # type: ignore[attr-defined]

    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SHAPE)
    if begin:
        model.load_state_dict({to_diffusers(name): weight for name, weight in load_file(begin).items()})
    average = WanTransformer3DModel(**SHAPE)
    average.load_state_dict(model.state_dict())
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and (".attn" in name or ".ffn" in name)
    ]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = _Muon(matrices, peak)
    adam = torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    texts = torch.stack([embed_prompt(prompt) for prompt in world_prompts(world)[0]])
    grey = image_condition(codec, torch.full((1, 3, 48, 48), 0.5), 9)
    ring = _Ring(
        codec,
        torch.zeros(10_000, 16, 3, 12, 12),
        torch.zeros(10_000, 3, 12, 12),
        torch.zeros(10_000, dtype=torch.long),
        world,
    )
    begun = 0
    parts = {"model": model, "average": average, "muon": muon, "adam": adam}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        begun = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        log.info("video goes on from step %d", begun)
    ring.drawn = 10_000_000 * rank + 100 * begun  # people not yet seen
    generator = torch.Generator().manual_seed(1 + 1_000_003 * rank + begun)
    for block in model.blocks:
        block.compile()  # a third less time
    averaged = model
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
        averaged = nn.parallel.DistributedDataParallel(model)
    ring.add(1_000)
    recent = 0.0
    for step in range(begun, steps):
        if step % 20 == 19 and ring.filled < len(ring.latents):
            ring.add(50)
        rows = torch.randint(ring.filled, (batch,), generator=generator)
        clean = ring.latents[rows]
        shift = 1.5 * (5 / 1.5) ** torch.rand(batch, generator=generator)
        u = torch.randint(1, STEPS + 1, (batch,), generator=generator) / STEPS
        sigma = shift * u / (1 + (shift - 1) * u)
        noise = torch.randn(clean.shape, generator=generator)
        level = sigma.view(-1, 1, 1, 1, 1)
        condition = grey.repeat(batch, 1, 1, 1, 1)
        condition[:, 4:, 0] = clean[:, :, 0]  # the codec sees the first frame alone, so it is the same latent
        noisy = torch.cat(((1 - level) * clean + level * noise, condition), dim=1)
        (velocity,) = averaged(noisy, sigma * 1000, texts[ring.prompts[rows]], return_dict=False)
        weight = 1 + 3 * ring.faces[rows][:, None]
        loss = (weight * (velocity - (noise - clean)) ** 2).mean() / weight.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        left = 1 - step / steps
        rate = min(1.0, (step + 1) / 150) * min(1.0, max(0.01, left / 0.6))  # warm up, hold, fall
        for optimizer in (muon, adam):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        keep = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        recent += loss.item()
        if step % 100 == 99 and rank == 0:
            log.info("video %5d of %d steps, loss %.4f", step + 1, steps, recent / 100)
            recent = 0.0
        if (step % 200 == 199 or step + 1 == steps) and rank == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "step": step + 1}, checkpoint)
    return average
