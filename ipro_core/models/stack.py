"""The stack of blocks as one differentiable function, whose graph is never larger than a part of one block.

Forward the blocks run without a graph and each leaves its input and its attention's result. Backward they
are visited in reverse; each is run again in three segments (self-attention, cross-attention, feed-forward
in pieces) and each segment is differentiated on its own, so that one block's weights and one segment's
activations are on the device at a time. The adapter's gradients go to `.grad` as they come.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from .adapters import Adapters
from .attention import Attended, Recall, attend, attend_again
from .memory import BlockStates, BlockWeights, Placement
from .wan_network import EAGER, Side, compiled, token_pieces


@dataclass(frozen=True, eq=False)
class Lane:
    """How one set of tokens goes through the stack; several lanes share each visit of a block."""

    side: Side
    adapters: tuple[str, ...] = ()
    """Those that are on, also when a block is run again."""
    trained: tuple[Parameter, ...] = ()
    """What among them is trained."""
    forked: bool = False
    """Give the result a second time, with a gradient that goes to everything but the tokens."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What one lane leaves of one block for the backward pass."""

    x_BLD: Tensor
    attended: Attended

    @property
    def tensors(self) -> list[Tensor]:
        """What waits where `BlockStates` has it."""
        lse = self.attended.lse
        return [self.x_BLD, self.attended.out_BLD, *([] if lse is None else [lse])]

    def arrived(self, tensors: list[Tensor]) -> "Kept":
        """The same with its tensors taken from the front of a list of those that came back."""
        x_BLD, out_BLD = tensors.pop(0).detach(), tensors.pop(0)
        lse = None if self.attended.lse is None else tensors.pop(0)
        return Kept(x_BLD, replace(self.attended, out_BLD=out_BLD, lse=lse))


