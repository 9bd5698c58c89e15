"""Wan's networks as safetensors files: what one holds, the configuration its shapes tell, in and out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import write_atomically
from .wan_keys import PREFIXES, to_diffusers, to_official

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_HEAD_DIM = 128
"""Of every Wan that was released."""
_ADVICE = "choose a Wan 2.2 network in bf16, fp16 or fp32 as .safetensors"


@dataclass(frozen=True)
class WanFile:
    """The header of one file: nothing is read but names, shapes and types."""

    path: Path
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    """By official name."""
    dtype: torch.dtype
    """Of the attention's weights."""
    metadata: Mapping[str, str]

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
        }

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless the file holds exactly these tensors."""
        missing = sorted(wanted.keys() - self.shapes.keys())
        unknown = sorted(self.shapes.keys() - wanted.keys())
        misshapen = [key for key in wanted.keys() & self.shapes.keys() if wanted[key] != self.shapes[key]]
        faults = {"lacks": missing, "has unknown": unknown, "has misshapen": sorted(misshapen)}
        told = ", ".join(f"{word} {_named(keys)}" for word, keys in faults.items() if keys)
        if told:
            raise ValueError(f"{self.path.name} is no Wan 2.2 network: it {told}; {_ADVICE}.")

    def read(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights by diffusers' names."""
        with safe_open(str(self.path), framework="pt") as file:
            return {
                to_diffusers(name): file.get_tensor(self.prefix + name).to(device, dtype)
                for name in self.shapes
            }


def open_wan_file(path: Path | str) -> WanFile:
    """Read a file's header.

    Raises:
        ValueError: the file is missing, damaged, quantised, or not Wan's.
    """
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        raise ValueError(f"{path.name} is a GGUF file, which is not read yet: {_ADVICE}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            keys, metadata = list(file.keys()), file.metadata() or {}
            slices = {key: file.get_slice(key) for key in keys}
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            dtypes = {key: part.get_dtype() for key, part in slices.items()}
    except FileNotFoundError:
        raise ValueError(f"There is no video model at {path}: {_ADVICE}.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a video model ({error}): {_ADVICE}.") from None

    quantised = next((key for key in keys if dtypes[key] not in _DTYPES or _is_scale(key)), None)
    if quantised is not None:
        raise ValueError(
            f"{path.name} is quantised ({quantised}: {dtypes[quantised]}), which is not read yet: {_ADVICE}."
        )
    prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in keys)), "")
    names = {key.removeprefix(prefix): key for key in keys}
    if "img_emb.proj.0.weight" in names:
        raise ValueError(
            f"{path.name} is Wan 2.1 image-to-video, which wants CLIP's image embedding: {_ADVICE}."
        )
    needed = ("patch_embedding", "head.head", "text_embedding.0", "time_embedding.0", "blocks.0.ffn.0")
    missing = [f"{name}.weight" for name in needed if f"{name}.weight" not in names]
    if missing or "blocks.0.self_attn.q.weight" not in names:
        raise ValueError(f"{path.name} is no Wan 2.2 network: it lacks {_named(missing)}; {_ADVICE}.")
    dtype = _DTYPES[dtypes[names["blocks.0.self_attn.q.weight"]]]
    return WanFile(path, prefix, {name: shapes[key] for name, key in names.items()}, dtype, metadata)


def save_wan_file(transformer: Any, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a diffusers WanTransformer3DModel, without adapters, under the official names.

    Its number of heads, which the shapes do not tell, goes into the metadata.
    """
    tensors = {
        to_official(key): tensor.detach().contiguous() for key, tensor in transformer.state_dict().items()
    }
    heads = {"num_heads": str(transformer.config.num_attention_heads)}
    write_atomically(path, save(tensors, metadata={"format": "pt", **heads, **(metadata or {})}))


def _is_scale(key: str) -> bool:
    return key.endswith((".scale_weight", ".weight_scale", ".scale_input", ".comfy_quant", "scaled_fp8"))


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
