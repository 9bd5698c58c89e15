"""Wan's decoder, one latent frame at a time, as a pure function: (latent frame, caches) → (frames, caches).

The layers are diffusers'; the walk through them is ours, for three reasons. Their caches are a list changed
on the way; ours are inputs and outputs, so that a latent frame can be computed once more and differentiated
with respect to them. Every stage sees no more of the picture than the pixels asked for depend on (`windows`):
exact, since all but the middle block's attention is convolution. And all that the backward pass is left is
the input of every normalisation: frozen convolutions need nothing, norm and SiLU are computed again.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv3d_input
from torch.utils.checkpoint import checkpoint

Window = tuple[int, int, int, int]
"""top, bottom, left, right; bottom and right are the first outside."""

_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class ChunkSize:
    """What one latent frame's graph holds, in numbers (not bytes), for a batch of one."""

    graph: int
    """Kept for the backward pass."""
    sparing_graph: int
    """The same, if each residual block is computed again."""
    caches: int
    """At a border between chunks."""


class CausalDecoder:
    """diffusers' WanDecoder3d and the convolution before it."""

    def __init__(self, network: Any) -> None:
        decoder = network.decoder
        self.patch = network.config.patch_size or 1
        self._post_quant, self._conv_in, self._middle = (
            network.post_quant_conv,
            decoder.conv_in,
            decoder.mid_block,
        )
        self._norm_out, self._conv_out = decoder.norm_out, decoder.conv_out
        self._stages = [
            (
                list(block.resnets),
                block.upsampler if hasattr(block, "upsampler") else (block.upsamplers or [None])[0],
                getattr(block, "avg_shortcut", None),  # Wan 2.2
            )
            for block in decoder.up_blocks
        ]
        self.scale = self.patch * 2 ** sum(upsampler is not None for _, upsampler, _ in self._stages)

    def __call__(
        self,
        z_BCTHW: Tensor,
        caches: list[Tensor],
        windows: Sequence[Window] | None = None,
        *,
        sparing: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode one latent frame.

        Args:
            z_BCTHW: (B, C, 1, H, W), not normalised.
            caches: as the chunk before returned them, and taken out of this list as they are used; none: the
                video begins here.
            windows: of each stage, from `windows`; None: the whole picture.
            sparing: keep one input for every residual block instead of two.

        Returns:
            (B, 3, 1 or 4, H, W) in about [-1, 1], the last window's part of it; and the caches.
        """
        begins = not caches
        slots: deque[Any] = deque(caches or [None] * self._num_caches)
        caches.clear()
        attend = _again if torch.is_grad_enabled() else _call
        run = attend if sparing else _call

        def causal(conv: Any, x: Tensor) -> Tensor:
            x, kept = _causal(conv, x, slots.popleft())
            slots.append(kept)
            return x

        def resnet(block: Any, x: Tensor) -> Tensor:
            x, *kept = run(_resnet, block, x, slots.popleft(), slots.popleft())
            slots.extend(kept)
            return x

        x = causal(self._conv_in, _FrozenConv.apply(z_BCTHW, self._post_quant))
        x = resnet(self._middle.resnets[0], x)
        x = attend(self._middle.attentions[0].forward, x)
        x = resnet(self._middle.resnets[1], x)
        top, left = 0, 0
        for stage, (resnets, upsampler, shortcut) in enumerate(self._stages):
            if windows is not None:
                first, end, start, stop = windows[stage]
                x = x[..., first - top : end - top, start - left : stop - left].contiguous()
                top, left = 2 * first, 2 * start
            entered = x
            for block in resnets:
                x = resnet(block, x)
            if upsampler is not None:
                if hasattr(upsampler, "time_conv"):
                    if begins:  # the first latent frame is one frame, and no later one looks back at it here
                        slots.popleft()
                        slots.append(x.new_zeros(*x.shape[:2], 2, *x.shape[3:]))
                    else:
                        x = causal(upsampler.time_conv, x)
                        x = x.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
                x = _upsampled(upsampler.resample[1], x)
            if shortcut is not None:
                x = x + shortcut(entered, first_chunk=begins)
        x = causal(self._conv_out, _NormSilu.apply(x, self._norm_out))
        # Unpatchify: channels (colour, column, row), which is not pixel_shuffle's order.
        x = x.unflatten(1, (-1, self.patch, self.patch)).permute(0, 1, 4, 5, 3, 6, 2)
        return x.flatten(5, 6).flatten(3, 4), list(slots)

    def windows(self, box: Window, height: int, width: int, margin: int | None = None) -> list[Window]:
        """What each stage must see to make the pixels of the box exact: the layers' reaches, backwards.

        Args:
            box: in pixels.
            height, width: of the latents.
            margin: at most so many latents around the box, which is not exact below 13; None: what it takes.
        """
        rows = self._spans(box[0], box[1], height, margin)
        columns = self._spans(box[2], box[3], width, margin)
        return [(*span, *other) for span, other in zip(rows, columns, strict=True)]

    def chunk_size(self, height: int, width: int, windows: Sequence[Window] | None = None) -> ChunkSize:
        """Of one latent frame after the first; multiply by the type's bytes."""
        area, frames = height * width, 1
        graph, sparing, caches = 0, 0, 2 * self._conv_in.in_channels * area

        def add(block: Any) -> None:
            nonlocal graph, sparing, caches
            entering, inside = block.conv1.in_channels, block.conv2.in_channels
            graph += (entering + inside) * frames * area
            sparing += entering * frames * area
            caches += 2 * (entering + inside) * area

        for block in self._middle.resnets:
            add(block)
        attended = self._middle.resnets[1].conv1.in_channels * area
        for stage, (resnets, upsampler, _) in enumerate(self._stages):
            top, bottom, left, right = windows[stage] if windows else (0, height << stage, 0, width << stage)
            area = (bottom - top) * (right - left)
            for block in resnets:
                add(block)
            if upsampler is not None and hasattr(upsampler, "time_conv"):
                caches += 2 * upsampler.time_conv.in_channels * area
                frames *= 2
        last = self._conv_out.in_channels * area
        graph, sparing = (size + attended + last * frames for size in (graph, sparing))
        return ChunkSize(graph, sparing, caches + 2 * last)

    @property
    def _num_caches(self) -> int:
        convs = sum(2 * len(resnets) for resnets, _, _ in self._stages) + 2 * len(self._middle.resnets)
        return convs + 2 + sum(hasattr(upsampler, "time_conv") for _, upsampler, _ in self._stages)

    def _spans(self, first: int, end: int, size: int, margin: int | None) -> list[tuple[int, int]]:
        """(first, end) of each stage along one side."""
        least, most = 0, size
        if margin is not None:
            least, most = max(first // self.scale - margin, 0), min(-(-end // self.scale) + margin, size)
        reach = _reach(self._conv_out)
        first, end = first // self.patch - reach, -(-end // self.patch) + reach
        spans, scale = [], self.scale // self.patch
        for resnets, upsampler, _ in reversed(self._stages):
            if upsampler is not None:
                reach, scale = _reach(upsampler), scale // 2
                first, end = (first - reach) // 2, -(-(end + reach) // 2)
            reach = sum(map(_reach, resnets))
            first, end = max(first - reach, least * scale), min(end + reach, most * scale)
            spans.append((first, end))
        return spans[::-1]


class _FrozenConv(torch.autograd.Function):
    """A convolution that pads in space only and keeps nothing: its weights, never trained, do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: Any) -> Tensor:
        ctx.conv, ctx.shape = conv, x.shape
        apply = F.conv2d if x.ndim == 4 else F.conv3d
        return apply(x, conv.weight, conv.bias, padding=_padding(conv))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), conv = gradients, ctx.conv
        transposed: Any = conv2d_input if gradient.ndim == 4 else conv3d_input
        return transposed(ctx.shape, conv.weight, gradient, padding=_padding(conv)), None


class _NormSilu(torch.autograd.Function):
    """silu(norm(x)), of which x alone is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        return F.silu(norm(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = F.silu(ctx.norm.forward(x))  # the hooks of FLOP counters cannot bear a graph in a graph
        return torch.autograd.grad(y, x, gradients[0])[0], None


def _causal(conv: Any, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """A convolution that looks two frames back, and the two frames the next chunk looks back at."""
    if before is None:
        before = x.new_zeros(*x.shape[:2], 2, *x.shape[3:])
    x = torch.cat([before, x], dim=2)
    return _FrozenConv.apply(x, conv), x[:, :, -2:].clone()  # a view would keep the whole


def _resnet(
    block: Any, x: Tensor, before_1: Tensor | None, before_2: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    y, kept_1 = _causal(block.conv1, _NormSilu.apply(x, block.norm1), before_1)
    y, kept_2 = _causal(block.conv2, _NormSilu.apply(y, block.norm2), before_2)
    beside = x if isinstance(block.conv_shortcut, nn.Identity) else _FrozenConv.apply(x, block.conv_shortcut)
    return y + beside, kept_1, kept_2


def _upsampled(conv: Any, x_BCTHW: Tensor) -> Tensor:
    """Every pixel twice in both directions, then a convolution in space."""
    x = F.interpolate(x_BCTHW.transpose(1, 2).flatten(0, 1), scale_factor=2, mode="nearest-exact")
    return _FrozenConv.apply(x, conv).unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2)


def _call(function: Any, *inputs: Any) -> Any:
    return function(*inputs)


def _padding(conv: Any) -> tuple[int, ...]:
    """In space as much as keeps the size; in time none, what came before is put in front."""
    *_, rows, columns = conv.kernel_size
    return (0,) * (len(conv.kernel_size) - 2) + (rows // 2, columns // 2)


def _reach(module: nn.Module) -> int:
    """How many pixels to each side a module's output depends on (its convolutions are square)."""
    convs = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]
    return sum(conv.kernel_size[-1] // 2 for conv in convs)
