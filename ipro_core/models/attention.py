"""Self-attention whose result is kept, so that a block run again for its gradient does not attend again.

The backward pass of a flash kernel wants q, k, v, the result and each row's log-sum-exp; it never wants the
forward pass. At 32 760 tokens that pass is half of the network's arithmetic.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

aten = torch.ops.aten

# What torch's own choice of a kernel means (torch.nn.attention.SDPBackend).
_FLASH, _EFFICIENT, _CUDNN = 1, 2, 3
_NUMBERS = 1 << 26
"""Of q whose gradient is taken at a time: 256 MB in float32."""


@dataclass(frozen=True, eq=False)
class Attended:
    """softmax(q kᵀ / √D) v, and what its backward pass wants besides q, k and v."""

    out_BLD: Tensor
    """Heads side by side."""
    lse: Tensor | None
    """Each row's log-sum-exp; None: by plain mathematics, which has to be done again."""
    rest: tuple[Any, ...] = ()
    """What else the kernel returned: lengths and seeds."""


class Recall:
    """The results of an update's passes that are run twice, between the first run and the second.

    With them the second needs neither attention nor queries, keys and values.
    """

    def __init__(self, room: int):
        self.room, self.number = room, 0
        self._passes: defaultdict[int, dict[int, Attended]] = defaultdict(dict)

    def leave(self, block: int, attended: Attended) -> None:
        """Of the pass with the present number."""
        self._passes[self.number][block] = attended
        self.room -= 1

    def found(self) -> dict[int, Attended]:
        """By block, what that pass has left; it is taken."""
        return self._passes.pop(self.number, {})


def attend(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Attended:
    """Attention without a graph, by the kernel that torch would choose (flash for cuDNN's)."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q_BLHD, k_BLHD, v_BLHD))
    kernel = _kernel(q, k, v)
    if kernel == _EFFICIENT:
        out, lse, *rest = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    elif kernel == _FLASH and q.is_cuda:
        out, lse, *rest = aten._scaled_dot_product_flash_attention(q, k, v)
        rest = rest[:-1]  # the last is a mask for debugging
    elif kernel == _FLASH:
        out, lse, *rest = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    else:
        out, lse, rest = scaled_dot_product_attention(q, k, v), None, ()
    return Attended(out.transpose(1, 2).flatten(2), lse, tuple(rest))


def attend_again(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, kept: Attended) -> Tensor:
    """`kept.out_BLD` as a function of q, k and v that can be differentiated."""
    if kept.lse is None:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q_BLHD, k_BLHD, v_BLHD))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return _Kept.apply(q_BLHD, k_BLHD, v_BLHD, kept)  # type: ignore[no-any-return]


def _kernel(q: Tensor, k: Tensor, v: Tensor) -> int:
    choice = torch._fused_sdp_choice(q, k, v)  # pyright: ignore[reportPrivateImportUsage]
    if choice in (_FLASH, _CUDNN):
        # CUDA's flash wants heads of a multiple of 8 (Wan's are 128); torch would pad others.
        return _FLASH if q.shape[-1] % 8 == 0 or not q.is_cuda else 0
    return choice if choice == _EFFICIENT else 0


class _Kept(torch.autograd.Function):
    """Attention whose forward pass was done before."""

    @staticmethod
    def forward(ctx, q_BLHD, k_BLHD, v_BLHD, kept: Attended) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(q_BLHD, k_BLHD, v_BLHD, kept.out_BLD, kept.lse)
        ctx.rest = kept.rest
        return kept.out_BLD.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BLD: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out_BLD, lse = ctx.saved_tensors
        heads = (q.shape[2], -1)
        gradient, out = (tensor.unflatten(2, heads).transpose(1, 2) for tensor in (gradient_BLD, out_BLD))
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        pulled = [torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]]
        # CUDA's kernel has a gradient of q in float32 beside the one that it returns: some heads at a time.
        step = max(1, _NUMBERS * q.shape[1] // q.numel())
        for first in range(0, q.shape[1], step):
            heads = slice(first, first + step)
            parts = [tensor[:, heads] for tensor in (gradient, q, k, v, out, lse)]
            given = _backward(parts, ctx.rest)
            for target_BLHD, part in zip(pulled, given, strict=True):
                target_BLHD[:, :, heads] = part.transpose(1, 2)
        return *pulled, None


def _backward(parts: list[Tensor], rest: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    gradient, q, k, v, out, lse = parts
    if not q.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, lse, 0.0, False
        )
    if len(rest) == 2:  # the efficient kernel's: seed and offset of a dropout that is not there
        return aten._scaled_dot_product_efficient_attention_backward(
            gradient, q, k, v, None, out, lse, *rest, 0.0, [True, True, True, False]
        )[:3]
    *lengths, seed, offset = rest
    return aten._scaled_dot_product_flash_attention_backward(
        gradient, q, k, v, out, lse, *lengths, 0.0, False, seed, offset
    )
