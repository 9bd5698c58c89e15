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
from .networks import Residual, conv
from .scenes import embed_word

SIDE = 48
"""Pixels of the squares it looks at; others are resized."""

WORD = 256
"""So much of a word's vector is enough to tell some forty words apart."""

WIDTH = 64
"""Length of an embedding."""


def _words(text: str) -> Tensor:
    return torch.stack([embed_word(word)[:WORD] for word in text.lower().split() or [""]])


class _Glance(nn.Module):
    """What four learned glances at a map of features see, and where they fell."""

    def __init__(self, channels: int, cells: int, outputs: int, glances: int = 4) -> None:
        super().__init__()
        self.aim = nn.Conv2d(channels, glances, 1)
        self.mix = nn.Linear(glances * (channels + cells), outputs)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        where_NGP = self.aim(x_NCHW).flatten(2).softmax(dim=-1)
        what_NGC = where_NGP @ x_NCHW.flatten(2).mT
        return self.mix(torch.cat((what_NGC, where_NGP), dim=-1).flatten(1))


class TinyScorer(nn.Module):
    """Cosines of frames and prompts; everything is differentiable in the frames."""

    size, dim = SIDE, WIDTH

    def __init__(self, name: str = "a scorer in training") -> None:
        """`name`: what tells its embeddings from those of other networks."""
        super().__init__()
        self.name = name
        self.image = nn.Sequential(
            conv(3, 24, 4, 2), Residual(24, 40, 2), Residual(40, 40), Residual(40, 56, 2),
            _Glance(56, (SIDE // 8) ** 2, WIDTH),
        )  # fmt: skip
        self.text = nn.Sequential(nn.Linear(WORD, 96), nn.SiLU(), nn.Linear(96, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    @property
    def scale(self) -> float:
        """What its values were multiplied by in training."""
        return self.log_scale.exp().item()

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
        """(N, 64) of unit length, the mean of their words."""
        means = [self.text(_words(text).to(self.log_scale)).mean(0) for text in texts]
        return normalize(torch.stack(means), dim=-1)
