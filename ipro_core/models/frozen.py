"""Linear layers that are never trained, their weights in the bytes that the user's file holds.

Autograd keeps no copy of such a weight: the backward pass dequantises it once more. So a base in fp8 or in
GGUF blocks costs its file's size and no more, whatever type the activations have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

GGUF_SCALES = {
    2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,),  # Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
    10: (80, 82), 11: (108,), 12: (0, 2), 13: (0, 2), 14: (208,),  # Q2_K to Q6_K
    20: (0,), 23: (0,),  # IQ4_NL IQ4_XS
}  # fmt: skip
"""The GGUF types that are read, by GGUF's number, and where each block keeps its float16 scales, in bytes."""

_CHUNK = 1 << 24
"""Numbers dequantised at a time: 64 MB in float32, whatever the matrix's size."""


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A matrix (out, in) as a file stores it: W = scale · stored, times H where it is rotated."""

    stored: Tensor
    """(out, in) in a floating type, fp8 or int8; or GGUF's blocks, uint8 (out, bytes of a row)."""
    scale: Tensor | None = None
    """float32: one number, or (out, 1)."""
    gguf_type: int | None = None
    """GGUF's number for the blocks' type; None: not GGUF."""
    rotated: int | None = None
    """ConvRot: each row's stretches of that many inputs were turned by a Hadamard matrix before rounding."""

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(out, in). Computed in float32, some rows at a time, and rounded once."""
        if self.gguf_type is None and self.scale is None:
            return self.stored.to(dtype)
        rows = len(self.stored)
        step = max(1, _CHUNK // self.in_features)
        matrix = torch.empty(rows, self.in_features, dtype=dtype, device=self.stored.device)
        for first in range(0, rows, step):
            matrix[first : first + step] = self._float_rows(slice(first, first + step))
        return matrix

    def to(self, device: torch.device | str) -> "StoredWeight":
        """The same bytes there."""
        scale = None if self.scale is None else self.scale.to(device)
        return StoredWeight(self.stored.to(device), scale, self.gguf_type, self.rotated)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return len(self.stored), self.in_features

    @property
    def in_features(self) -> int:
        """Of the matrix, which GGUF's rows of bytes do not show."""
        if self.gguf_type is None:
            return self.stored.shape[1]
        numbers, width = _gguf_block(self.gguf_type)
        return self.stored.shape[1] // width * numbers

    def is_finite(self) -> bool:
        """No NaN and no infinity in it; read once, without a copy."""
        parts = [self.stored] if self.scale is None else [self.stored, self.scale]
        if self.gguf_type is not None:
            blocks = self.stored.reshape(-1, _gguf_block(self.gguf_type)[1])
            parts = [
                blocks[:, at : at + 2].contiguous().view(torch.float16) for at in GGUF_SCALES[self.gguf_type]
            ]
        return all(map(_is_finite, parts))

    def _float_rows(self, rows: slice) -> Tensor:
        if self.gguf_type is not None:
            from diffusers.quantizers.gguf.utils import dequantize_functions
            from gguf import GGMLQuantizationType

            # Not by dequantize_gguf_tensor, which computes in float16 and rounds twice.
            numbers, width = _gguf_block(self.gguf_type)
            blocks = self.stored[rows].reshape(-1, width)
            floats = dequantize_functions[GGMLQuantizationType(self.gguf_type)](
                blocks, numbers, width, dtype=torch.float32
            )
            return floats.reshape(-1, self.in_features)
        scale = self.scale
        assert scale is not None
        floats = self.stored[rows].float().mul_(scale if scale.numel() == 1 else scale[rows])
        if self.rotated is None:
            return floats
        groups = floats.unflatten(1, (-1, self.rotated))
        return (groups @ _hadamard(self.rotated, floats.device)).flatten(1)


