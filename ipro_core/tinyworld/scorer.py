"""A tiny CLIP of the world: two towers that put a frame and a prompt side by side.

It stands in for CLIP and HPSv2 where a reward asks how well a frame shows its prompt, and for CLIP's image
encoder where one compares faces. `train_scorer` made it, from pictures and captions alone; nobody told it who
is who.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from ..files import sha256
from .scenes import embed_word

SIDE = 48
"""Pixels of the squares it looks at; others are resized."""

WORD = 256
"""So much of a word's vector is enough to tell some forty words apart."""

WIDTH = 64
"""Length of an embedding."""


class _Step(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class TinyScorer(nn.Module):
    """Cosines of frames and prompts; everything is differentiable in the frames."""

    size, dim = SIDE, WIDTH

    def __init__(self, name: str = "a scorer in training") -> None:
        """`name`: what tells its embeddings from those of other networks."""
        super().__init__()
        self.name = name
        self.image = nn.Sequential(
            nn.Conv2d(3, 24, 4, 2, 1), nn.SiLU(), nn.Conv2d(24, 40, 4, 2, 1), _Step(40),
            nn.Conv2d(40, 56, 4, 2, 1), _Step(56), nn.GroupNorm(8, 56), nn.SiLU(),
            nn.Conv2d(56, 12, 1), nn.Flatten(), nn.Linear(12 * (SIDE // 8) ** 2, WIDTH),
        )  # fmt: skip
        self.text = nn.Sequential(nn.Linear(WORD, 96), nn.SiLU(), nn.Linear(96, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "TinyScorer":
        """Read the file that `save` wrote: float32, frozen."""
        scorer = cls(f"{Path(path).name} sha256:{sha256(Path(path))[:16]}")
        scorer.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
        return scorer.eval().requires_grad_(False).to(device)

    def save(self, path: Path | str) -> None:
        """Write the weights in float16."""
        save_file({name: weight.half().contiguous() for name, weight in self.state_dict().items()}, path)

    def values(self, frames_TCHW: Tensor, prompt: str) -> Tensor:
        """How well each frame, in [0, 1], shows the prompt: cosines (T,)."""
        return self.embed_images(frames_TCHW) @ self.embed_texts([prompt])[0]

    def embed_images(self, frames_NCHW: Tensor) -> Tensor:
        """Pictures of any size, or crops of faces, in [0, 1] → (N, 64) of unit length."""
        if not len(frames_NCHW):
            return frames_NCHW.new_zeros(0, WIDTH)
        if frames_NCHW.shape[-2:] != (SIDE, SIDE):
            frames_NCHW = interpolate(
                frames_NCHW, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
            )
        return normalize(self.image(frames_NCHW * 2 - 1), dim=-1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """(N, 64) of unit length; the order of words does not count."""
        means = [
            torch.stack([_word(word) for word in text.lower().split() or [""]]).mean(0) for text in texts
        ]
        return normalize(self.text(torch.stack(means).to(self.log_scale)), dim=-1)


def _word(word: str) -> Tensor:
    return embed_word(word)[:WORD]
