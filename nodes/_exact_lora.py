"""LoRA beside the host's layers instead of in their weights, and only in a range of steps.

y = W x + strength · alpha / rank · up(down(x)). The stock loader adds the product to W and rounds the sum to
W's type: to fp8 that costs more than a small LoRA does. Here W is not touched, whatever its kind.

The layers get forward hooks, which many LoRAs can share in any order, when the host prepares the model
(`set_injections`), and lose them when it lets go; a wrapper around each pass tells whether its noise level
lies in the range. The wrapper asks the model's own schedule, so it does not matter where in the graph
ModelSamplingSD3 stands, or how KSamplerAdvanced cuts the schedule in two.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import comfy.ldm.wan.model
import comfy.samplers
import torch
from comfy.patcher_extension import PatcherInjection, WrappersMP
from torch import Tensor, nn
from torch.nn.functional import linear

from ..ipro_core.files import fingerprint
from ..ipro_core.models.lora import import_lora, lora_tensors
from ..ipro_core.models.lora_keys import LowRank
from ..ipro_core.sampling.flow import shifted_sigmas

KEY, _numbers = "ipro_lora_", count()
_on: dict[str, bool] = {}
"""Whether each LoRA that lies on a MODEL is on in the pass that runs, or ran last."""


@contextmanager
def as_it_was(on: Mapping[str, bool]) -> Iterator[None]:
    """For what runs again for its gradient: the LoRAs that were on the first time (`now()`)."""
    before = dict(_on)
    _on.update(on)
    try:
        yield
    finally:
        _on.update(before)


def now() -> dict[str, bool]:
    return dict(_on)


class StepRange(NamedTuple):
    """Steps first, first + 1, … end − 1 of so many."""

    first: int
    end: int
    steps: int
    shift: float | None = None
    """Of their schedule; None: the model's own."""

    def holds(self, sigma: float, model_sampling: Any) -> bool:
        """Whether a pass at this noise level belongs to one of these steps of the model's schedule."""
        if self.shift is None:
            sigmas = comfy.samplers.calculate_sigmas(model_sampling, "simple", self.steps).tolist()
        else:
            sigmas = shifted_sigmas(self.steps, self.shift).tolist()
        # A step goes from its own level down to the next one's; a hair above its own is rounding.
        step = sum(level >= sigma * (1 - 1e-4) for level in sigmas[:-1]) - 1
        return self.first <= max(step, 0) < self.end


class HostLayers:
    """The layers of a host MODEL as the core's LoRA files see them (`AdaptedModel`)."""

    def __init__(self, patcher: Any):
        self.network = network_of(patcher)
        self.linears: dict[str, Any] = {
            name: module
            for name, module in self.network.named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }
        """By official layer name, which is the host's."""
        self.path = Path(type(patcher.model).__name__)  # a MODEL does not know its file
        self.base_sha256 = ""
        self.layers: dict[str, LowRank] = {}

    def adapter(self) -> dict[str, LowRank]:
        return self.layers

    def place_adapter(self, layers: Mapping[str, LowRank], *, frozen: bool = False) -> None:
        assert not frozen
        self.layers = dict(layers)

    def frozen_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in self.network.named_parameters()
            if name.rpartition(".")[2] in ("weight", "bias", "modulation")  # not a quantised layer's scales
        }
        return shapes | {
            f"{name}.weight": (module.out_features, module.in_features)
            for name, module in self.linears.items()
        }

    def change_frozen(self, differences: Mapping[str, Tensor]) -> None:
        raise AssertionError("only low rank is laid beside a layer")


def network_of(patcher: Any) -> Any:
    """Wan's network in a MODEL.

    Raises:
        ValueError: it is another model's.
    """
    network = getattr(patcher.model, "diffusion_model", None)
    if type(network) is not comfy.ldm.wan.model.WanModel:
        raise ValueError(
            f"This MODEL is {type(network).__name__}, and IPRO works with Wan 2.1 and 2.2 (text to video, "
            "image to video, TI2V): load one of these."
        )
    return network


def apply_lora(patcher: Any, path: Path, strength: float, steps: StepRange) -> Any:
    """A clone of the MODEL with the file's low-rank updates beside its layers; the MODEL is not changed.

    Raises:
        ValueError: the file is damaged, of another model, or does more than low-rank updates.
    """
    host = HostLayers(patcher)
    import_lora(path, host)
    return with_layers(patcher, host.layers, strength, steps)


def with_layers(patcher: Any, layers: Mapping[str, LowRank], strength: float, steps: StepRange) -> Any:
    """`apply_lora` of an adapter that is in memory."""
    clone, key, held = patcher.clone(), f"{KEY}{next(_numbers):09d}", list[Any]()

    def inject(patcher: Any) -> None:
        with torch.inference_mode(False):  # a training may go through it
            there = {
                name: LowRank(
                    layer.down_RI.detach().to(patcher.load_device, copy=True),
                    layer.up_OR.detach().to(patcher.load_device, copy=True),
                    layer.alpha,
                )
                for name, layer in layers.items()
            }
        hooks = hooked(network_of(patcher), there, strength, key)
        hooks.__enter__()
        held.append(hooks)

    def eject(patcher: Any) -> None:
        while held:
            held.pop().__exit__(None, None, None)

    def in_range(executor: Any, x: Tensor, sigma: Tensor, *args: Any, **keywords: Any) -> Tensor:
        _on[key] = steps.holds(float(sigma.max()), executor.class_obj.model_sampling)
        return executor(x, sigma, *args, **keywords)

    # For whoever asks what lies on the MODEL: injections do not tell.
    clone.model_options[key] = [fingerprint(lora_tensors(layers)), strength, *steps]
    clone.set_injections(key, [PatcherInjection(inject=inject, eject=eject)])
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, in_range)
    return clone


@contextmanager
def hooked(
    network: nn.Module, layers: Mapping[str, LowRank], strength: float, key: str = ""
) -> Iterator[None]:
    """Within, each layer's output has its low-rank update added; with a key, where that is on."""
    handles, unfolded = [], []
    # Of 0.33's int8 layers the second of a feed-forward is folded into a kernel, and never called.
    for block in network.modules() if any(name.endswith("ffn.2") for name in layers) else ():
        if isinstance(block, nn.Sequential) and type(block) is not nn.Sequential:
            block.forward = partial(nn.Sequential.forward, block)
            unfolded.append(block)
    for name, layer in layers.items():
        add = partial(_add, layer=layer, scale=strength * layer.alpha / len(layer.down_RI), key=key)
        handles.append(network.get_submodule(name).register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in unfolded:
            vars(block).pop("forward", None)


def _add(
    module: nn.Module, inputs: tuple[Tensor], y: Tensor, *, layer: LowRank, scale: float, key: str
) -> Tensor:
    if key and not _on.get(key):
        return y
    x = inputs[0]
    down_RI, up_OR = (half.to(x.device, x.dtype) for half in (layer.down_RI, layer.up_OR))
    return y + linear(linear(x, down_RI), up_OR) * scale
