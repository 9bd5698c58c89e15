"""Whether a MODEL of the graph can be tuned: told in a sentence, before clips are prepared for hours."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ipro_core.models.condition import WanCondition
from ._exact_lora import HostLayers
from ._host_model import HostModel


def refuse_untunable(patcher: Any) -> None:
    """Raise ValueError where no gradient would come back."""
    compiled = [key for part in patcher.wrappers.values() for key in part if key == "torch.compile"]
    compiled += [
        name for name, part in patcher.object_patches.items() if type(part).__name__ == "OptimizedModule"
    ]
    if compiled:  # blocks are to be run one by one, and hooked
        raise ValueError(_sentence("torch.compile is laid on it"))
    # Nobody knows whether another pack's layers have a backward; the host's own have.
    kinds = {type(layer).__module__ for layer in HostLayers(patcher).linears.values()}
    if not all(kind.startswith(("comfy.", "torch.")) for kind in kinds):
        try_gradient(HostModel(patcher))


def try_gradient(model: HostModel) -> HostModel:
    """One pass of one token, forwards and backwards; the model, with an adapter of rank 1.

    Raises:
        ValueError: something in it has no backward.
    """
    network, cut = model.network, list[str]()
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        model.new_adapter(1)
        x = torch.zeros(1, network.out_dim, 1, 2, 2, device=model.device, requires_grad=True)
        image = x.new_zeros(1, network.in_dim - network.out_dim, 1, 2, 2)
        clip = x.new_zeros(1, 257, 1280) if network.model_type == "i2v" else None
        condition = WanCondition(x.new_zeros(1, 1, network.text_dim), image if image.shape[1] else None, clip)
        for name, layer in model.linears.items():
            stack.callback(layer.register_forward_hook(partial(_note_cut, cut, name)).remove)
        try:
            v = model.velocity(x, 0.5, condition)
            torch.autograd.grad(v.sum(), [x, *model.adapter_parameters().values()])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as reason:  # what has no backward says so in many ways
            raise ValueError(_sentence(str(reason).splitlines()[0])) from reason
    if cut:
        raise ValueError(_sentence(f"no gradient goes through {cut[0]}"))
    return model


def _note_cut(cut: list[str], name: str, layer: Any, inputs: tuple[Tensor], y: Tensor) -> None:
    """A kernel that autograd does not know gives a result without a gradient, and no error."""
    if inputs[0].requires_grad and not y.requires_grad:
        cut.append(name)


def _sentence(reason: str) -> str:
    return (
        f"This MODEL cannot be tuned where it is ({reason}): take IPRO · Load Wan Expert for its file, or "
        "the host's own Load Diffusion Model with nothing of that kind laid on it."
    )
