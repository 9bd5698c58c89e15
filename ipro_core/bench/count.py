"""One update of a released model at true size, counted from the code as it is, without its numbers.

The engine, the chain of steps and the decoder run as they would on a GPU, on tensors that have shapes only.
The blocks are identical, so a few of them are run and the figures are carried on in a straight line.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..models.memory import BlockStates, BlockWeights, Placement
from ..models.vae import WanVae
from ..models.wan import WanVideoModel
from ..models.wan_files import load_transformer
from ..models.wan_kinds import RELEASED, Storage, header
from ..sampling.flow import shifted_sigmas
from ..sampling.gradient import reward_gradient
from ..types import RewardScore
from .counting import CountedMemory, CountedShelf, Ledger, NumberlessFile, without_arithmetic
from .ways import gradient
from .work import Size, StandingFace, true_draft, true_vae

STREAMED = Placement("meta", resident=0, states_on_host=True)
LEAST = 3
"""Blocks; from here on each costs what the one before it does."""


@dataclass(frozen=True)
class Count:
    """One update of one video, the optimiser's moments at rest beside it. Its arithmetic is in forward passes
    of the network."""

    tokens: int
    forward_flops: float
    """Of one pass of the network."""
    update: float
    """The network's share of the update."""
    decode: float
    """What the reward is shown: the whole video; of TI2V-5B its draft, and the face's box truly."""
    pullback: float
    """The reward's gradient through the decoder."""
    device_bytes: float
    """The peak."""
    host_bytes: float


def count_update(
    size: Size,
    storage: Storage,
    placement: Placement | None = None,
    *,
    rank: int = 32,
    first_step: int = 3,
    **settings: Any,
) -> Count:
    """Eight steps, of which those before `first_step` were made before.

    Args:
        placement: default: as little on the device as can be.
        settings: of `reward_gradient`.
    """
    placement = placement or STREAMED
    sigmas, all_kept = shifted_sigmas(8, 5.0)[first_step:], placement.kept_attentions

    def counted(config: dict[str, Any], kept: int) -> Books:
        where = replace(placement, kept_attentions=kept)
        return count_network(size, config, storage, where, rank, sigmas, **settings)

    whole = Books(*_of_all_blocks(size, counted, all_kept))
    codec = count_codec(size, drafted=size.is_5b)
    parts = (part / whole.forward for part in (whole.update, codec.decode, codec.pullback))
    return Count(
        size.tokens,
        whole.forward,
        *parts,
        # Decoder and blocks take turns; the rollout's last pass waits for the decoder with its graph.
        device_bytes=max(whole.device, whole.device_waiting + codec.device),
        host_bytes=max(whole.host, whole.host_waiting + codec.host),
    )


