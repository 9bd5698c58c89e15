"""What one update takes of device, host and time, worked out from shapes before anything is loaded.

`plan_update` looks at placements from all resident to all streamed and gives the fastest that fits; where
none does it says which smaller video would. Its bytes are held against counts of the real code (`ipro bench
--count`, tests); its seconds, and its bytes on a real GPU, have not been measured yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from .memory import Placement
from .plan_decoder import decoder_bytes, decoder_flops
from .rate import Rate
from .vae import GROUP
from .wan_files import WanFile
from .wan_kinds import Storage, released_file

_BACKWARD_TENSORS = 18
"""Tensors of the tokens' size (L, D) that are alive while a block's attention is differentiated: its input
and result, the projections before and after rotation, their gradients, the cotangent on its way."""
_FORK_TENSORS = 4
"""More of them at an anchored step, where a second cotangent waits and the first has been pulled."""
_PIECE_BYTES = 5 * (64 << 20)
"""Float32 pieces of a layer that works on some tokens at a time."""
_FLASH_BYTES = 256 << 20
"""CUDA's flash backward: q's gradient in float32, some heads at a time."""
_CONTEXT_BYTES = 600 << 20
"""CUDA's context and libraries, which torch does not count. An estimate."""


@dataclass(frozen=True)
class Plan:
    """One update of one video, and where its parts lie."""

    model: str
    size: str
    placement: Placement
    graph_bytes: int
    """For `WanVae`."""
    device_bytes: int
    """The peak."""
    host_bytes: int
    seconds: float
    tokens: int
    flops: float
    network_bytes: int
    """Of `device_bytes`, `host_bytes` and `flops`, what the network takes; the decoder has its own turn."""
    network_host_bytes: int
    network_flops: float
    measured: bool = False
    """Whether the prediction has been held against a run on this kind of device."""

    def text(self) -> str:
        """The plan in three lines."""
        resident, placed = self.placement.resident, "all blocks on the device"
        if resident is not None:
            placed = f"{resident} blocks on the device, the others streamed from host memory"
        states = "host" if self.placement.states_on_host else "device"
        doubt = "" if self.measured else " (predicted, not yet measured on a GPU)"
        return (
            f"{self.model}, {self.size}: {self.tokens} tokens, {self.flops / 1e15:.3g} PFLOP an update\n"
            f"{placed}; what the gradient needs waits on the {states}\n"
            f"{self.device_bytes / 1e9:.1f} GB on the device, {self.host_bytes / 1e9:.1f} GB on the host, "
            f"about {self.seconds:.0f} s an update and video{doubt}"
        )


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


@dataclass(frozen=True)
class Passes:
    """How often an update goes through the network."""

    forward: float
    again: float
    """Without attention."""
    backward: float

    @classmethod
    def of(cls, steps: int, grad_steps: int, reference_steps: int, kl_detached: bool) -> "Passes":
        """Of `reward_gradient`: N + K + R forward, K again, K backward; a detached anchor pulls a second
        cotangent wherever there is a step before."""
        twice = reference_steps * (1 - 1 / grad_steps) if kl_detached else 0
        return cls(steps + grad_steps + reference_steps, grad_steps, grad_steps + twice)


def plan_update(
    model: WanFile | str,
    width: int,
    height: int,
    frames: int,
    *,
    device_bytes: int,
    host_bytes: int,
    rate: Rate,
    steps: int = 5,
    grad_steps: int = 4,
    reference_steps: int = 0,
    kl_detached: bool = True,
    rank: int = 32,
    batch: int = 1,
    storage: Storage = "bf16",
    device: torch.device | str = "cuda",
) -> Plan:
    """The fastest placement of one update that fits.

    Args:
        model: a file's header (`open_wan_file`), or a released kind ("I2V-A14B") stored as `storage`.
        device_bytes, host_bytes: what may be used.
        rate: `measured_rate` of the device.
        steps: of the rollout that the tuned model takes; the frozen expert's are made before.
        reference_steps: compared with the frozen model; 0: all.
        batch: videos that pass the network together.

    Raises:
        ValueError: nothing fits; it names the largest smaller video that would.
    """
    file = released_file(model, storage) if isinstance(model, str) else model
    shape = Shape.of(file)
    passes = Passes.of(steps, grad_steps, reference_steps or grad_steps, kl_detached)

    def fastest(width: int, height: int, frames: int) -> Plan | None:
        plans = candidates(shape, width, height, frames, passes, rank, batch, rate, device)
        fitting = [p for p in plans if p.device_bytes <= device_bytes and p.host_bytes <= host_bytes]
        return min(fitting, key=lambda plan: plan.seconds, default=None)

    plan = fastest(width, height, frames)
    if plan is None:
        smaller = _largest_that_fits(width, height, frames, fastest)
        least = min(
            candidates(shape, width, height, frames, passes, rank, batch, rate, device),
            key=lambda plan: plan.device_bytes,
        )
        advice = f"{smaller} would fit" if smaller else "no smaller video fits either: choose a smaller model"
        raise ValueError(
            f"{shape.name} at {width}x{height}, {frames} frames, takes {least.device_bytes / 1e9:.1f} GB of "
            f"the device and {least.host_bytes / 1e9:.1f} GB of host memory at least, and there are "
            f"{device_bytes / 1e9:.1f} and {host_bytes / 1e9:.1f}: {advice}."
        )
    return plan