class BlockStack:
    """The blocks of one network, and how they are run."""

    def __init__(
        self,
        weights: BlockWeights,
        states: BlockStates,
        adapters: Adapters,
        placement: Placement,
    ):
        self.weights, self.states, self.adapters = weights, states, adapters
        self.ffn_tokens, self.recompute = placement.ffn_tokens, placement.recompute
        self.segments = compiled(placement.compile) if placement.compile else EAGER
        self.visits: Counter[str] = Counter()
        """Runs of a block so far: "forward", "recalled" (its attention's result was kept), "again" (for its
        gradient), "backward" (one per cotangent)."""
        self._kept_attentions = placement.kept_attentions if placement.recompute else 0
        self._recall: Recall | None = None

    def __call__(self, tokens: Sequence[Tensor], lanes: Sequence[Lane]) -> list[Tensor]:
        """The tokens (B, L, D) after the last block, for each lane; twice for a forked one.

        Differentiable, if grad mode is on, in the tokens and in what the lanes hold. The gradients of
        `trained` are added to `.grad`, never returned: they come block by block, where torch's hooks see
        them.
        """
        inputs = [t for x, lane in zip(tokens, lanes, strict=True) for t in (x, *_beside(lane))]
        trained = [parameter for lane in lanes for parameter in lane.trained]
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *trained))
        if wanted and self.recompute:
            return list(_Stack.apply(self, lanes, *inputs, *trained))  # type: ignore[arg-type]
        assert not wanted or not any(lane.forked for lane in lanes), "one graph has one way to the tokens"
        with torch.set_grad_enabled(wanted):
            out, _ = self.forward(tokens, lanes, [False] * len(lanes))
        return [x for x, lane in zip(out, lanes, strict=True) for _ in range(1 + lane.forked)]

    def recalling(self) -> Callable[[int], AbstractContextManager[None]]:
        """See `models.base.recalling`."""
        return partial(self._recalling, Recall(self._kept_attentions))

    @contextmanager
    def _recalling(self, recall: Recall, number: int) -> Iterator[None]:
        recall.number, self._recall = number, recall
        try:
            yield
        finally:
            self._recall = None

    def forward(
        self, tokens: Sequence[Tensor], lanes: Sequence[Lane], wanted: Sequence[bool]
    ) -> tuple[list[Tensor], list[list[Kept]]]:
        """The lanes' results; and for each block what the wanted lanes leave, in their order."""
        out, kept, recall = list(tokens), [], self._recall
        found = recall.found() if recall else {}
        order = range(len(self.weights.blocks))
        arriving = self.states.travel([[found[i].out_BLD] if i in found else [] for i in order])
        for (index, block), arrived in zip(self.weights.travel(order), arriving, strict=True):
            left: list[Kept] = []
            for j, lane in enumerate(lanes):
                recalled = index in found and bool(lane.trained)
                with self.adapters.only(lane.adapters):
                    if recalled:
                        attended, attended_BLD = found[index], arrived[0]
                    else:
                        attended = attend(*self.segments.queries(block, out[j], lane.side))
                        attended_BLD = attended.out_BLD
                    x_BLD = self.segments.after_self_attention(block, out[j], lane.side, attended_BLD)
                    if wanted[j]:
                        attended = attended if recalled else self._waiting(attended)
                        left.append(Kept(self.states.keep(out[j]), attended))
                    elif recall and recall.room and lane.trained:
                        recall.leave(index, self._waiting(attended))
                    x_BLD = self.segments.cross_attention(block, x_BLD, lane.side)
                    out[j] = self._feed_forward(block, x_BLD, lane.side.modulation_BF6D)
                self.visits["recalled" if recalled else "forward"] += 1
            kept.append(left)
        self.states.settle()
        return out, kept

    def _waiting(self, attended: Attended) -> Attended:
        """The same where the states wait."""
        keep = self.states.keep
        lse = None if attended.lse is None else keep(attended.lse)
        return replace(attended, out_BLD=keep(attended.out_BLD), lse=lse)

    def backward(
        self,
        lanes: Sequence[Lane],
        kept: Sequence[Sequence[Kept]],
        cotangents: Sequence[list[Tensor]],
        through_x: Sequence[bool],
    ) -> list[list[Tensor | None]]:
        """Pull each lane's cotangents, dL/d result, back to its tokens; `.grad` of all else grows.

        A lane may have two cotangents: one visit and one graph serve both.

        Args:
            kept: by block, then by lane.
            through_x: whether a lane's tokens want a gradient at all.
        """
        pulled: list[list[Any]] = [list(given) for given in cotangents]
        order = range(len(kept))[::-1]
        states = self.states.travel([[t for left in kept[i] for t in left.tensors] for i in order])
        for (index, block), arrived in zip(self.weights.travel(order), states, strict=True):
            for j, lane in enumerate(lanes):
                left = kept[index][j].arrived(arrived)
                x_BLD, attended = left.x_BLD.requires_grad_(index > 0 or through_x[j]), left.attended
                with self.adapters.only(lane.adapters):
                    pulled[j] = self._pull_block(block, x_BLD, lane.side, attended, pulled[j])
                self.visits["again"] += 1
                self.visits["backward"] += len(cotangents[j])
        return pulled

    def _pull_block(
        self, block: Any, x_BLD: Tensor, side: Side, attended: Attended, cotangents: list[Tensor]
    ) -> list[Any]:
        segments = self.segments
        attended_BLD = attended.out_BLD.detach().requires_grad_()
        first_BLD = segments.after_self_attention(block, x_BLD, side, attended_BLD)
        middle_BLD = first_BLD.detach().requires_grad_()
        crossed_BLD = segments.cross_attention(block, middle_BLD, side)
        cotangents = self._pull_feed_forward(block, crossed_BLD.detach(), side.modulation_BF6D, cotangents)
        cotangents = _pull(crossed_BLD, middle_BLD, cotangents)
        del crossed_BLD, middle_BLD
        again_BLD = attend_again(*segments.queries(block, x_BLD, side), attended)
        return _pull(first_BLD, x_BLD, cotangents, (attended_BLD, again_BLD))

    def _feed_forward(self, block: Any, x_BLD: Tensor, modulation_BF6D: Tensor) -> Tensor:
        if x_BLD.shape[1] <= self.ffn_tokens:
            return self.segments.feed_forward(block, x_BLD, modulation_BF6D)
        out_BLD = torch.empty_like(x_BLD)
        for tokens, groups in token_pieces(x_BLD.shape[1], modulation_BF6D.shape[1], self.ffn_tokens):
            out_BLD[:, tokens] = self.segments.feed_forward(
                block, x_BLD[:, tokens], modulation_BF6D[:, groups]
            )
        return out_BLD

    def _pull_feed_forward(
        self, block: Any, x_BLD: Tensor, modulation_BF6D: Tensor, cotangents: list[Tensor]
    ) -> list[Tensor]:
        pulled = [torch.empty_like(x_BLD) for _ in cotangents]
        for tokens, groups in token_pieces(x_BLD.shape[1], modulation_BF6D.shape[1], self.ffn_tokens):
            x_piece = x_BLD[:, tokens].detach().requires_grad_()
            y_piece = self.segments.feed_forward(block, x_piece, modulation_BF6D[:, groups], read=False)
            pieces = _pull(y_piece, x_piece, [given[:, tokens] for given in cotangents])
            for target_BLD, piece in zip(pulled, pieces, strict=True):
                target_BLD[:, tokens] = piece
        return pulled


