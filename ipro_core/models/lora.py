"""LoRA files out and in: written under ComfyUI's names, read under everybody's (`lora_keys`).

What is trained is low rank alone. A LoRA frozen beneath it (Lightning) may also change norms and biases, and
may hold what this network has no use for: that is told, never dropped without a word.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import Linear

from ..files import write_atomically
from .lora_keys import LowRank, read_content

SETTINGS = "ipro.settings"
"""Under this name the metadata holds the run's settings, as JSON."""

_log = logging.getLogger("ipro")


class AdaptedModel(Protocol):
    """What a model must offer to have its adapter exported and imported."""

    linears: dict[str, Linear]

    @property
    def path(self) -> Path: ...
    @property
    def base_sha256(self) -> str: ...
    def adapter(self) -> dict[str, LowRank]: ...
    def place_adapter(self, layers: Mapping[str, LowRank], *, frozen: bool = False) -> None: ...
    def frozen_shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def change_frozen(self, differences: Mapping[str, Tensor]) -> None: ...


def export_lora(model: AdaptedModel, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's trained adapter as `diffusion_model.blocks.0.self_attn.q.lora_A.weight` and so on.

    ComfyUI loads nothing, without a word, from diffusers' or peft's names. It scales by alpha / rank and by
    no other rule, so a rank-stabilised adapter's alpha is written as its scale times its rank. The base
    file's name and SHA-256 are noted beside what `metadata` says.

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


def import_lora(path: Path | str, model: AdaptedModel, *, frozen: bool = False) -> dict[str, str]:
    """Read a LoRA and put it in place of the model's adapter; or, if frozen, beneath it, as part of v_ref.

    Without an alpha the update is up · down. Whole differences go into the frozen weights.

    Returns:
        The keys that were not used, each with the reason; a warning tells them too. Of a LoRA that is not
        frozen everything is used.

    Raises:
        ValueError: the file is missing, damaged or of another model; for a frozen one that means that nothing
            in it fits, for ours that anything does not, or is more than a low-rank update of a linear layer.
    """
    tensors, _ = _read(path)
    content = read_content(tensors, model.frozen_shapes(), model.linears)
    unfit = [f"{key} ({reason})" for key, reason in content.unused.items()]
    if not frozen:
        unfit += [f"{name} (a whole difference; only low rank is trained)" for name in content.differences]
    fitting = len(content.layers) + len(content.differences)
    if not fitting or (unfit and not frozen):
        raise ValueError(
            f"{Path(path).name} is a LoRA of another model: {_told(unfit) or 'it has no layer'} does not fit "
            f"{model.path.name}; choose one that was trained on this model."
        )
    if content.layers:
        model.place_adapter(content.layers, frozen=frozen)
    if content.differences:
        model.change_frozen(content.differences)
    if unfit:
        name, count = Path(path).name, f"{len(unfit)} of {len(tensors)}"
        _log.warning("%s: %s tensors are not used: %s.", name, count, _told(unfit))
    return content.unused


def lora_settings(path: Path | str) -> dict[str, Any]:
    """The settings of the run that a LoRA is from, as config.json has them; {} if it is from another tool.

    A LoRA is good at the schedule it was tuned at: `ipro.steps`, `ipro.shift`, `ipro.first_tuned_step`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    _, metadata = _read(path, tensors=False)
    try:
        settings = json.loads(metadata.get(SETTINGS, "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has damaged settings ({error}): export the LoRA once more.") from None
    return settings


def _read(path: Path | str, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors, unless they are not wanted, and its metadata."""
    advice = "give a .safetensors file as written by `ipro export`"
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            read = {key: file.get_tensor(key) for key in (file.keys() if tensors else ())}
    except FileNotFoundError:
        raise ValueError(f"There is no LoRA at {path}: {advice}.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a LoRA ({error}): {advice}.") from None
    for key, tensor in read.items():
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{path} is damaged, {key} is not finite: {advice}.")
    return read, metadata


def _told(faults: list[str]) -> str:
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return ", ".join(faults[:3]) + more