def candidates(
    shape: Shape,
    width: int,
    height: int,
    frames: int,
    passes: Passes,
    rank: int,
    batch: int,
    rate: Rate,
    device: torch.device | str,
) -> Iterator[Plan]:
    """Every placement worth a look: from all blocks resident to none, states here or on the host."""
    tokens = batch * _tokens(shape, width, height, frames)
    for resident in sorted({shape.layers * part // 8 for part in range(9)}, reverse=True):
        for on_host in (False, True):
            placement = Placement(device, None if resident == shape.layers else resident, on_host)
            yield planned(shape, width, height, frames, tokens, passes, rank, rate, placement)


def planned(
    shape: Shape,
    width: int,
    height: int,
    frames: int,
    tokens: int,
    passes: Passes,
    rank: int,
    rate: Rate,
    placement: Placement,
) -> Plan:
    """What an update takes with that placement."""
    cuda = torch.device(placement.device).type == "cuda"
    streamed = 0 if placement.resident is None else shape.layers - placement.resident
    x_bytes = tokens * shape.dim * shape.itemsize
    lse_bytes = tokens * shape.heads * 4
    states = shape.layers * (2 * x_bytes + lse_bytes)  # of each block its input and its attention's result
    codec = decoder_bytes(_is_5b(shape), width, height, frames)
    rest = (
        shape.outside_bytes
        + (shape.layers - streamed) * shape.block_bytes
        + min(2, streamed) * shape.block_bytes  # slots
        + 4 * 4 * shape.adapter_numbers * rank  # weight, gradient and Adam's two moments, float32
        + codec.weights
    )
    twice = passes.backward > passes.again
    tensors = _BACKWARD_TENSORS + (_FORK_TENSORS if twice else 0) + (2 if placement.states_on_host else -2)
    pieces = min(_PIECE_BYTES, 5 * 4 * tokens * shape.dim)
    work = tensors * x_bytes + pieces + (_FLASH_BYTES if cuda else 0)
    on_device = work if placement.states_on_host else work + states
    held = streamed * shape.block_bytes
    on_host = held + max(states if placement.states_on_host else 0, codec.borders)
    forward, linear = shape.forward_flops(tokens), shape.linear_flops(tokens)
    attention = forward - linear
    backward = linear + 2.5 * attention
    network = passes.forward * forward + passes.again * linear + passes.backward * backward
    flops = network + decoder_flops(_is_5b(shape), width, height, frames)
    # A pass brings the streamed blocks while it works; it waits for what arrives later.
    visits = passes.forward + passes.again
    copied = visits * held + (2 * passes.again * states if placement.states_on_host else 0)
    seconds = max(flops / rate.flops, copied / rate.copies)
    return Plan(
        shape.name, f"{width}x{height}, {frames} frames", placement, codec.graph,
        round(rest + max(on_device, codec.work) + (_CONTEXT_BYTES if cuda else 0)),
        round(on_host), seconds, tokens, flops, round(rest + on_device),
        round(held + (states if placement.states_on_host else 0)), network,
    )  # fmt: skip


def _is_5b(shape: Shape) -> bool:
    return shape.latent_channels == 48


def _tokens(shape: Shape, width: int, height: int, frames: int) -> int:
    scale = 32 if _is_5b(shape) else 16
    return ((frames - 1) // GROUP + 1) * (height // scale) * (width // scale)


def _largest_that_fits(width: int, height: int, frames: int, fastest: Any) -> str | None:
    """The nearest smaller video: fewer frames at this size, then smaller sides at as many frames."""
    for fewer in range(frames - GROUP, GROUP, -GROUP):
        if fastest(width, height, fewer) is not None:
            return f"{fewer} frames of {width}x{height}"
    for part in (0.75, 0.5, 0.375):
        w, h = (max(32, round(side * part / 32) * 32) for side in (width, height))
        for fewer in (frames, 33, 17, 5):
            if fewer <= frames and fastest(w, h, fewer) is not None:
                return f"{fewer} frames of {w}x{h}"
    return None
