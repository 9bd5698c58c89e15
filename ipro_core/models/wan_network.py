"""diffusers' WanTransformer3DModel taken apart: the entrance, three segments of a block, the exit.

The arithmetic and the modules are diffusers'; what is ours is where one may stop and start again, and that
the time step is given for each latent frame (TI2V-5B), where diffusers wants it for each token: its
modulation then costs 94 bytes per token and channel, here next to nothing.

What looks at each token alone and is no matrix product (norms, modulation, rotation, gates) is computed in
float32, some tokens at a time, and keeps nothing for its gradient but its input: whole and in float32 these
layers would take three times the memory of all the rest.

Shapes: L tokens, D channels, F groups of tokens that share a time step: 1, or the number of latent frames.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from .adapters import linear_layer

_PIECE = 1 << 24
"""Numbers that a layer without products works on at a time: 64 MB in float32."""


@dataclass(frozen=True, eq=False)
class Side:
    """What every block is given beside its tokens."""

    context_BSD: Tensor
    """The image's tokens, then the text's."""
    modulation_BF6D: Tensor
    rotary: tuple[Tensor, Tensor]
    image_tokens: int = 0


def enter(
    network: Any, x_BCTHW: Tensor, t_BF: Tensor, text_BLD: Tensor, clip_BLD: Tensor | None
) -> tuple[Tensor, Side, Tensor]:
    """(tokens, what goes beside them, the time's embedding (B, F, D) for `leave`), in the text's type."""
    embedder = network.condition_embedder
    dtype = _dtype(embedder.time_embedder.linear_1, text_BLD)
    frequencies = embedder.timesteps_proj(t_BF.flatten()).to(text_BLD.device, dtype)
    time_BFD = embedder.time_embedder(frequencies).type_as(text_BLD).unflatten(0, t_BF.shape)
    modulation_BF6D = embedder.time_proj(embedder.act_fn(time_BFD)).unflatten(-1, (6, -1))
    context_BSD, image_tokens = embedder.text_embedder(text_BLD), 0
    if clip_BLD is not None:
        image_BSD = embedder.image_embedder(clip_BLD)
        context_BSD, image_tokens = torch.cat([image_BSD, context_BSD], dim=1), image_BSD.shape[1]
    x_in = x_BCTHW.to(network.patch_embedding.weight)  # float32 in some files, as in ComfyUI
    x_BLD = network.patch_embedding(x_in).to(text_BLD).flatten(2).transpose(1, 2).contiguous()
    return x_BLD, Side(context_BSD, modulation_BF6D, network.rope(x_BCTHW), image_tokens), time_BFD


def leave(network: Any, x_BLD: Tensor, time_BFD: Tensor, latents: Sequence[int]) -> Tensor:
    """The velocity (B, C, T, H, W); latents: T, H and W."""
    table_B12D = network.scale_shift_table.unsqueeze(0)
    shift, scale = (table_B12D + time_BFD.unsqueeze(2)).unbind(2)
    y_BLD = network.proj_out(_modulated(network.norm_out, x_BLD, shift, scale))
    patch = network.config.patch_size
    grid = [size // step for size, step in zip(latents, patch, strict=True)]
    y = y_BLD.reshape(len(y_BLD), *grid, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return y.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def queries(block: Any, x_BLD: Tensor, side: Side) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of the self-attention, each (B, L, heads, channels of a head)."""
    attention, heads = block.attn1, (block.attn1.heads, -1)
    shift, scale, *_ = _rows(block, side.modulation_BF6D)
    y_BLD = _modulated(block.norm1, x_BLD, shift, scale)

    def rotated(norm: Any, y_BLD: Tensor) -> Tensor:
        def turn(y_BLD: Tensor, tokens: slice) -> Tensor:
            rotary = side.rotary[0][:, tokens], side.rotary[1][:, tokens]
            return _rotated(norm.forward(y_BLD).unflatten(2, heads), rotary).flatten(2)

        return _by_pieces(turn, y_BLD).unflatten(2, heads)

    q_BLHD = rotated(attention.norm_q, attention.to_q(y_BLD))
    k_BLHD = rotated(attention.norm_k, attention.to_k(y_BLD))
    return q_BLHD, k_BLHD, attention.to_v(y_BLD).unflatten(2, heads)


def after_self_attention(block: Any, x_BLD: Tensor, side: Side, attended_BLD: Tensor) -> Tensor:
    """The tokens after the first segment."""
    gate = _rows(block, side.modulation_BF6D)[2]
    return _gated(x_BLD, _projected(block.attn1, attended_BLD), gate)


def cross_attention(block: Any, x_BLD: Tensor, side: Side) -> Tensor:
    """The tokens after the second segment."""
    attention, heads = block.attn2, (block.attn2.heads, -1)
    y_BLD = _by_pieces(lambda x, _: block.norm2.forward(x.float()).type_as(x), x_BLD)
    q_BLD = _by_pieces(lambda y, _: attention.norm_q.forward(y), attention.to_q(y_BLD))

    def read(k_BSD: Tensor, v_BSD: Tensor) -> Tensor:
        q, k, v = (tensor.unflatten(2, heads).transpose(1, 2) for tensor in (q_BLD, k_BSD, v_BSD))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    image_BSD, text_BSD = side.context_BSD.split(
        [side.image_tokens, side.context_BSD.shape[1] - side.image_tokens], dim=1
    )
    y_BLD = read(attention.norm_k(attention.to_k(text_BSD)), attention.to_v(text_BSD))
    if side.image_tokens:
        k_BSD = attention.norm_added_k(attention.add_k_proj(image_BSD))
        y_BLD = y_BLD + read(k_BSD, attention.add_v_proj(image_BSD))
    return x_BLD + _projected(attention, y_BLD)


def feed_forward(block: Any, x_BLD: Tensor, modulation_BF6D: Tensor, read: bool = True) -> Tensor:
    """The tokens after the third segment, which looks at each token alone: give it as many as fit.

    read: whether the numbers are wanted, and not their gradient alone: its last product is a tenth of a pass.
    """
    *_, shift, scale, gate = _rows(block, modulation_BF6D)
    y_BLD = _modulated(block.norm3, x_BLD, shift, scale)
    *widened, last = block.ffn.net
    for module in widened:
        y_BLD = module(y_BLD)
    read = read or gate.requires_grad  # the gate's gradient reads what it lets through
    return _gated(x_BLD, linear_layer(last, y_BLD, read).float(), gate)


@dataclass(frozen=True)
class Segments:
    """What a block does, less its self-attention itself, as functions of block and tokens."""

    queries: Callable[..., tuple[Tensor, Tensor, Tensor]]
    after_self_attention: Callable[..., Tensor]
    cross_attention: Callable[..., Tensor]
    feed_forward: Callable[..., Tensor]


EAGER = Segments(queries, after_self_attention, cross_attention, feed_forward)


@cache
def compiled(backend: str) -> Segments:
    """The segments by torch.compile: one graph serves all blocks, since their weights are its inputs.

    There is one for each set of adapters that is on, with and without a gradient; a second number of tokens
    makes it general in that.
    """

    from torch._functorch import config

    config.donated_buffer = False  # such buffers would not live for the second of two cotangents
    segments = (getattr(EAGER, name) for name in EAGER.__dataclass_fields__)
    return Segments(*(torch.compile(segment, backend=backend) for segment in segments))


def token_pieces(tokens: int, groups: int, at_most: int) -> Iterator[tuple[slice, slice]]:
    """Pieces of the L axis for `feed_forward`, each with its piece of the modulation's F axis.

    Where time steps differ a piece is whole groups, one at least.
    """
    if groups == 1:
        for start in range(0, tokens, at_most):
            yield slice(start, start + at_most), slice(0, 1)
        return
    size = tokens // groups
    step = max(1, at_most // size)
    for start in range(0, groups, step):
        yield slice(start * size, (start + step) * size), slice(start, start + step)


def _rows(block: Any, modulation_BF6D: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate of the self-attention, then of the feed-forward; each (B, F, D), float32."""
    return (block.scale_shift_table.unsqueeze(0) + modulation_BF6D.float()).unbind(2)


def _modulated(norm: Any, x_BLD: Tensor, shift_BFD: Tensor, scale_BFD: Tensor) -> Tensor:
    def modulate(x_BLD: Tensor, _: slice, shift_BFD: Tensor, scale_BFD: Tensor) -> Tensor:
        y = norm.forward(x_BLD.float()).unflatten(1, (shift_BFD.shape[1], -1))
        return (y * (1 + scale_BFD.unsqueeze(2)) + shift_BFD.unsqueeze(2)).flatten(1, 2).type_as(x_BLD)

    return _by_pieces(modulate, x_BLD, shift_BFD, scale_BFD)


def _by_pieces(function: Callable[..., Tensor], x_BLD: Tensor, *rows_BFD: Tensor) -> Tensor:
    """function(x, tokens, *rows) for pieces of the tokens, of which it looks at each alone."""
    if torch.compiler.is_compiling():  # the compiler fuses such layers and decides itself what to keep
        return function(x_BLD, slice(None), *rows_BFD)
    return _Pieces.apply(function, x_BLD, *rows_BFD)  # type: ignore[no-any-return]


class _Pieces(torch.autograd.Function):
    """Keeps x and the rows; each piece is computed again for its gradient."""

    @staticmethod
    def forward(ctx, function: Callable[..., Tensor], x_BLD: Tensor, *rows_BFD: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.function = function
        ctx.save_for_backward(x_BLD, *rows_BFD)
        y_BLD = torch.empty_like(x_BLD)
        for tokens, groups in _pieces(x_BLD, rows_BFD):
            y_BLD[:, tokens] = function(x_BLD[:, tokens], tokens, *(rows[:, groups] for rows in rows_BFD))
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BLD: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_BLD, *given = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        rows_BFD = [rows.detach().requires_grad_(need) for rows, need in zip(given, needs, strict=True)]
        pulled_BLD = torch.empty_like(x_BLD)
        for tokens, groups in _pieces(x_BLD, rows_BFD):
            with torch.enable_grad():
                x = x_BLD[:, tokens].detach().requires_grad_()
                y = ctx.function(x, tokens, *(rows[:, groups] for rows in rows_BFD))
            torch.autograd.backward(y, gradient_BLD[:, tokens])  # the rows gather theirs over the pieces
            pulled_BLD[:, tokens] = x.grad
        return None, pulled_BLD, *(rows.grad for rows in rows_BFD)


def _pieces(x_BLD: Tensor, rows_BFD: Sequence[Tensor]) -> Iterator[tuple[slice, slice]]:
    batch, tokens, channels = x_BLD.shape
    groups = rows_BFD[0].shape[1] if rows_BFD else 1
    return token_pieces(tokens, groups, max(1, _PIECE // (batch * channels)))


class _Gated(torch.autograd.Function):
    """x + change · gate; the sum and the product in float32."""

    @staticmethod
    def forward(ctx, x_BLD: Tensor, change_BLD: Tensor, gate_BFD: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept = change_BLD if ctx.needs_input_grad[2] else change_BLD.new_empty(0)
        ctx.save_for_backward(kept, gate_BFD)
        ctx.dtype = change_BLD.dtype
        y_BLD = torch.empty_like(x_BLD)
        for tokens, groups in _pieces(x_BLD, [gate_BFD]):
            change = _times(change_BLD[:, tokens], gate_BFD[:, groups])
            y_BLD[:, tokens] = x_BLD[:, tokens].float() + change
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BLD: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        change_BLD, gate_BFD = ctx.saved_tensors
        to_change_BLD = torch.empty_like(gradient_BLD, dtype=ctx.dtype)
        to_gate_BFD = torch.zeros_like(gate_BFD) if ctx.needs_input_grad[2] else None
        for tokens, groups in _pieces(gradient_BLD, [gate_BFD]):
            gradient = gradient_BLD[:, tokens].to(torch.promote_types(ctx.dtype, gate_BFD.dtype))
            to_change_BLD[:, tokens] = _times(gradient, gate_BFD[:, groups])
            if to_gate_BFD is not None:
                product = (gradient * change_BLD[:, tokens]).unflatten(1, (gate_BFD[:, groups].shape[1], -1))
                to_gate_BFD[:, groups] += product.sum(dim=2)
        # x is rounded to float32 on its way, as diffusers has it; so is its gradient, in float64 too.
        wide = gradient_BLD.dtype == torch.float64
        to_x_BLD = gradient_BLD.float().double() if wide else gradient_BLD
        return to_x_BLD, to_change_BLD, to_gate_BFD


def _gated(x_BLD: Tensor, change_BLD: Tensor, gate_BFD: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return (x_BLD.float() + _times(change_BLD, gate_BFD)).type_as(x_BLD)
    return _Gated.apply(x_BLD, change_BLD, gate_BFD)  # type: ignore[no-any-return]


def _times(x_BLD: Tensor, gate_BFD: Tensor) -> Tensor:
    return (x_BLD.unflatten(1, (gate_BFD.shape[1], -1)) * gate_BFD.unsqueeze(2)).flatten(1, 2)


def _projected(attention: Any, y_BLD: Tensor) -> Tensor:
    for module in attention.to_out:
        y_BLD = module(y_BLD)
    return y_BLD


def _rotated(x_BLHD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    even, odd = x_BLHD.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    turned = (even * cos - odd * sin).type_as(x_BLHD), (even * sin + odd * cos).type_as(x_BLHD)
    return torch.stack(turned, dim=-1).flatten(-2)


def _dtype(linear: Any, otherwise: Tensor) -> torch.dtype:
    """What a linear layer computes in: a quantised one in its input's type."""
    weight = getattr(getattr(linear, "base_layer", linear), "weight", otherwise)
    return weight.dtype
