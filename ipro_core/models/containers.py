"""Files that hold tensors: safetensors, folders of shards, GGUF. Mapped, not read; never unpickled.

A tensor is a view of the mapped file: its pages come into memory when they are first used, and belong to the
system's file cache. safetensors maps privately, so writing to such a tensor changes the copy in memory only;
GGUF is mapped the same way.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_GGUF_FLOATS = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """One tensor as a header tells it."""

    shape: tuple[int, ...]
    """Of what is meant: GGUF's blocks count as the numbers they stand for."""
    type: str
    """safetensors' name (BF16, F8_E4M3, I8, ...) or GGUF's (F16, Q4_K, ...)."""
    read: Callable[[], Tensor]
    """A view of the mapped file; GGUF's blocks as uint8 (rows, bytes of a row)."""
    nbytes: int
    """In the file."""
    gguf_type: int | None = None
    """GGUF's number for blocks; None: plain numbers."""


@dataclass(frozen=True)
class Container:
    """The headers of a file, or of all the files of a folder."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    """config.json beside the shards; empty for a single file."""

    def read(self) -> dict[str, Tensor]:
        """All tensors, as they are stored.

        Raises:
            ValueError: one holds NaN or infinity.
        """
        tensors = {key: entry.read() for key, entry in self.entries.items()}
        for key, tensor in tensors.items():
            wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
            if not wide.isfinite().all():
                raise ValueError(
                    f"{self.path.name} is damaged, {key} is not finite: download or export it again."
                )
        return tensors


def open_container(
    path: Path | str,
    what: str = "video model",
    advice: str = "choose a .safetensors or .gguf file",
) -> Container:
    """Read the headers; what the file should be, and which to choose, is told where it cannot be read.

    Raises:
        ValueError: the file is missing, damaged or a pickle, or the folder lacks a shard.
    """
    path = Path(path)
    if path.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{path.name} is a pickle, which can run any code when it is opened and is never read here: "
            f"{advice}."
        )
    if not path.exists():
        raise ValueError(f"There is no {what} at {path}: {advice}.")
    if path.is_dir():
        return _open_folder(path, what)
    if _SHARD.search(path.name):
        raise ValueError(f"{path.name} is one of several parts: choose the folder that holds them all.")
    if path.suffix.lower() == ".gguf":
        return _open_gguf(path)
    return Container(path, *_open_safetensors(path, what), {})


def _open_safetensors(path: Path, what: str) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        file = safe_open(str(path), framework="pt")
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        headers = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be read as a {what} ({error}): it is damaged, cut short or of another "
            "kind; download it again."
        ) from None
    entries = {
        key: Entry(shape, type, lambda key=key: file.get_tensor(key), prod(shape) * _width(type))
        for key, (shape, type) in headers.items()
    }
    return entries, dict(file.metadata() or {})


def _width(type: str) -> int:
    """Bytes of one number: the digits of BF16, F8_E4M3, I64; BOOL has none."""
    bits = re.search(r"\d+", type)
    return max(int(bits[0]) // 8, 1) if bits else 1


def _open_folder(folder: Path, what: str) -> Container:
    """A folder as diffusers or the authors write it: config.json, weights in one file or with an index."""
    if (folder / "model_index.json").exists():
        parts = sorted(part.name for part in folder.glob("transformer*") if part.is_dir())
        raise ValueError(
            f"{folder.name} is a whole pipeline: choose one of its networks, {' or '.join(parts) or 'none'} "
            "(of two experts, transformer is the high-noise one and transformer_2 the low-noise one)."
        )
    config = folder / "config.json"
    indices, singles = sorted(folder.glob(f"*{_INDEX}")), sorted(folder.glob("*.safetensors"))
    try:
        told = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        index = json.loads(indices[0].read_text(encoding="utf-8")) if indices else {}
        shards = sorted(folder / name for name in set(index.get("weight_map", {}).values()))
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise ValueError(f"{folder.name} cannot be read: a .json file is damaged ({error}).") from None
    if not indices and len(singles) != 1:
        raise ValueError(
            f"{folder.name} holds {len(singles)} .safetensors files and no index: choose one file, or a "
            "folder as diffusers writes it."
        )
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for shard in shards or singles:
        if not shard.exists():
            raise ValueError(f"{folder.name} lacks {shard.name}, which its index names: download it again.")
        more, notes = _open_safetensors(shard, what)
        entries |= more
        metadata |= notes
    return Container(folder, entries, metadata, told)


def _open_gguf(path: Path) -> Container:
    from gguf import GGML_QUANT_SIZES, GGUFReader

    try:
        reader = GGUFReader(path, "c")
        metadata = {
            name: str(field.contents()) for name, field in reader.fields.items() if len(field.data) == 1
        }
        shapes = {
            name.removeprefix(_FLATTENED): tuple(map(int, field.contents()))
            for name, field in reader.fields.items()
            if name.startswith(_FLATTENED)
        }
    except (ValueError, IndexError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be read as GGUF ({error}): it is damaged or cut short; download it again."
        ) from None
    entries = {}
    for tensor in reader.tensors:
        # GGUF counts dimensions from the innermost; a flattened tensor's own shape stands in the metadata.
        shape = shapes.get(tensor.name, tuple(map(int, reversed(tensor.shape))))
        if prod(shape) != tensor.n_elements:
            raise ValueError(
                f"{path.name} is damaged: {tensor.name} has not {shape} numbers; download it again."
            )
        type, blocks = tensor.tensor_type.name, tensor.tensor_type in GGML_QUANT_SIZES
        plain = _GGUF_FLOATS.get(type)
        entries[tensor.name] = Entry(
            shape,
            type,
            lambda tensor=tensor, plain=plain, shape=shape: _gguf_tensor(tensor.data, plain, shape),
            int(tensor.n_bytes),
            int(tensor.tensor_type) if plain is None and blocks else None,
        )
    return Container(path, entries, metadata, {})


_FLATTENED = "comfy.gguf.orig_shape."


def _gguf_tensor(array: Any, plain: torch.dtype | None, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if plain is None else tensor.view(plain).reshape(shape)
