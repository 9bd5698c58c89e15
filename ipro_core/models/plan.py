"""What one update takes of device, host and time, worked out from shapes before anything is loaded.

`plan_update` looks at placements from all resident to all streamed and gives the fastest that fits; where
none does it says which smaller video would. Its bytes are held against counts of the real code (`ipro bench
--count`, tests); its seconds, and its bytes on a real GPU, have not been measured yet.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from .memory import Placement
from .plan_decoder import DecoderCost, decoder_cost
from .plan_shape import Passes, Shape, is_5b, tokens_of
from .rate import Rate
from .vae import GROUP
from .wan_files import WanFile
from .wan_kinds import Storage, released_file

_BACKWARD_TENSORS = 16
"""Tensors of the tokens' size (L, D) that are alive while a block's attention is differentiated: its input
and result, the projections before and after rotation, their gradients, the cotangent on its way."""
_FORK_TENSORS = 4
"""More of them at an anchored step, where a second cotangent waits and the first has been pulled."""
_FFN_TENSORS = 2.6
"""Of a piece of a feed-forward layer, in its own width."""
_KEPT_TENSORS, _KEPT_ANCHOR_TENSORS = 1.5, 2
"""What each further pass of the rollout that is kept for the gradient leaves beside its states: its last
block's result and the exit's graph, and these once more at an anchored step."""
_WAITING_TENSORS, _WAITING_ANCHOR_TENSORS = 2.4, 3.7
"""The same of the last one while the video is decoded; as counted for TI2V-5B, where it is the most."""
_FORWARD_TENSORS = 6.5
"""Alive in a pass without a gradient: a block's input and result, attention's three and their rotation."""
_PIECE_BYTES = 5 * (64 << 20)
"""Float32 pieces of a layer that works on some tokens at a time."""
_FLASH_BYTES = 256 << 20
"""CUDA's flash backward: q's gradient in float32, some heads at a time."""
_LEFT_BYTES = 8 << 30
"""Of what there is, how much further attention's results leave free for others."""
_CONTEXT_BYTES = 600 << 20
"""CUDA's context and libraries, which torch does not count. An estimate."""


@dataclass(frozen=True)
class Plan:
    """One update of one video, and where its parts lie."""

    model: str
    size: str
    placement: Placement
    kept_bytes: int
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
        if self.placement.kept_attentions:
            states += f", and {self.placement.kept_attentions} attentions for passes that are run again"
        doubt = "" if self.measured else " (predicted, not yet measured on a GPU)"
        return (
            f"{self.model}, {self.size}: {self.tokens} tokens, {self.flops / 1e15:.3g} PFLOP a video\n"
            f"{placed}; what the gradient needs waits on the {states}\n"
            f"{self.device_bytes / 1e9:.1f} GB on the device, {self.host_bytes / 1e9:.1f} GB on the host, "
            f"about {self.seconds:.3g} s an update and video{doubt}"
        )


def plan_update(
    model: WanFile | str,
    width: int,
    height: int,
    frames: int,
    *,
    device_bytes: int,
    host_bytes: int,
    rate: Rate,
    passes: Passes | None = None,
    rank: int = 32,
    batch: int = 1,
    drafted: bool = False,
    storage: Storage = "bf16",
    device: torch.device | str = "cuda",
    attentions: int | None = None,
    allowed: Callable[[Placement], bool] = lambda placement: True,
) -> Plan:
    """The fastest placement of one update, or of one video sampled, that fits.

    Args:
        model: a file's header (`open_wan_file`), or a released kind ("I2V-A14B") stored as `storage`.
        device_bytes, host_bytes: what may be used.
        rate: `measured_rate` of the device.
        passes: default: five steps of which four carry gradients, all compared with the frozen model.
        batch: videos that pass the network together.
        drafted: whether a draft shows where the faces are, and only they are decoded truly.
        attentions: at most so many are kept (`Placement.kept_attentions`); None: as many as leave 8 GiB free
            of where the states lie, once the rest has its place.
        allowed: of the placements, those that may be chosen.

    Raises:
        ValueError: nothing fits; it names the largest smaller video that would.
    """
    file = released_file(model, storage) if isinstance(model, str) else model
    shape, passes = Shape.of(file), passes or Passes.of(5, 4, 4, True)

    def plan_of(width: int, height: int, frames: int, placement: Placement, keeps: bool, kept: int) -> Plan:
        codec = decoder_cost(is_5b(shape), width, height, frames, drafted, keeps)
        placement = replace(placement, kept_attentions=kept)
        return planned(shape, width, height, frames, passes, rank, rate, placement, batch, codec)

    def plans(width: int, height: int, frames: int) -> list[Plan]:
        every = ((at, keeps) for at, keeps in candidates(shape, device, drafted) if allowed(at))
        return [plan_of(width, height, frames, *one, attentions or 0) for one in every]

    def fastest(width: int, height: int, frames: int) -> Plan | None:
        fitting = [
            plan
            for plan in plans(width, height, frames)
            if plan.device_bytes <= device_bytes and plan.host_bytes <= host_bytes
        ]
        return min(fitting, key=lambda plan: plan.seconds, default=None)

    plan = fastest(width, height, frames)
    if plan is None:
        smaller = _largest_that_fits(width, height, frames, fastest)
        least = min(plans(width, height, frames), key=lambda plan: plan.device_bytes)
        advice = f"{smaller} would fit" if smaller else "no smaller video fits either: choose a smaller model"
        raise ValueError(
            f"{shape.name} at {width}x{height}, {frames} frames, takes {least.device_bytes / 1e9:.1f} GB of "
            f"the device and {least.host_bytes / 1e9:.1f} GB of host memory at least, and there are "
            f"{device_bytes / 1e9:.1f} and {host_bytes / 1e9:.1f}: {advice}."
        )
    if attentions is None:
        on_host = plan.placement.states_on_host
        free = host_bytes - plan.host_bytes if on_host else device_bytes - plan.device_bytes
        kept = max(0, free - _LEFT_BYTES) // _attention_bytes(shape, plan.tokens)
        plan = plan_of(width, height, frames, plan.placement, plan.kept_bytes > 0, kept)
    return plan