def _of_all_blocks(
    size: Size, counted: Callable[[dict[str, Any], int], Sequence[float]], kept: int = 0
) -> list[float]:
    """Figures of the whole network, carried on from two with few blocks.

    Args:
        counted: gives them for a configuration and as many kept attentions as are its share of `kept`.
    """
    layers = RELEASED[size.kind]["num_layers"]
    step = layers // gcd(layers, kept)  # shares without a remainder
    begin = -(-LEAST // step) * step
    few, more = (
        counted(RELEASED[size.kind] | {"num_layers": n}, kept * n // layers) for n in (begin, begin + step)
    )
    return [a + (layers - begin) / step * (b - a) for a, b in zip(few, more, strict=True)]


class Whole(NamedTuple):
    """An update with its decoding, in forward passes and bytes."""

    forwards: float
    device_bytes: float


def count_reference(size: Size, storage: Storage, rank: int = 32, first_step: int = 3) -> Whole:
    """An update with K = 4 the way of the authors' released code (`ways`): all weights on the device, no
    gradient and no moment beside them, every step compared."""
    sigmas = shifted_sigmas(8, 5.0)[first_step:]

    def counted(config: dict[str, Any], _: int) -> tuple[float, ...]:
        ledger = Ledger()
        with without_arithmetic(), ledger:
            model = _model(size, config, storage, Placement("meta"), ledger)
            model.new_adapter(rank)
            vae, condition, x = WanVae(true_vae(size.kind)), size.condition(), torch.empty(size.latents)
            ledger.restart()
            with torch.no_grad():
                model.velocity(x, 0.5, condition)
            forward = ledger.flops
            ledger.restart()
            gradient("reference", model, vae, StandingFace.of(size), x, condition, sigmas, grad_steps=4)
        return forward, ledger.flops, ledger.peak["meta"]

    forward, update, device = _of_all_blocks(size, counted)
    return Whole(update / forward, device)


class Books(NamedTuple):
    """Arithmetic of a pass and of an update; bytes at rest between updates, at most, and in the decoder's
    turn."""

    forward: float
    update: float
    device_rest: float
    device: float
    host_rest: float
    host: float
    device_waiting: float
    host_waiting: float


def count_network(
    size: Size,
    config: dict[str, Any],
    storage: Storage,
    placement: Placement,
    rank: int,
    sigmas: Tensor,
    **settings: Any,
) -> Books:
    """The network's part of an update, in a network of that configuration (diffusers' arguments)."""
    ledger = Ledger()
    with without_arithmetic(), ledger:
        model = _model(size, config, storage, placement, ledger)
        model.new_adapter(rank)
        for parameter in model.adapter_parameters().values():
            parameter.grad = torch.empty_like(parameter)
        vae = true_vae(size.kind)
        moments = [torch.empty_like(p) for p in model.adapter_parameters().values() for _ in range(2)]
        condition, x = size.condition(), torch.empty(size.latents)
        ledger.restart()
        with torch.no_grad():
            model.velocity(x, 0.5, condition)
        forward = ledger.flops
        ledger.restart()
        rest = Counter(ledger.now)
        codec: Any = _NoCodec(ledger)
        reward_gradient(model, codec, _brightness, x, condition, sigmas, **settings)
        del moments, vae
    books = [(book["meta"], book["host"]) for book in (rest, ledger.peak, codec.waiting)]
    (device_rest, host_rest), (device, host), (device_waiting, host_waiting) = books
    return Books(
        forward, ledger.flops, device_rest, device, host_rest, host, device_waiting, host_waiting
    )  # fmt: skip


def sampling_peak(size: Size, config: dict[str, Any], storage: Storage, placement: Placement) -> float:
    """Bytes on the device, at most, of a pass without a gradient."""
    ledger = Ledger()
    with without_arithmetic(), ledger, torch.no_grad():
        model = _model(size, config, storage, placement, ledger)
        condition, x = size.condition(), torch.empty(size.latents)
        ledger.restart()
        model.velocity(x, 0.5, condition)
    return ledger.peak["meta"]


def _model(
    size: Size, config: dict[str, Any], storage: Storage, placement: Placement, ledger: Ledger
) -> WanVideoModel:
    memory = CountedMemory(ledger)
    file = header(config, size.kind, storage, _empty)
    network = load_transformer(NumberlessFile(**vars(file)), "meta")
    return WanVideoModel(
        network,
        Path(str(size)),
        placement,
        weights=BlockWeights(network.blocks, placement, memory=memory),
        states=BlockStates(placement, memory=memory),
    )


class CodecBooks(NamedTuple):
    """Arithmetic; bytes beside what rests."""

    decode: float
    pullback: float
    device: float
    host: float


@cache
def count_codec(size: Size, drafted: bool, keeps: bool = True) -> CodecBooks:
    """Decoding a video and pulling a face's gradient back.

    Args:
        drafted: as `DraftedVae` does, which reads values itself.
        keeps: whether the graphs of a drafted video's box may wait.
    """
    with FakeTensorMode(), Ledger() as ledger:  # "cpu" is the device here
        kept_bytes = sys.maxsize if keeps else 0
        codec = WanVae(true_vae(size.kind), shelf=CountedShelf(ledger), kept_bytes=kept_bytes)
        draft = true_draft(size.kind) if drafted else None
        score, latents = StandingFace.of(size), torch.empty(size.latents)
        rest = ledger.now["cpu"]
        ledger.restart()
        if draft is None:
            frames_BTCHW, pull = codec.decode(latents), partial(codec.pull_box, latents, box=score.box)
        else:
            top, bottom, left, right = score.box
            frames_BTCHW = draft.decode(latents)
            truth_BTCHW, pull_truth = codec.look(latents, score.box)
            frames_BTCHW[..., top:bottom, left:right] = truth_BTCHW

            def pull(gradient_BTCHW: Tensor) -> Tensor:
                return pull_truth(gradient_BTCHW[..., top:bottom, left:right])

        decode = ledger.flops
        with torch.enable_grad():
            value = score(frames_BTCHW.requires_grad_()[0]).value
        (gradient_BTCHW,) = torch.autograd.grad(value, frames_BTCHW)
        del value
        pull(gradient_BTCHW)
    return CodecBooks(decode, ledger.flops - decode, ledger.peak["cpu"] - rest, ledger.peak["host"])


def pullback_peak(size: Size) -> int:
    """Bytes on the device, at most, beside the video and its gradient while that is pulled back."""
    with FakeTensorMode():
        latents = torch.empty(size.latents)
        gradient_BTCHW = torch.empty(1, size.frames, 3, size.height, size.width)
        with Ledger((latents, gradient_BTCHW)) as ledger:
            codec = WanVae(true_vae(size.kind), shelf=CountedShelf(ledger))
            before = ledger.now["cpu"]
            codec.pull_box(latents, gradient_BTCHW, StandingFace.of(size).box)
    return ledger.peak["cpu"] - before


class _NoCodec:
    """The decoder and its frames are counted apart; what waits while it works is noted."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.waiting: Counter[str] = Counter()

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        self.waiting = Counter(self.ledger.now)
        return torch.empty(1, 1, 3, 1, 1)

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        return torch.empty_like(latents_BCTHW)


def _brightness(frames_TCHW: Tensor, index: int) -> RewardScore:
    value = frames_TCHW.mean()
    return RewardScore(value, value[None], torch.ones(1, dtype=torch.bool))


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
