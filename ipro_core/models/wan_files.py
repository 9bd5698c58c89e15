"""Wan's networks as files: which model a file holds, every one of its keys accounted for, in and out.

What is read: official (ComfyUI's) or diffusers' names; bf16, fp16, fp32; fp8 with or without scales
(`scaled_fp8` with `.scale_weight`, or `.weight_scale` with `.comfy_quant` or `_quantization_metadata`); int8
with scales, rotated or not; GGUF as ComfyUI-GGUF has it; diffusers' and the authors' folders.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ..files import write_atomically
from .containers import FLOATS, Entry, open_container
from .frozen import FrozenLinear, StoredWeight
from .wan_formats import (
    ADVICE,
    LINEARS,
    NOTES,
    ROUNDED,
    SCALES,
    check_types,
    formats,
    in_format,
    named,
    official_names,
    refuse_foreign,
    refuse_unread,
)
from .wan_keys import to_official

_HEAD_DIM = 128
"""Of every Wan that was released."""
_FLOAT32 = re.compile(r"time_embedding\.|(.+\.)?modulation$|blocks\.\d+\.norm3\.|img_emb\.proj\.[04]\.")
"""What the authors' code, and diffusers', keep in float32 beside bfloat16 linears."""
_EXPERT = re.compile(r"(high|low)[-_ ]?noise|(?<![a-z])(high|low)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class WanFile:
    """The header of one file or folder: nothing is read but names, shapes, types and formats."""

    path: Path
    kind: str
    """"I2V-A14B high", "I2V-A14B low", "I2V-A14B" (no word of which expert), "TI2V-5B", "2.1 I2V", "T2V-14B"
    or "T2V-1.3B"; the nearest of them for a network that was never released."""
    tensors: Mapping[str, Entry]
    """By official name, scales and notes left out."""
    scales: Mapping[str, Entry]
    """Of the weights that have one, by the weight's official name."""
    rotated: Mapping[str, int]
    """ConvRot's group of inputs, by the weight's official name."""
    dtype: torch.dtype
    """What the network computes in by default: its linears' type; bfloat16 if those are quantised."""
    ignored: Mapping[str, str]
    """The keys that are not used, and why."""
    metadata: Mapping[str, str]

    @property
    def family(self) -> str:
        """The kind without the word of which expert."""
        return self.kind.removesuffix(" high").removesuffix(" low")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By official name."""
        return {name: entry.shape for name, entry in self.tensors.items()}

    def is_quantised(self, name: str) -> bool:
        """Whether the tensor is stored in fp8, int8 or GGUF's blocks, or has a scale."""
        return self.tensors[name].type not in FLOATS or name in self.scales

    def config(self, num_heads: int | None = None) -> dict[str, Any]:
        """The arguments of diffusers' WanTransformer3DModel.

        Args:
            num_heads: for networks that were not released, whose heads are not 128 wide; the file's own
                `num_heads` metadata serves as well.
        """
        shapes = self.shapes
        dim, in_channels, *patch_size = shapes["patch_embedding.weight"]
        heads = num_heads or int(self.metadata.get("num_heads", 0)) or dim // _HEAD_DIM
        if heads < 1 or dim % heads:
            raise ValueError(
                f"{self.path.name} is {dim} wide, which {heads} heads do not divide: give num_heads."
            )
        with_image = "img_emb.proj.1.weight" in shapes
        return {
            "patch_size": tuple(patch_size),
            "num_attention_heads": heads,
            "attention_head_dim": dim // heads,
            "in_channels": in_channels,
            "out_channels": shapes["head.head.weight"][0] // prod(patch_size),
            "text_dim": shapes["text_embedding.0.weight"][1],
            "freq_dim": shapes["time_embedding.0.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "num_layers": 1
            + max(int(key.split(".")[1]) for key in shapes if re.match(r"blocks\.\d+\.", key)),
            "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
            "image_dim": shapes["img_emb.proj.1.weight"][1] if with_image else None,
            "added_kv_proj_dim": dim if with_image else None,
        }

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless the file holds exactly these tensors."""
        shapes = self.shapes
        missing = sorted(wanted.keys() - shapes.keys())
        unknown = sorted(shapes.keys() - wanted.keys())
        misshapen = sorted(key for key in wanted.keys() & shapes.keys() if wanted[key] != shapes[key])
        faults = {"lacks": missing, "has unknown": unknown, "has misshapen": misshapen}
        told = ", ".join(f"{word} {named(keys)}" for word, keys in faults.items() if keys)
        if told:
            raise ValueError(
                f"{self.path.name} looks like Wan {self.kind} but {told}: it is damaged or "
                f"another variant; {ADVICE}."
            )

    def weight(self, name: str) -> StoredWeight:
        """A tensor as the file stores it, mapped, as a matrix: (1, n) if it has one dimension."""
        entry, scale = self.tensors[name], self.scales.get(name)
        stored = entry.read()
        if entry.type in ROUNDED:
            stored = stored.view(ROUNDED[entry.type])  # early fp8 files say uint8
        by_rows = entry.gguf_type is None and stored.ndim > 1
        stored = stored.flatten(1) if by_rows else stored.reshape(-1, stored.shape[-1])
        numbers = None if scale is None else scale.read().float()
        if numbers is not None and numbers.numel() == 1:
            numbers = numbers.reshape(())
        return StoredWeight(stored, numbers, entry.gguf_type, self.rotated.get(name))


def open_wan_file(path: Path | str) -> WanFile:
    """Read a file's header, or those of a folder's shards, and decide what it holds.

    Raises:
        ValueError: the file is missing, damaged, a pickle, of a format that is not read, or not Wan's.
    """
    container = open_container(path)
    file = container.path.name
    noted = formats(container)
    entries, ignored = official_names(container)
    refuse_unread(
        file, {name: entry for name, entry in entries.items() if name.rpartition(".")[0] not in noted}
    )
    refuse_foreign(file, entries, container.metadata)
    tensors, scales, rotated = {}, {}, {}
    for name, entry in entries.items():
        layer, _, end = name.rpartition(".")
        if end in NOTES:
            ignored[name] = NOTES[end]
        elif end in SCALES:
            scales[f"{layer}.weight"] = entry
        elif end == "weight" and layer in noted:
            tensors[name], group = in_format(file, name, entry, noted[layer])
            rotated |= {name: group} if group else {}
        else:
            tensors[name] = entry
    check_types(file, tensors, scales)
    heads = container.config.get("num_attention_heads") or container.config.get("num_heads")
    return WanFile(
        container.path,
        _kind(container.path, tensors, container.metadata),
        tensors,
        scales,
        rotated,
        FLOATS.get(tensors["blocks.0.self_attn.q.weight"].type, torch.bfloat16),
        ignored,
        {**container.metadata, **({"num_heads": str(heads)} if heads else {})},
    )


@torch.no_grad()
def load_transformer(
    file: WanFile,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    num_heads: int | None = None,
) -> Any:
    """diffusers' WanTransformer3DModel with the file's own tensors, frozen, in evaluation mode.

    The blocks' quantised linears become `FrozenLinear`s over the file's bytes; quantised layers outside the
    blocks (under 2 % of a network) are dequantised, because diffusers asks them for their weights' type. On
    the CPU whatever needs no cast is a view of the mapped file.

    Args:
        dtype: of all that does not stay quantised. None: `file.dtype`, and float32 where the authors keep
            float32 if the file does too or is quantised.
        num_heads: see `WanFile.config`.

    Raises:
        ValueError: a tensor is missing, unknown, misshapen, or holds NaN or infinity.
    """
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel

    with torch.device("meta"):
        transformer = WanTransformer3DModel(**file.config(num_heads))
    wanted = transformer.state_dict()
    file.check({to_official(key): tuple(tensor.shape) for key, tensor in wanted.items()})
    for key in wanted:
        name = to_official(key)
        weight = file.weight(name).to(device)
        if not weight.is_finite():
            raise ValueError(
                f"{file.path.name} is damaged: {name} holds NaN or infinity; download or convert it again."
            )
        module_name, _, tensor_name = key.rpartition(".")
        module, shape = transformer.get_submodule(module_name), file.tensors[name].shape
        in_block = name.startswith("blocks.") and isinstance(module, nn.Linear) and tensor_name == "weight"
        if file.is_quantised(name) and in_block and weight.shape == shape:
            parent, _, child = module_name.rpartition(".")
            # Its bias is the next key.
            setattr(transformer.get_submodule(parent), child, FrozenLinear(weight, None, shape[1]))
        else:
            tensor = weight.dequantised(dtype or _own_dtype(file, name)).reshape(shape)
            frozen = isinstance(module, FrozenLinear)
            setattr(module, tensor_name, tensor if frozen else nn.Parameter(tensor, requires_grad=False))
    # The rotary tables are in no file and would stay on the meta device.
    rope = transformer.rope
    transformer.rope = WanRotaryPosEmbed(rope.attention_head_dim, rope.patch_size, rope.max_seq_len).to(
        device
    )
    return transformer.eval()


def save_wan_file(transformer: Any, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a diffusers WanTransformer3DModel, without adapters, under the official names.

    Its number of heads, which the shapes do not tell, goes into the metadata.
    """
    tensors = {
        to_official(key): tensor.detach().contiguous() for key, tensor in transformer.state_dict().items()
    }
    heads = {"num_heads": str(transformer.config.num_attention_heads)}
    write_atomically(path, save(tensors, metadata={"format": "pt", **heads, **(metadata or {})}))


def _own_dtype(file: WanFile, name: str) -> torch.dtype:
    """The type that a tensor which is not kept quantised has by default."""
    quantised = file.is_quantised("blocks.0.self_attn.q.weight")
    keeps = _FLOAT32.match(name) and (quantised or file.tensors[name].type == "F32")
    return torch.float32 if keeps else file.dtype


def _kind(path: Path, tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> str:
    """See `WanFile.kind`."""
    shapes = {name: entry.shape for name, entry in tensors.items()}
    family, expert = family_of(path.name, shapes), expert_of(path, metadata)
    return f"{family} {expert}" if family == "I2V-A14B" and expert else family


def family_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """See `WanFile.family`. Channels and the image embedding tell; text-to-video's two sizes, the width.

    Raises:
        ValueError: it is none of them; `name` is the network's in the sentence.
    """
    shape = shapes["patch_embedding.weight"]
    if len(shape) != 5 or any(len(shapes[f"{layer}.weight"]) != 2 for layer in LINEARS):
        raise ValueError(
            f"{name} is damaged: its patch_embedding, {shape}, or another layer has not the number of "
            "dimensions that Wan's has; convert or download it again."
        )
    dim, channels, *patch_size = shape
    out_channels = shapes["head.head.weight"][0] // prod(patch_size)
    if "img_emb.proj.1.weight" in shapes:
        return "2.1 I2V"
    if channels == 2 * out_channels + 4:  # noise, mask of 4, first frame
        return "I2V-A14B"
    if channels == out_channels == 48:
        return "TI2V-5B"
    if channels == out_channels:
        return "T2V-14B" if dim > 2048 else "T2V-1.3B"
    raise ValueError(
        f"{name} is a Wan network with {channels} channels in and {out_channels} out, which is no "
        f"image- or text-to-video network (36 and 16, 48 and 48, 16 and 16): {ADVICE}."
    )


def expert_of(path: Path, metadata: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """Which of two, "high" or "low". Both have the same shapes: the nearest name that says one decides."""
    if path.is_dir() and path.name in ("transformer", "transformer_2"):
        return "low" if path.name == "transformer_2" else "high"
    for said in (path.name, path.parent.name, " ".join(metadata.values())):
        words = {(first or second).lower() for first, second in _EXPERT.findall(said)}
        if len(words) == 1:
            return words.pop()
    return None
