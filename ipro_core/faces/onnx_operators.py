"""ONNX operators in torch, as far as face networks use them; each as (attributes, *inputs) → output(s).

Values that are read as numbers (sizes, axes, scales) are CPU tensors, so that shape arithmetic never waits
for a GPU and also runs on torch's shape-only "meta" device.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT_NUMBERS = {"Clip": (1, 2), "Pad": (2,), "Resize": (1, 2), "Upsample": (1,)}
"""Inputs, by position, that an operator reads as numbers although they are floats."""


def _list(value: Tensor | list | None) -> list:
    return value.tolist() if isinstance(value, Tensor) else list(value) if value else []


def _conv(a: dict, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel, stride, dilation = weight.shape[2:], a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    x, padding = _padded(a, x, kernel, stride, dilation, 0.0)
    return F.conv2d(x, weight, bias, stride, padding, dilation, a.get("group", 1))


def _max_pool(a: dict, x: Tensor) -> Tensor:
    stride, dilation = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    x, padding = _padded(a, x, a["kernel_shape"], stride, dilation, -math.inf)
    return F.max_pool2d(x, a["kernel_shape"], stride, padding, dilation, bool(a.get("ceil_mode", 0)))


def _average_pool(a: dict, x: Tensor) -> Tensor:
    stride, counts_padding = a.get("strides", [1, 1]), bool(a.get("count_include_pad", 0))
    padded, padding = _padded(a, x, a["kernel_shape"], stride, [1, 1], 0.0)
    if padded is not x and not counts_padding:
        raise ValueError("AveragePool with uneven padding")
    return F.avg_pool2d(
        padded, a["kernel_shape"], stride, padding, bool(a.get("ceil_mode", 0)), counts_padding
    )


def _padded(
    a: dict, x: Tensor, kernel: Any, stride: list, dilation: list, value: float
) -> tuple[Tensor, list]:
    """Split the operator's padding: what torch's operator takes itself, and the rest applied to x."""
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    before, after = [0, 0], [0, 0]
    automatic = a.get("auto_pad", "NOTSET")
    if automatic == "NOTSET":
        pads = a.get("pads", [0, 0, 0, 0])
        before, after = pads[:2], pads[2:]
    elif automatic.startswith("SAME"):
        sides = zip(x.shape[2:], reach, stride, strict=True)
        total = [max((math.ceil(n / s) - 1) * s + r + 1 - n, 0) for n, r, s in sides]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
    if any(not 0 <= pad <= r for pad, r in zip([*before, *after], reach * 2, strict=True)):
        raise ValueError(f"padding {before}, {after} for a window of {[r + 1 for r in reach]}")
    if before == after:
        return x, before
    return F.pad(x, [before[1], after[1], before[0], after[0]], value=value), [0, 0]


def _prelu(a: dict, x: Tensor, slope: Tensor) -> Tensor:
    # Files hold one slope a channel as (C, 1, 1); F.prelu keeps only x for the backward pass.
    if slope.numel() == 1 or slope.shape == (x.shape[1], 1, 1) or x.ndim == 2:
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, x * slope, x)


def _clip(a: dict, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    lowest, highest = _limits(a, low, high)
    return x if lowest is None and highest is None else x.clamp(lowest, highest)


def _clip_in_place(a: dict, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    lowest, highest = _limits(a, low, high)
    return x if lowest is None and highest is None else x.clamp_(lowest, highest)


def _limits(a: dict, low: Tensor | None, high: Tensor | None) -> tuple[float | None, float | None]:
    return a.get("min") if low is None else low.item(), a.get("max") if high is None else high.item()


def _gemm(a: dict, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA") else x
    weight = weight.T if a.get("transB") else weight
    product = x @ weight * a.get("alpha", 1.0)
    return product if bias is None else product + a.get("beta", 1.0) * bias


def _batch_norm(a: dict, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _reshape(a: dict, x: Tensor, shape: Tensor) -> Tensor:
    keeps = not a.get("allowzero")  # then a 0 keeps the input's side
    return x.reshape([x.shape[i] if n == 0 and keeps else n for i, n in enumerate(shape.tolist())])


def _flatten(a: dict, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _slice(a: dict, x: Tensor, *given: Tensor | None) -> Tensor:
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (_list(value) for value in (*given, None, None, None, None)[:4])
    if not given:
        starts, ends, axes, steps = (_list(a.get(name)) for name in names)
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            taken = range(x.shape[axis])[slice(start, end, step)]
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


def _gather(a: dict, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    size = x.shape[axis]
    flat = [index + size if index < 0 else index for index in indices.flatten().tolist()]
    if any(not 0 <= index < size for index in flat):
        raise ValueError(f"Gather of {flat} from {size}")
    taken = x.index_select(axis, torch.tensor(flat, dtype=torch.int64, device=x.device))
    return taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _unsqueeze(a: dict, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = _list(a.get("axes") if axes is None else axes)
    for axis in sorted(axis % (x.ndim + len(wanted)) for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: dict, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = _list(a.get("axes") if axes is None else axes)
    return x.squeeze(tuple(wanted)) if wanted else x.squeeze()


def _cast(a: dict, x: Tensor) -> Tensor:
    """Floats keep their width: it is the caller's choice, not the file's."""
    if a["to"] in (1, 10, 11, 16):
        return x if x.is_floating_point() else x.float()
    return x.to({2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool}[a["to"]])


def _pad(
    a: dict, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, *axes: Tensor
) -> Tensor:
    if axes or a.get("mode", "constant") != "constant":
        raise ValueError("Pad by anything but a constant")
    sides = _list(a.get("pads") if pads is None else pads)
    reordered = [side for axis in reversed(range(x.ndim)) for side in (sides[axis], sides[axis + x.ndim])]
    return F.pad(x, reordered, value=a.get("value", 0.0) if value is None else value.item())


def _resize(a: dict, x: Tensor, *given: Tensor | None) -> Tensor:
    """Inputs: (scales) in opset 10, (region, scales, sizes) from 11 on."""
    scales, sizes = given[0] if len(given) == 1 else given[1] if len(given) > 1 else a.get("scales"), None
    if len(given) > 2 and given[2] is not None:
        sizes = _list(given[2])
    else:
        sizes = [math.floor(n * s) for n, s in zip(x.shape, _list(scales), strict=True)]
    if sizes[:2] != list(x.shape[:2]) or len(sizes) != 4:
        raise ValueError(f"Resize of {list(x.shape)} to {sizes}")
    old = a.get("coordinate_transformation_mode", "half_pixel" if len(given) > 1 else "asymmetric")
    if a.get("mode", "nearest") == "linear" and old in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, sizes[2:], mode="bilinear", align_corners=old == "align_corners")
    if a.get("mode", "nearest") != "nearest" or old not in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
        raise ValueError(f"Resize by {a.get('mode')}, {old}")
    rounding = a.get("nearest_mode", "round_prefer_floor" if len(given) > 1 else "floor")
    for axis in (2, 3):
        x = x.index_select(axis, _nearest(x.shape[axis], sizes[axis], old, rounding).to(x.device))
    return x


def _nearest(old: int, new: int, coordinates: str, rounding: str) -> Tensor:
    centre = 0.0 if coordinates == "asymmetric" else 0.5
    place = (torch.arange(new, dtype=torch.float64) + centre) * old / new - centre
    rounded = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
    }[rounding](place)
    return rounded.long().clamp(0, old - 1)


def _reduce_mean(a: dict, x: Tensor, axes: Tensor | None = None) -> Tensor:
    wanted = _list(a.get("axes") if axes is None else axes)
    return x.mean(dim=tuple(wanted) or tuple(range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))


def _div(a: dict, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": lambda a, x: x.abs(),
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *x: torch.cat(x, dim=a["axis"]),
    "Conv": _conv,
    "Div": _div,
    "Dropout": lambda a, x, *_: x,
    "Exp": lambda a, x: x.exp(),
    "Flatten": _flatten,
    "Floor": lambda a, x: x.floor(),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean(dim=(2, 3), keepdim=True),
    "HardSigmoid": lambda a, x: (x * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, x: F.hardswish(x),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": lambda a, x, y: x**y,
    "ReduceMean": _reduce_mean,
    "Relu": lambda a, x: F.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda a, x: torch.tensor(list(x.shape)[a.get("start", 0) : a.get("end")], dtype=torch.int64),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(dim=a.get("axis", -1)),
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: x.tanh(),
    "Transpose": lambda a, x: x.permute(a.get("perm", list(reversed(range(x.ndim))))),
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}

IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, x, y: x.add_(y) if x.shape == y.shape else x + y,
    "Clip": _clip_in_place,
    "Relu": lambda a, x: x.relu_(),
}
"""The same, written into their first input."""
