"""What tells a MODEL, VAE or CLIP of the graph from any other, the same at every start of the host.

A MODEL does not know its file, and 14 GB take a minute to read. So each tensor is told by its name, type and
shape and by a few KiB of its bytes, spread evenly: another training changes all of a tensor. What the graph
has laid on it counts as well: LoRAs with their tensors, the schedule's shift, options. A function counts by
its name and the plain values it was made with.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ._exact_lora import KEY

PIECES, PIECE = 16, 256
"""So many pieces of so many bytes of a tensor."""
PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype)


def identity(patcher: Any, *more: Any) -> str:
    """Of what a ModelPatcher holds, whether or not it is loaded; with whatever else belongs to it."""
    model = patcher.model
    told = {
        "kind": type(model).__name__,
        "tensors": _tensors(patcher, getattr(model, "diffusion_model", model)),
        "patches": patcher.patches,
        "objects": {name: part for name, part in patcher.object_patches.items() if name != "model_sampling"},
        "sampling": patcher.get_model_object("model_sampling") if hasattr(model, "model_sampling") else None,
        "options": patcher.model_options,
        "wrappers": patcher.wrappers,
        "more": more,
    }
    digest = hashlib.sha256()
    for piece in _spelt(told):
        digest.update(piece)
    return digest.hexdigest()


def _tensors(patcher: Any, network: nn.Module) -> dict[str, Tensor]:
    """As they were loaded: the host keeps aside what it has merged LoRAs into."""
    prefix = "" if network is patcher.model else "diffusion_model."
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    kept = {name: patcher.backup.get(f"{prefix}{name}") for name in tensors}
    return {name: getattr(kept[name], "weight", tensor) for name, tensor in tensors.items()}


def _spelt(value: Any) -> Iterator[bytes]:
    """All that counts of a value, in bytes."""
    if isinstance(value, PLAIN):
        # Our own keys are numbered by when they were made.
        yield b"ours" if str(value).startswith(KEY) else repr(value).encode()
    elif isinstance(value, Tensor):
        yield from _sampled(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _spelt([str(key), value[key]])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        for part in value:
            yield from _spelt(part)
    elif isinstance(value, set | frozenset):
        yield from _spelt(sorted(map(str, value)))
    elif isinstance(value, partial):
        yield from _spelt([value.func, value.args, value.keywords])
    elif isinstance(value, FunctionType | MethodType):
        made_with = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        yield from _spelt(
            [value.__qualname__, [held for held in made_with if isinstance(held, (*PLAIN, Tensor))]]
        )
    else:
        yield type(value).__qualname__.encode()
        yield from _spelt(list(_held(value)))


def _held(value: Any) -> Iterator[Any]:
    """Of an object: a LoRA's tensors, a schedule's settings."""
    yield getattr(value, "weights", None)
    settings = vars(value).items() if hasattr(value, "__dict__") else ()
    yield {name: part for name, part in settings if isinstance(part, bool | int | float | str)}


def _sampled(tensor: Tensor) -> Iterator[bytes]:
    yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    if hasattr(tensor, "__tensor_flatten__"):  # quantised: numbers and scales
        inner: Any = tensor.data
        names, _ = inner.__tensor_flatten__()
        yield from _spelt({name: getattr(inner, name) for name in names})
        return
    bytes_N = tensor.detach().as_subclass(Tensor).contiguous().flatten().view(torch.uint8)
    if len(bytes_N) > PIECES * PIECE:
        bytes_N = bytes_N.as_strided((PIECES, PIECE), ((len(bytes_N) - PIECE) // (PIECES - 1), 1))
    yield bytes_N.cpu().numpy().tobytes()
