"""What tools call the tensors of a LoRA, and what those do to a network's weights.

    W' = W + alpha / rank · up · down            down (R, in), up (out, R)
    W' = W + diff,  b' = b + diff_b              whole differences: norms, biases
    W' = W + alpha / rank · (a₁ b₁) ∘ (a₂ b₂)    LoHa
    W' = W + alpha / rank · w₁ ⊗ w₂              LoKr

All that ComfyUI's loader takes for Wan but DoRA, GLoRA and OFT, which want the frozen weight itself; and,
besides, diffusers' and peft's names, of which ComfyUI loads nothing.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod

import torch
from torch import Tensor

from .wan_keys import to_diffusers

_UNREAD = (
    *("dora_scale", "set_weight", "reshape_weight", "lora_mid.weight", "oft_blocks", "hada_t1", "hada_t2"),
    *("lokr_t2", "a1.weight", "a2.weight", "b1.weight", "b2.weight"),
)
"""Parts that change what the rest of their layer means."""
_PART = re.compile(
    r"(?P<layer>.+)(?:"
    r"[._]lora[._](?:linear_layer\.)?(?P<half>A|B|down|up)(?:(?:\.\w+)?\.weight)?|"
    r"\.(?P<part>alpha|diff|diff_b|w_norm|b_norm|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?"
    rf"|{'|'.join(map(re.escape, _UNREAD))}))"
)
_PREFIX = re.compile(r"^(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.)+")
_PART_OF = {"A": "down", "B": "up", "w_norm": "diff", "b_norm": "diff_b"}
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = [
    (*w1, *w2)
    for w1, w2 in product(
        (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    )
]
_LORA = ("down", "up")
_KINDS = (("diff",), *_LOKR, _LOHA, _LORA)
"""What makes an update whole; of several in one layer ComfyUI applies the first of these alone."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """One layer's update: alpha / rank · up · down."""

    down_RI: Tensor
    up_OR: Tensor
    alpha: float


@dataclass(frozen=True, eq=False)
class LoraContent:
    """What a file does to one network."""

    layers: dict[str, LowRank] = field(default_factory=dict)
    """By official layer name; linear layers only."""
    differences: dict[str, Tensor] = field(default_factory=dict)
    """What is added as it is, by official tensor name, each of that tensor's shape."""
    unused: dict[str, str] = field(default_factory=dict)
    """The keys that do nothing, and why."""


def read_content(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], linears: Collection[str]
) -> LoraContent:
    """Sort a file's tensors by what they change.

    Args:
        shapes: of the network's tensors, by official name.
        linears: the layers that take a low-rank update as such.
    """
    content = LoraContent()
    for name, keys in _keys_by_tensor(tensors, shapes, content.unused).items():
        parts = {part: tensors[key] for part, key in keys.items()}
        layer, shape, reason = name.removesuffix(".weight"), shapes[name], "another part takes its place"
        kind = next((kind for kind in _KINDS if parts.keys() >= set(kind)), ())
        if any(part in _UNREAD for part in parts):
            kind, reason = (), "DoRA, GLoRA and OFT are not read"
        elif layer.endswith("modulation"):
            # Its loader takes the key, but its ModelPatcher skips parameters of modules with children.
            kind, reason = (), "ComfyUI does not apply it either"
        elif not kind:
            reason = "the rest of it is missing"
        elif kind == _LORA and layer in linears and (low_rank := _low_rank(parts, shape)):
            content.layers[layer] = low_rank
        elif (difference := _difference(kind, parts, shape)) is not None:
            content.differences[name] = difference
        else:
            given = " and ".join("×".join(map(str, parts[part].shape)) for part in kind)
            kind, reason = (), f"{given} for {'×'.join(map(str, shape))}"
        used = {*kind, "alpha"} if kind else set()
        content.unused.update({key: reason for part, key in keys.items() if part not in used})
    return content


def _keys_by_tensor(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], unused: dict[str, str]
) -> dict[str, dict[str, str]]:
    """Official tensor name → part → key of the file. What belongs nowhere goes to `unused`."""
    named = {alias: name for name in shapes for alias in _aliases(name)}
    found: dict[str, dict[str, str]] = {}
    for key in tensors:
        match = _PART.fullmatch(key)
        name = match and named.get(_PREFIX.sub("", match["layer"]))
        if match is None or name is None:
            unused[key] = "unknown" if match is None else "no such layer"
            continue
        part = _PART_OF.get(match["half"] or match["part"], match["half"] or match["part"])
        if part == "diff_b":
            name, part = name.removesuffix(".weight") + ".bias", "diff"
        if name not in shapes:
            unused[key] = "the layer has no bias"
        elif part in found.setdefault(name, {}):
            unused[key] = f"{found[name][part]} has its place"
        else:
            found[name][part] = key
    return found


def _aliases(tensor: str) -> tuple[str, ...]:
    """What a file may call it, after the prefixes."""
    name = tensor.removesuffix(".weight")
    flat = name.replace(".", "_")
    return name, to_diffusers(name), f"lora_unet_{flat}", f"lora_unet__{flat}"


def _low_rank(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> LowRank | None:
    """The update of a linear layer as it is; None: the halves do not fit it."""
    down, up = parts["down"], parts["up"]
    if min(down.ndim, up.ndim) < 2:
        return None
    down_RI, up_OR = down.flatten(1), up.flatten(1)
    rank = len(down_RI)
    if (*up_OR.shape, *down_RI.shape) != (shape[0], rank, rank, shape[1]):
        return None
    return LowRank(down_RI, up_OR, parts["alpha"].item() if "alpha" in parts else rank)


def _difference(kind: tuple[str, ...], parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """What is added to a tensor of that shape, in float32 at least where it must be computed."""
    if kind == ("diff",):
        return parts["diff"] if tuple(parts["diff"].shape) == shape else None
    if any(parts[part].ndim < 2 for part in kind):
        return None
    # A convolution's kernel counts as inputs.
    m = {part: _wide(parts[part]).flatten(1) for part in kind}
    try:
        if kind == _LORA:
            matrix, rank = m["up"] @ m["down"], len(m["down"])
        elif kind == _LOHA:
            rank = len(m["hada_w1_b"])
            matrix = (m["hada_w1_a"] @ m["hada_w1_b"]) * (m["hada_w2_a"] @ m["hada_w2_b"])
        else:
            w1, w2 = (m[w] if w in m else m[f"{w}_a"] @ m[f"{w}_b"] for w in ("lokr_w1", "lokr_w2"))
            rank = next((len(m[f"{w}_b"]) for w in ("lokr_w2", "lokr_w1") if f"{w}_b" in m), None)
            matrix = torch.kron(w1, w2)
    except RuntimeError:  # the parts do not fit one another
        return None
    if tuple(matrix.shape) != (shape[0], prod(shape[1:])):
        return None
    if "alpha" in parts and rank:
        matrix = matrix * (parts["alpha"].item() / rank)
    return matrix.reshape(shape)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
