"""Linear layers that are never trained, their weights in the bytes that the user's file holds.

Autograd keeps no copy of such a weight: the backward pass dequantises it once more. So a base in fp8 or in GGUF
blocks costs its file's size and no more, whatever type the activations have.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A matrix (out, in) as a file stores it: W = scale · stored."""

    stored: Tensor
    """(out, in) in a floating type, fp8 or int8; or GGUF's blocks, uint8 (out, bytes of a row)."""
    scale: Tensor | None = None
    """float32: one number, or (out, 1)."""
    gguf_type: int | None = None
    """GGUF's number for the blocks' type; None: not GGUF."""

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """(out, in). The product with the scale is taken in float32 where there is one."""
        if self.gguf_type is not None:
            from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

            return dequantize_gguf_tensor(GGUFParameter(self.stored, quant_type=self.gguf_type)).to(dtype)
        if self.scale is None:
            return self.stored.to(dtype)
        return (self.stored.float() * self.scale).to(dtype)


class FrozenLinear(nn.Module):
    """y = x Wᵀ + b without gradients for W and b. The weight's parts are buffers, so that moves reach them."""

    stored: Tensor
    scale: Tensor | None
    bias: Tensor | None

    @property
    def qweight(self) -> Tensor:
        """The stored matrix, by the name under which peft looks for a quantised layer's device."""
        return self.stored

    def __init__(self, weight: StoredWeight, bias: Tensor | None, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, weight.stored.shape[0]
        self.gguf_type = weight.gguf_type
        self.register_buffer("stored", weight.stored)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The matrix (out, in), dequantised."""
        return StoredWeight(self.stored, self.scale, self.gguf_type).dequantised(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in x's type."""
        return _FrozenProduct.apply(x, self)  # type: ignore[no-any-return]


class _FrozenProduct(torch.autograd.Function):
    """Keeps the layer, not its matrix."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: FrozenLinear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return linear(x, layer.weight_in(x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.layer.weight_in(gradient.dtype), None
