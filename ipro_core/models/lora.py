"""LoRA files out and in: written under ComfyUI's names, read under everybody's.

W' = W + alpha / rank · up · down        down (R, in)  = lora_A = lora_down
                                         up   (out, R) = lora_B = lora_up
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import Linear

from ..files import write_atomically
from .wan_keys import to_diffusers

_HALF = re.compile(
    r"(?P<layer>.+)\.(?P<half>lora_A|lora_B|lora_down|lora_up)(\.\w+)?\.weight|(?P<scaled>.+)\.alpha"
)
_PREFIX = re.compile(r"^(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.)+")


@dataclass(frozen=True, eq=False)
class LowRank:
    """One layer's update: alpha / rank · up · down."""

    down_RI: Tensor
    up_OR: Tensor
    alpha: float


class AdaptedModel(Protocol):
    """What a model must offer to have its adapter exported and imported."""

    linears: dict[str, Linear]

    @property
    def path(self) -> Path: ...
    @property
    def base_sha256(self) -> str: ...
    def adapter(self) -> dict[str, LowRank]: ...
    def place_adapter(self, layers: Mapping[str, LowRank], *, frozen: bool = False) -> None: ...


def export_lora(model: AdaptedModel, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's trained adapter as `diffusion_model.blocks.0.self_attn.q.lora_A.weight` and so on.

    ComfyUI loads nothing, without a word, from diffusers' or peft's names. The base file's name and SHA-256
    are noted beside what `metadata` says.

    Raises:
        OSError: the file cannot be written; an older one stays whole.
    """
    tensors = {}
    for name, layer in model.adapter().items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = layer.down_RI.cpu().contiguous()
        tensors[f"diffusion_model.{name}.lora_B.weight"] = layer.up_OR.cpu().contiguous()
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    base = {"ipro.base": model.path.name, "ipro.base_sha256": model.base_sha256}
    write_atomically(path, save(tensors, metadata={"format": "pt", **base, **(metadata or {})}))


def import_lora(path: Path | str, model: AdaptedModel, *, frozen: bool = False) -> None:
    """Read a LoRA and put it in place of the model's adapter; or, if frozen, beneath it, as part of v_ref.

    Names may be ComfyUI's, diffusers', peft's or kohya's; without an alpha the update is up · down.

    Raises:
        ValueError: the file is missing, damaged, or has anything that does not fit this model.
    """
    layers, unfit = _by_layer(_read(path), model.linears)
    for name, layer in layers.items():
        linear, rank = model.linears[name], layer.down_RI.shape[0]
        wanted = ((rank, linear.in_features), (linear.out_features, rank))
        if (tuple(layer.down_RI.shape), tuple(layer.up_OR.shape)) != wanted:
            down, up = "×".join(map(str, layer.down_RI.shape)), "×".join(map(str, layer.up_OR.shape))
            unfit.append(
                f"{name} ({down} and {up} for a layer of {linear.in_features} → {linear.out_features})"
            )
    if unfit or not layers:
        told = ", ".join(unfit[:3]) + (f" and {len(unfit) - 3} more" if len(unfit) > 3 else "")
        raise ValueError(
            f"{Path(path).name} is a LoRA of another model: {told or 'it has no layer'} does not fit "
            f"{model.path.name}; choose one that was trained on this model."
        )
    model.place_adapter(layers, frozen=frozen)


def _read(path: Path | str) -> dict[str, Tensor]:
    advice = "give a .safetensors file as written by `ipro export`"
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ValueError(f"There is no LoRA at {path}: {advice}.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a LoRA ({error}): {advice}.") from None


def _by_layer(
    tensors: Mapping[str, Tensor], linears: Mapping[str, Linear]
) -> tuple[dict[str, LowRank], list[str]]:
    """The layers by official name, and the keys that belong to none."""
    aliases = {alias: name for name in linears for alias in _aliases(name)}
    halves: dict[str, dict[str, Tensor]] = {}
    unfit = []
    for key, tensor in tensors.items():
        match = _HALF.fullmatch(key)
        name = match and aliases.get(_PREFIX.sub("", match["layer"] or match["scaled"]))
        if match is None or name is None:
            unfit.append(key)
            continue
        half = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}.get(
            match["half"], "alpha"
        )
        halves.setdefault(name, {})[half] = tensor
    layers = {}
    for name, parts in halves.items():
        if "down" in parts and "up" in parts:
            alpha = parts["alpha"].item() if "alpha" in parts else parts["down"].shape[0]
            layers[name] = LowRank(parts["down"], parts["up"], alpha)
        else:
            unfit.append(f"{name} (half of it is missing)")
    return layers, unfit


def _aliases(name: str) -> tuple[str, ...]:
    flat = name.replace(".", "_")
    return name, to_diffusers(name), f"lora_unet_{flat}", f"lora_unet__{flat}"
