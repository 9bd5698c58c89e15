"""The adapters on one network: frozen ones beneath, which belong to v_ref, and at most one that is trained.

peft lays its LoRA layers around the linear ones; their forward pass is ours. peft's own keeps activations
in float32 for a float32 adapter, 4.6 GB for one block of A14B at 81 frames; here the adapter's weights are
float32 and the low-rank product is taken in the activation's type.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear

from .frozen import FrozenLinear, product
from .lora import LowRank

TRAINED = "ipro"
"""The name of the adapter that is trained; the others are frozen0, frozen1, …"""


class Adapters:
    """LoRA layers on the linear layers of a network, each adapter on some of them."""

    def __init__(
        self, network: nn.Module, linears: Mapping[str, nn.Module], to_network: Callable[[str], str]
    ):
        """linears: by the names that adapters use; to_network: such a name to the module's in the network."""
        self._network, self._linears, self._to_network = network, linears, to_network
        self.layers: dict[str, dict[str, Any]] = {}
        """Adapter → layer's name → peft's LoRA layer."""
        self._active: list[str] = []  # this very list is in every LoRA layer: one change switches them all

    def place(
        self, layers: Mapping[str, LowRank], *, frozen: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        """Replace the trained adapter by this one; or, if frozen, lay this one beneath it for good.

        The weights of what is trained are float32 at least: bfloat16 loses steps as small as training takes.
        """
        from peft import LoraConfig, inject_adapter_in_model

        adapter = f"frozen{len(self.frozen)}" if frozen else TRAINED
        if not frozen:
            self._remove_trained()
        ranks = {self._to_network(name): layer.down_RI.shape[0] for name, layer in layers.items()}
        config = LoraConfig(r=max(ranks.values()), target_modules=list(ranks), rank_pattern=ranks)
        config._register_custom_module({FrozenLinear: _lean_lora(), nn.Linear: _lean_lora()})
        vars(self._network).pop("peft_config", None)  # peft warns of a second adapter; we keep the books
        inject_adapter_in_model(config, self._network, adapter, low_cpu_mem_usage=True)
        placed: dict[str, Any] = {
            name: self._network.get_submodule(self._to_network(name)) for name in layers
        }
        self.layers[adapter] = placed
        for name, given in layers.items():
            layer, base = placed[name], getattr(self._linears[name], "weight", given.down_RI)
            layer.scaling[adapter] = given.alpha / given.down_RI.shape[0]
            for half, weight in (("lora_A", given.down_RI), ("lora_B", given.up_OR)):
                wide = torch.promote_types(torch.promote_types(base.dtype, weight.dtype), torch.float32)
                weight = weight.to(device, weight.dtype if frozen else wide, copy=True)
                getattr(layer, half)[adapter].weight = Parameter(weight, requires_grad=not frozen)
        self._active[:] = self.layers
        for name, placed in self.layers.items():  # peft sets both as it goes
            for layer in placed.values():
                layer._active_adapter = self._active
                for half in (layer.lora_A, layer.lora_B):
                    half[name].requires_grad_(name == TRAINED)

    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by ComfyUI's name without its prefix: `blocks.0.self_attn.q.lora_A.weight`."""
        return {
            f"{name}.{half}.weight": getattr(layer, half)[TRAINED].weight
            for name, layer in self.layers.get(TRAINED, {}).items()
            for half in ("lora_A", "lora_B")
        }

    def trained(self) -> dict[str, LowRank]:
        """The trained adapter by layer; its tensors are the live ones."""
        return {
            name: LowRank(
                layer.lora_A[TRAINED].weight.detach(),
                layer.lora_B[TRAINED].weight.detach(),
                layer.scaling[TRAINED] * layer.r[TRAINED],
            )
            for name, layer in self.layers.get(TRAINED, {}).items()
        }

    @property
    def active(self) -> tuple[str, ...]:
        """The adapters that are on."""
        return tuple(self._active)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The adapters of v_ref."""
        return tuple(name for name in self.layers if name != TRAINED)

    @contextmanager
    def only(self, adapters: Sequence[str]) -> Iterator[None]:
        """Switch to these adapters, and back whatever happens.

        peft's own switches flip requires_grad, turn frozen adapters off as well, and visit every layer.
        """
        before = self.active
        self._active[:] = adapters
        try:
            yield
        finally:
            self._active[:] = before

    def _remove_trained(self) -> None:
        for layer in self.layers.pop(TRAINED, {}).values():
            layer._active_adapter = list(self.frozen)  # peft changes this list
            layer.delete_adapter(TRAINED)


def linear_layer(layer: nn.Module, x: Tensor, read: bool) -> Tensor:
    """`product` of a linear layer with or without adapters around it."""
    return layer(x, read) if hasattr(layer, "base_layer") else product(layer, x, read)


@cache
def _lean_lora() -> type[nn.Module]:
    from peft.tuners.lora import Linear

    class LeanLora(Linear):
        """y = base(x) + the active adapters' scaling · up(down(x)), all in x's type."""

        def _get_in_out_features(self, module: Any) -> tuple[int, int]:
            return module.in_features, module.out_features  # peft's own warns of layers it does not know

        def forward(self, x: Tensor, read: bool = True) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            """read: whether y's numbers are wanted, and not its gradient alone (`product`)."""
            y, halves = product(self.base_layer, x, read), (self.lora_A, self.lora_B)
            for adapter in self.active_adapters:
                if adapter in self.lora_A:
                    down, up = (cast(Tensor, half[adapter].weight).to(x.dtype) for half in halves)
                    y = y + linear(linear(x, down), up) * self.scaling[adapter]
            return y

    return LeanLora
