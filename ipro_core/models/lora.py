"""LoRA files out and in: written under ComfyUI's names, read under everybody's (`lora_keys`).

What is trained is low rank alone. A LoRA frozen beneath it (Lightning) may also change norms and biases, and
may hold what this network has no use for: that is told, never dropped without a word.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import write_atomically
from .base import AdaptedModel
from .containers import open_container
from .lora_keys import LoraContent, LowRank, read_content

SETTINGS = "ipro.settings"
"""Under this name the metadata holds the run's settings, as JSON."""
RANGE = "ipro.range"
"""And under this one `TunedRange`, of an adapter that is on in a part of its network's steps alone."""

_ADVICE = "give a LoRA as .safetensors, as `ipro export` and ComfyUI write it"
_log = logging.getLogger("ipro")


class TunedRange(NamedTuple):
    """Steps first, first + 1, … end − 1 of so many, of the schedule with this shift."""

    first: int
    end: int
    steps: int
    shift: float


def export_lora(model: AdaptedModel, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """`write_lora` of the model's trained adapter; the base file's name and SHA-256 are noted as well."""
    base = {"ipro.base": model.path.name, "ipro.base_sha256": model.base_sha256}
    write_lora(model.adapter(), path, {**base, **(metadata or {})})


def write_lora(layers: Mapping[str, LowRank], path: Path | str, metadata: Mapping[str, str]) -> None:
    """Write an adapter's `lora_tensors`.

    Raises:
        OSError: the file cannot be written; an older one stays whole.
    """
    write_atomically(path, save(lora_tensors(layers), metadata={"format": "pt", **metadata}))


def lora_tensors(layers: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """An adapter under ComfyUI's names: `diffusion_model.blocks.0.self_attn.q.lora_A.weight` and so on.

    ComfyUI loads nothing, without a word, from diffusers' or peft's names. It scales by alpha / rank and by
    no other rule, so a rank-stabilised adapter's alpha is given as its scale times its rank.
    """
    tensors = {}
    for name, layer in layers.items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = layer.down_RI.cpu().contiguous()
        tensors[f"diffusion_model.{name}.lora_B.weight"] = layer.up_OR.cpu().contiguous()
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors


def check_lora(
    path: Path | str, base: str, shapes: Mapping[str, tuple[int, ...]], *, frozen: bool = False
) -> None:
    """Raise what `import_lora` would, before a network of these tensors, called `base`, is opened."""
    container = open_container(path, "LoRA", _ADVICE)
    tensors = {key: entry.read() for key, entry in container.entries.items()}  # mapped: few pages are read
    linears = {
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    _refuse_unfit(path, base, read_content(tensors, shapes, linears), frozen)


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
    tensors = open_container(path, "LoRA", _ADVICE).read()
    content = read_content(tensors, model.frozen_shapes(), model.linears)
    unfit = _refuse_unfit(path, model.path.name, content, frozen)
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
    metadata = open_container(path, "LoRA", _ADVICE).metadata
    try:
        settings = json.loads(metadata.get(SETTINGS, "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has damaged settings ({error}): export the LoRA once more.") from None
    return settings


def lora_range(path: Path | str) -> TunedRange | None:
    """The steps that a LoRA was tuned to be on at; None: at all of its network's, as far as the file tells.

    Raises:
        ValueError: the file is missing or damaged.
    """
    noted = open_container(path, "LoRA", _ADVICE).metadata.get(RANGE)
    try:
        return TunedRange(**json.loads(noted)) if noted else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has a damaged range ({error}): export the LoRA once more.") from None


def _refuse_unfit(path: Path | str, base: str, content: LoraContent, frozen: bool) -> list[str]:
    """What does not fit, unless that is more than may be."""
    unfit = [f"{key} ({reason})" for key, reason in content.unused.items()]
    if not frozen:
        unfit += [f"{name} (a whole difference; only low rank is trained)" for name in content.differences]
    fitting = len(content.layers) + len(content.differences)
    if not fitting or (unfit and not frozen):
        raise ValueError(
            f"{Path(path).name} is a LoRA of another model: {_told(unfit) or 'it has no layer'} does not fit "
            f"{base}; choose one that was trained on this model."
        )
    return unfit


def _told(faults: list[str]) -> str:
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return ", ".join(faults[:3]) + more