def candidates(shape: Shape, device: torch.device | str, drafted: bool) -> Iterator[tuple[Placement, bool]]:
    """Every placement worth a look: from all blocks resident to none, states here or on the host; and of a
    drafted video the box's graphs kept or not."""
    options = product(range(shape.layers, -1, -1), (False, True), (True, False) if drafted else (False,))
    for resident, on_host, keeps in options:
        yield Placement(device, None if resident == shape.layers else resident, on_host), keeps


def planned(
    shape: Shape,
    width: int,
    height: int,
    frames: int,
    passes: Passes,
    rank: int,
    rate: Rate,
    placement: Placement,
    batch: int = 1,
    codec: DecoderCost | None = None,
) -> Plan:
    """What an update takes with that placement.

    codec: default: of a video that is decoded whole.
    """
    cuda = torch.device(placement.device).type == "cuda"
    streamed = 0 if placement.resident is None else shape.layers - placement.resident
    tokens = batch * tokens_of(shape, width, height, frames)
    x_bytes = tokens * shape.dim * shape.itemsize
    held = streamed * shape.block_bytes
    # Of each block its input and its attention's result: of the passes that wait, or of the one at work.
    alive = max(passes.kept, 1) if passes.backward else 0
    attention_bytes = _attention_bytes(shape, tokens)
    whole = shape.layers * (x_bytes + attention_bytes)
    attentions = min(placement.kept_attentions, passes.rerun * shape.layers)
    # Where no pass waits whole, those of the first to be run again are part of the one at work.
    part = 0 if passes.kept else max(0, attentions - (passes.rerun - 1) * shape.layers)
    states = alive * whole + (attentions - part) * attention_bytes
    here = 0 if placement.states_on_host else states
    further = max(passes.kept - 1, 0) * (_KEPT_TENSORS + _KEPT_ANCHOR_TENSORS * passes.anchored)
    last = (passes.kept > 0) * (_WAITING_TENSORS + _WAITING_ANCHOR_TENSORS * passes.anchored)
    waiting = here + (further + last) * x_bytes
    pieces = min(_PIECE_BYTES, 5 * 4 * tokens * shape.dim)
    if passes.backward:
        tensors = _BACKWARD_TENSORS + _FORK_TENSORS * passes.twice + (2 if placement.states_on_host else -2)
        share = min(placement.ffn_tokens, tokens) / tokens * shape.ffn / shape.dim
        tensors += further + _FFN_TENSORS * share
        work = here + tensors * x_bytes + pieces + (_FLASH_BYTES if cuda else 0)
        training = 4 * 4 * shape.adapter_numbers * rank  # weight, gradient, Adam's two moments, float32
    else:
        work, training = _FORWARD_TENSORS * x_bytes + pieces, 0
    codec = codec or decoder_cost(is_5b(shape), width, height, frames)
    if passes.backward:
        decoding, borders = max(waiting + codec.work, codec.decode), codec.waiting
        decoder_flops = codec.flops * passes.decodes
    else:
        decoding, borders, decoder_flops = codec.decode * (passes.decodes > 0), 0, 0
    rest = (
        shape.outside_bytes
        + (shape.layers - streamed) * shape.block_bytes
        + min(2, streamed) * shape.block_bytes  # slots
        + training
        + codec.weights * (passes.decodes > 0)
    )
    on_host = states if placement.states_on_host else 0
    forward, linear = shape.forward_flops(tokens), shape.linear_flops(tokens)
    attention = forward - linear
    backward = linear + 2.5 * attention
    network = passes.forward * forward + passes.again * linear + passes.backward * backward
    network -= attentions / shape.layers * shape.recalled_flops(tokens)
    flops = network + batch * decoder_flops
    # A pass brings the streamed blocks while it works; it waits for what arrives later. States leave and come
    # back; a kept attention comes once more.
    copied = (passes.forward + passes.again) * held
    copied += placement.states_on_host * (2 * passes.again * whole + attentions * x_bytes)
    seconds = max(flops / rate.flops, copied / rate.copies)
    return Plan(
        shape.name, f"{width}x{height}, {frames} frames",
        replace(placement, kept_attentions=attentions), codec.kept_bytes,
        round(rest + max(work, decoding) + (_CONTEXT_BYTES if cuda else 0)),
        round(held + on_host + borders), seconds / batch, tokens, flops / batch, round(rest + work),
        round(held + on_host), network,
    )  # fmt: skip


def _attention_bytes(shape: Shape, tokens: int) -> int:
    """Of one block: its attention's result and the log-sum-exp of each row and head."""
    return tokens * (shape.dim * shape.itemsize + shape.heads * 4)


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
