"""What a plan counts with: a network's sizes, off its header, and how often an update goes through it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from .vae import GROUP
from .wan_files import WanFile


@dataclass(frozen=True)
class Shape:
    """What of a network's header decides the cost."""

    name: str
    dim: int
    ffn: int
    layers: int
    heads: int
    text_tokens: int
    block_bytes: int
    """Stored, the largest block."""
    outside_bytes: int
    """All that is in no block."""
    adapter_numbers: int
    """Of a LoRA of rank 1 on the trained layers."""
    itemsize: int
    """Of activations."""
    latent_channels: int

    @classmethod
    def of(cls, file: WanFile) -> "Shape":
        """Read off the header."""
        config, itemsize = file.config(), file.dtype.itemsize
        blocks: dict[str, int] = {}
        outside, adapter = 0, 0
        for name, entry in file.tensors.items():
            numbers = prod(entry.shape)
            if name.startswith("blocks."):
                kept = entry.nbytes if file.is_quantised(name) else numbers * itemsize
                block = name.split(".")[1]
                blocks[block] = blocks.get(block, 0) + -(-kept // 256) * 256
                if len(entry.shape) == 2 and name.endswith(".weight") and "img" not in name:
                    adapter += sum(entry.shape)
            else:
                outside += numbers * itemsize
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        return cls(
            file.kind, dim, config["ffn_dim"], config["num_layers"], config["num_attention_heads"], 512,
            max(blocks.values()), outside, adapter, itemsize, config["out_channels"],
        )  # fmt: skip

    def forward_flops(self, tokens: int) -> float:
        """One pass of the blocks: products with weights, self-attention, the prompt's attention."""
        return self.linear_flops(tokens) + self.attention_flops(tokens)

    def linear_flops(self, tokens: int) -> float:
        """q, k, v, o; q, o of the prompt's tokens, whose k and v are few; the feed-forward's two."""
        per_token = 2 * self.dim * (6 * self.dim + 2 * self.ffn)
        return self.layers * (tokens * per_token + self.text_tokens * 4 * self.dim**2)

    def attention_flops(self, tokens: int) -> float:
        """q kᵀ and · v, two operations each."""
        return self.layers * 4 * tokens * (tokens + self.text_tokens) * self.dim

    def recalled_flops(self, tokens: int) -> float:
        """What a pass is spared that finds its self-attention's results: it, and q, k and v."""
        return self.layers * tokens * self.dim * (4 * tokens + 6 * self.dim)


@dataclass(frozen=True)
class Passes:
    """How an update goes through the network."""

    forward: float
    again: float
    """Without attention."""
    backward: float
    kept: int
    """Of the rollout, waiting for the gradient while the video is decoded."""
    anchored: bool
    twice: bool
    """Whether a block may be pulled for two cotangents."""
    decodes: float = 1
    """How often a video is decoded; a frozen expert's latents never are."""

    @classmethod
    def of(
        cls,
        steps: int,
        grad_steps: int,
        reference_steps: float,
        kl_detached: bool,
        kept: int = 1,
        later: int = 0,
    ) -> "Passes":
        """Of `reward_gradient`: N + K + L - M + R forward, K + L again, as many backward; a detached anchor
        pulls a second cotangent wherever there is a step before.

        Args:
            reference_steps: R, the mean number of steps that are compared with the frozen model.
            kept: M.
            later: L, the steps after the K.
        """
        walked = grad_steps + later
        kept = min(kept, walked)
        twice = reference_steps * (1 - 1 / grad_steps) if kl_detached else 0
        forward = steps + walked - kept + reference_steps
        return cls(forward, walked, walked + twice, kept, reference_steps > 0, twice > 0)

    @classmethod
    def mean(cls, ways: Sequence["Passes"]) -> "Passes":
        """Of ways that are equally likely: the time of all, the memory of the largest."""
        sums = {name: sum(getattr(way, name) for way in ways) for name in ("forward", "again", "backward")}
        return replace(
            max(ways, key=lambda way: (way.kept, way.twice, way.anchored)),
            **{name: total / len(ways) for name, total in sums.items()},
        )

    def times(self, count: int, after: int) -> "Passes":
        """So often, on one video that so many passes sampled."""
        forward, again, backward = (count * passes for passes in (self.forward, self.again, self.backward))
        more = {"forward": forward + after, "again": again, "backward": backward}
        return replace(self, **more, decodes=count * self.decodes)

    @property
    def rerun(self) -> int:
        """Passes of the rollout that are run again for their gradient."""
        return round(self.again) - self.kept

    @classmethod
    def sampling(cls, steps: int, decodes: bool = True) -> "Passes":
        """Without a gradient."""
        return cls(steps, 0, 0, 0, False, False, float(decodes))


def is_5b(shape: Shape) -> bool:
    return shape.latent_channels == 48


def tokens_of(shape: Shape, width: int, height: int, frames: int) -> int:
    scale = 32 if is_5b(shape) else 16
    return ((frames - 1) // GROUP + 1) * (height // scale) * (width // scale)