def _pull(
    y: Tensor, x: Tensor, cotangents: list[Tensor], through: tuple[Tensor, Tensor] | None = None
) -> list[Any]:
    """Each cotangent through the graph from x to y; adapters and side inputs gather theirs in `.grad`.

    The cotangents are taken from their list, so that each is gone before the next is pulled.

    through: a leaf of y's graph, and the same as a function of x, whose graph is gone through afterwards.
    """
    pulled: list[Tensor | None] = []
    while cotangents:
        cotangent, again = cotangents.pop(0), len(cotangents) > 0
        if y.requires_grad:  # the first block has nothing to give where neither tokens nor adapters want it
            torch.autograd.backward(y, cotangent, retain_graph=again)
        del cotangent
        if through is not None and through[1].requires_grad:
            torch.autograd.backward(through[1], through[0].grad, retain_graph=again)
            through[0].grad = None
        pulled.append(x.grad)
        x.grad = None
    return pulled


def _beside(lane: Lane) -> tuple[Tensor, Tensor]:
    return lane.side.context_BSD, lane.side.modulation_BF6D


class _Stack(torch.autograd.Function):
    """`BlockStack.forward` and `.backward` under torch's roof: who wants a gradient, and what is saved.

    The tensors: of each lane its tokens, context and modulation; then all that is trained.
    """

    @staticmethod
    def forward(ctx, stack: BlockStack, lanes: Sequence[Lane], *tensors: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        needs = ctx.needs_input_grad[2:]
        wanted = [any(needs[3 * j : 3 * j + 3]) or bool(lane.trained) for j, lane in enumerate(lanes)]
        out, kept = stack.forward(tensors[: 3 * len(lanes) : 3], lanes, wanted)
        results, constant = [], []
        for x_BLD, lane, differentiable in zip(out, lanes, wanted, strict=True):
            same = [x_BLD, x_BLD.clone()] if lane.forked else [x_BLD]
            results += same
            constant += [] if differentiable else same
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        ctx.stack, ctx.lanes, ctx.wanted = stack, lanes, wanted
        # What is saved this way is freed by torch, after the last backward pass that was asked for.
        left = [left for block in kept for left in block]
        ctx.save_for_backward(*(t for k in left for t in (k.x_BLD, k.attended.out_BLD, k.attended.lse)))
        ctx.rest = [k.attended.rest for k in left]
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = iter(ctx.saved_tensors)
        quadruples = zip(ctx.rest, saved, saved, saved, strict=True)
        left = [Kept(x_BLD, Attended(out_BLD, lse, rest)) for rest, x_BLD, out_BLD, lse in quadruples]
        given, lanes, cotangents, through_x, leaves = iter(gradients), [], [], [], []
        for j, lane in enumerate(ctx.lanes):
            main, fork = next(given), next(given) if lane.forked else None
            if ctx.wanted[j]:
                needs = ctx.needs_input_grad[2 + 3 * j : 5 + 3 * j]
                beside = [t.detach().requires_grad_(n) for t, n in zip(_beside(lane), needs[1:], strict=True)]
                side = replace(lane.side, context_BSD=beside[0], modulation_BF6D=beside[1])
                lanes.append(replace(lane, side=side))
                through_x.append(needs[0] and main is not None)
                cotangents.append(_distinct(main, fork, through_x[-1]))
                leaves.append(beside)
        kept = [left[i : i + len(lanes)] for i in range(0, len(left), len(lanes))]
        with torch.enable_grad():
            pulled = iter(ctx.stack.backward(lanes, kept, cotangents, through_x))
        returned: list[Tensor | None] = []
        for differentiable in ctx.wanted:
            if differentiable:
                to_x = next(pulled)
                returned += [to_x[0] if to_x else None, *(leaf.grad for leaf in leaves.pop(0))]
            else:
                returned += [None] * 3
        return None, None, *returned, *[None] * (len(ctx.needs_input_grad) - 2 - len(returned))


def _distinct(main: Tensor | None, fork: Tensor | None, through_x: bool) -> list[Tensor]:
    """The cotangents to be pulled, the one that the tokens want first; their sum where they want none."""
    given = [gradient for gradient in (main, fork) if gradient is not None]
    return given if through_x or len(given) < 2 else [given[0] + given[1]]