class FrozenLinear(nn.Module):
    """y = x Wᵀ + b without gradients for W and b. The weight's parts are buffers, so that moves reach them;
    casts (`.to(dtype)`, `.half()`) leave their bytes alone and reach the bias only."""

    stored: Tensor
    scale: Tensor | None
    bias: Tensor | None
    change_OI: Tensor | None
    """What a frozen LoRA adds to a quantised matrix, in bfloat16."""

    @property
    def qweight(self) -> Tensor:
        """The stored matrix, by the name under which peft looks for a quantised layer's device."""
        return self.stored

    def __init__(self, weight: StoredWeight, bias: Tensor | None, in_features: int) -> None:
        super().__init__()
        assert in_features == weight.in_features
        self.in_features, self.out_features = in_features, len(weight.stored)
        self.gguf_type, self.rotated = weight.gguf_type, weight.rotated
        self.register_buffer("stored", weight.stored)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)
        self.register_buffer("change_OI", None)

    @torch.no_grad()
    def change(self, difference_OI: Tensor) -> None:
        """Add to the matrix for good: in its own numbers if they are plain floats, otherwise beside them."""
        if self.gguf_type is None and self.scale is None and self.stored.element_size() > 1:
            dtype = torch.promote_types(self.stored.dtype, torch.float32)
            self.stored.copy_(self.stored.to(dtype) + difference_OI.to(self.stored.device, dtype))
        else:
            before = 0 if self.change_OI is None else self.change_OI
            self.change_OI = (before + difference_OI.to(self.stored.device)).to(torch.bfloat16)

    @property
    def stored_weight(self) -> StoredWeight:
        """The matrix as it lies in memory now."""
        return StoredWeight(self.stored, self.scale, self.gguf_type, self.rotated)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The matrix (out, in), dequantised."""
        weight_OI = self.stored_weight.dequantised(dtype)
        return weight_OI if self.change_OI is None else weight_OI + self.change_OI.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in x's type."""
        return _FrozenProduct.apply(x, self)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What a printed network shows of the layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, stored={self.stored.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenLinear":
        kept = {"stored": self.stored, "scale": self.scale}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if before is not None and after.dtype != before.dtype:  # a cast, perhaps with a move
                setattr(self, name, before.to(after.device))
        return self


class _FrozenProduct(torch.autograd.Function):
    """Keeps the layer, not its matrix."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: FrozenLinear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return linear(x, layer.weight_in(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.layer.weight_in(gradient.dtype), None


def product(layer: nn.Module, x: Tensor, read: bool) -> Tensor:
    """layer(x) of a frozen linear layer. Where its gradient is wanted but nobody reads its numbers, they are
    zeros that nothing was computed for."""
    if read or torch.compiler.is_compiling():  # the compiler cannot see into such a function
        return layer(x)
    return _UnreadProduct.apply(x, layer)  # type: ignore[no-any-return]


class _UnreadProduct(torch.autograd.Function):
    """A linear layer's gradient without its product."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        return x.new_zeros(()).expand(*x.shape[:-1], layer.out_features)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        layer = ctx.layer
        weight = layer.weight_in(gradient.dtype) if isinstance(layer, FrozenLinear) else layer.weight
        return gradient @ weight, None


@cache
def _gguf_block(gguf_type: int) -> tuple[int, int]:
    """Numbers in a block, and its bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType(gguf_type)]


@cache
def _hadamard(size: int, device: torch.device) -> Tensor:
    """ConvRot's orthogonal and symmetric matrix, float32 (size, size): a Kronecker power of one of 4 × 4."""
    factor = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, factor)
    return (matrix / size**0.5).to(device)


def _is_finite(tensor: Tensor) -> bool:
    limit = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}.get(tensor.dtype)  # e4m3fn has no infinity
    if limit is not None:
        # In small pieces, because the heap does not give larger temporaries back.
        return all((part & 0x7F).amax() < limit for part in tensor.view(torch.uint8).flatten().split(1 << 16))
    if not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()  # either is NaN where any number is
    return bool(low.isfinite() & high.isfinite())
