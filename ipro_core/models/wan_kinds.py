"""The released networks as headers without a file: for plans before a download, and for random weights."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .containers import Entry
from .wan_files import WanFile
from .wan_formats import FLOATS, ROUNDED
from .wan_keys import to_official

Storage = Literal["bf16", "fp8", "int8"]
"""Of the blocks' linear layers; all else is bfloat16."""

RELEASED: dict[str, dict[str, Any]] = {
    "I2V-A14B": {"in_channels": 36, "num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
    "T2V-14B": {"in_channels": 16, "num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
    "T2V-1.3B": {"in_channels": 16, "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    "TI2V-5B": {
        "in_channels": 48,
        "out_channels": 48,
        "num_attention_heads": 24,
        "num_layers": 30,
        "ffn_dim": 14336,
    },
}
"""What differs from diffusers' defaults; "I2V-A14B" is either expert."""


def released_file(
    kind: str, storage: Storage = "bf16", make: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None
) -> WanFile:
    """The header of a released network.

    Args:
        make: its tensors, from shape and type, for those who load it; None: nobody does.

    Raises:
        ValueError: no such kind.
    """
    if kind not in RELEASED:
        raise ValueError(f"{kind} is none of the released networks: choose {', '.join(RELEASED)}.")
    return header(RELEASED[kind], kind, storage, make)


def header(
    config: dict[str, Any],
    kind: str,
    storage: Storage = "bf16",
    make: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> WanFile:
    """The header of a network of that configuration (diffusers' arguments), as a file would have it."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    with torch.device("meta"):
        network: Any = WanTransformer3DModel(**config)
    names = {t: name for name, t in (FLOATS | ROUNDED).items()}
    rounded = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}.get(storage, dtype)
    tensors, scales = {}, {}
    for key, tensor in network.state_dict().items():
        name, module = to_official(key), network.get_submodule(key.rpartition(".")[0])
        in_block = isinstance(module, nn.Linear) and name.startswith("blocks.") and name.endswith(".weight")
        stored = rounded if in_block else dtype
        tensors[name] = _entry(tuple(tensor.shape), stored, names, make)
        if in_block and stored != dtype:
            scales[name] = _entry((), torch.float32, names, make)
    heads = {"num_heads": str(config["num_attention_heads"])}
    return WanFile(Path(f"{kind} {storage}"), kind, tensors, scales, {}, dtype, {}, heads)


def _entry(shape: tuple[int, ...], dtype: torch.dtype, names: dict[torch.dtype, str], make: Any) -> Entry:
    def read() -> Tensor:
        assert make is not None, "this header has no file"
        return make(shape, dtype)

    return Entry(shape, names[dtype], read, prod(shape) * dtype.itemsize)
