"""How the host's own MODEL becomes one that autograd takes, on every version of the host (0.3.64 to 0.33)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.flux.math
import comfy.ldm.wan.model
import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.nn import Parameter

WITHOUT_BACKWARD = ("attention_sage", "attention3_sage", "attention_flash")


@contextmanager
def differentiable() -> Iterator[None]:
    """Within, the host's operations have a backward; after it they are as before.

    0.14 and later: `in_training` switches the rotary embedding and quantised layers. 0.8 to 0.13: the
    rotary embedding is a kernel without a backward, and nothing switches it. Before: nothing to do.
    """
    if hasattr(comfy.model_management, "in_training"):
        place, name, value = comfy.model_management, "in_training", True
    elif hasattr(comfy.ldm.flux.math, "_apply_rope1"):
        place, name, value = comfy.ldm.wan.model, "apply_rope1", rotated
    else:
        yield
        return
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def rotated(x: Tensor, frequencies: Tensor) -> Tensor:
    """The rotary embedding in plain torch: each pair of channels by its own 2 × 2 matrix."""
    pairs = x.to(frequencies.dtype).unflatten(-1, (-1, 1, 2))
    turned = frequencies[..., 0] * pairs[..., 0] + frequencies[..., 1] * pairs[..., 1]
    return turned.reshape(x.shape).type_as(x)


def attention_with_backward(function: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
    """For `optimized_attention_override`: the host's own choice, unless that has no backward."""
    chosen = attention_pytorch if function.__name__ in WITHOUT_BACKWARD else function
    return chosen(*args, **keywords)


def without_dynamic(patcher: Any) -> Any:
    """A clone of the MODEL whose weights lie in torch's own memory; since 0.12 they may stream by themselves.

    Raises:
        ValueError: its loader cannot load it so.
    """
    if not (hasattr(patcher, "is_dynamic") and patcher.is_dynamic()):
        return patcher.clone()
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            f"This MODEL's weights stream from its file, and its loader cannot load it otherwise ({error}): "
            "take the host's own Load Diffusion Model, or IPRO · Load Wan Expert."
        ) from error


@contextmanager
def plain(module: nn.Module) -> Iterator[None]:
    """Within, tensors on the same memory stand for the module's inference tensors; then those are back."""
    replaced = []
    try:
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, tensor in store.items():
                    if tensor is not None and tensor.is_inference():
                        replaced.append((store, name, tensor))
                        store[name] = plain_tensor(tensor)
        yield
    finally:
        for store, name, tensor in replaced:
            store[name] = tensor


def plain_tensor(tensor: Tensor) -> Any:
    """The same numbers in the same memory, but not an inference tensor."""
    if hasattr(tensor, "__tensor_flatten__") and hasattr(type(tensor), "__tensor_unflatten__"):  # quantised
        inner: Any = tensor.data if isinstance(tensor, Parameter) else tensor
        names, context = inner.__tensor_flatten__()
        parts = {name: plain_tensor(getattr(inner, name)) for name in names}
        return type(inner).__tensor_unflatten__(parts, context, inner.shape, inner.stride())
    bare = tensor.as_subclass(Tensor) if type(tensor) is not Parameter else tensor.data
    with torch.inference_mode(False):
        same = torch.empty(0, dtype=bare.dtype, device=bare.device)
        same.set_(bare.untyped_storage(), bare.storage_offset(), bare.shape, bare.stride())
    if type(tensor) in (Tensor, Parameter):
        return same
    whole = same.as_subclass(type(tensor))  # GGUF: the type of the blocks is an attribute
    vars(whole).update(vars(tensor))
    return whole
