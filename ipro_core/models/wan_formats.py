"""What the keys of a file say: the formats that are read, those that are refused, files of other models."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import log
from typing import Any

import torch

from .containers import FLOATS, Container, Entry
from .frozen import GGUF_SCALES
from .wan_keys import PREFIXES, to_official

ADVICE = "choose a Wan 2.1 or 2.2 video network as .safetensors, .gguf or a diffusers folder"
READ = "choose the same network in bf16, fp16, fp8, int8 or GGUF"
ROUNDED = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}
SCALES = ("scale_weight", "weight_scale")
_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8"}
_ACTIVATIONS = "a scale of activations, for fp8 arithmetic, which is not used here"
NOTES = {
    "scale_input": _ACTIVATIONS,
    "input_scale": _ACTIVATIONS,
    "comfy_quant": "names its layer's format",
    "scaled_fp8": "says that fp8 weights have scales",
}
"""The last words of keys that hold no weight, and what they hold."""
_BESIDE = re.compile(r"(first_stage_model|vae|cond_stage_model|conditioner|text_encoders|model_ema)\.")

_UNREAD = {
    "weight_scale_2": "nvfp4",
    "weight_s_rel": "asym_w4a8_int8",
    "weight_s_channel": "asym_w4a8_int8",
    "wscales": "svdquant",
    "smooth_factor": "svdquant",
    "qzeros": "awq_w4a16",
    "absmax": "bitsandbytes' 4 or 8 bits",
    "quant_map": "bitsandbytes' 4 bits",
}
"""The last words of keys that only formats have which are not read."""
_FOREIGN = (
    (r"\.lora_(A|B|down|up)(\.\w+)?\.weight$|\.(hada|lokr)_\w+$|\.diff(_b)?$", "a LoRA"),
    (r"^vace_|\.vace_|^vace_blocks", "Wan VACE"),
    (r"^control_adapter\.", "Wan Camera or Fun Control"),
    (r"^casual_audio_encoder\.|^audio_injector\.", "Wan S2V"),
    (r"^audio_proj\.", "a Wan network driven by sound (HuMo, InfiniteTalk)"),
    (r"^face_adapter\.|^motion_encoder\.|^pose_patch_embedding\.", "Wan Animate"),
    (r"^img_emb\.emb_pos$|image_embedder\.pos_embed$", "Wan 2.1 first-last-frame"),
    (r"^ref_conv\.", "a Wan Fun network with a reference image"),
    (r"^(encoder|decoder)\.(conv1|conv_in|downsamples|upsamples|mid|middle|head|\d+)\.", "a VAE"),
    (r"^(encoder\.block|blocks)\.0\.(layer|attn\.q)|^token_emb(d|edding)\.|^shared\.weight$|^enc\.blk\.",
     "a text encoder"),
    (r"^model\.layers\.0\.|^blk\.0\.", "a language model"),
    (r"^(vision_model|visual|image_encoder)\.", "a CLIP vision encoder"),
    (r"^double_blocks\.|^single_transformer_blocks\.", "a network of the Flux or HunyuanVideo family"),
    (r"^joint_blocks\.|^transformer_blocks\.", "a network of another family (SD3, LTX, Qwen-Image)"),
    (r"^(input_blocks|down_blocks)\.", "a Stable Diffusion network"),
)  # fmt: skip
LINEARS = ("head.head", "text_embedding.0", "time_embedding.0", "blocks.0.ffn.0", "blocks.0.self_attn.q")
"""The layers that tell a network's configuration."""


def official_names(container: Container) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors by official name, prefixes removed; and the keys left aside, with the reason."""
    keys = container.entries
    prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in keys)), "")
    entries, ignored = {}, {}
    for key, entry in keys.items():
        if prefix and not key.startswith(prefix) and _BESIDE.match(key):
            ignored[key] = "belongs to the VAE or text encoder of a whole checkpoint"
        else:
            entries[_official(key.removeprefix(prefix))] = entry
    return entries, ignored


def formats(container: Container) -> dict[str, dict[str, Any]]:
    """What newer ComfyUI notes of a layer, by official name: in `.comfy_quant` or in the metadata."""
    try:
        noted = json.loads(container.metadata.get("_quantization_metadata", "{}")).get("layers", {})
        for key, entry in container.entries.items():
            layer, _, end = key.rpartition(".")
            if end == "comfy_quant":
                noted[layer] = json.loads(bytes(entry.read().tolist()))
        told = {_official(_without_prefix(layer)): dict(note) for layer, note in noted.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{container.path.name} notes its formats in a way that cannot be read ({error}): it is damaged; "
            "download it again."
        ) from None
    for layer, note in told.items():
        if note.get("format") not in _FORMATS:
            raise ValueError(
                f"{container.path.name} holds {layer} in {note.get('format')}, which is not read: {READ}."
            )
    return told


def in_format(file: str, name: str, entry: Entry, note: Mapping[str, Any]) -> tuple[Entry, int | None]:
    """The weight as its note has it, and ConvRot's group of inputs if it is rotated."""
    wanted = _FORMATS[note["format"]]
    if entry.type not in (wanted, "U8" if wanted != "I8" else wanted):  # early files say uint8 for fp8
        raise ValueError(
            f"{file} is damaged: {name} is {entry.type}, though noted as {note['format']}; download it again."
        )
    options = {**note.get("params", {}), **note}
    if not options.get("convrot", False):
        return replace(entry, type=wanted), None
    group = int(options.get("convrot_groupsize", 256))
    if group < 4 or log(group, 4) % 1 or entry.shape[-1] % group:
        raise ValueError(f"{file} is damaged: {name}, {entry.shape}, cannot be rotated in groups of {group}.")
    return replace(entry, type=wanted), group


def refuse_unread(file: str, entries: Mapping[str, Entry]) -> None:
    """Raise ValueError, naming the format, if the file needs one that is not read."""
    for name, entry in entries.items():
        kind = _UNREAD.get(name.rpartition(".")[2])
        if entry.type == "F8_E8M0":
            kind = "mxfp8"
        elif entry.type in ("F4", "U8") and name.endswith(".weight"):
            kind = kind or "4 bits"
        elif entry.gguf_type is not None and entry.gguf_type not in GGUF_SCALES:
            kind = f"GGUF's {entry.type}"
        if kind is not None:
            raise ValueError(f"{file} holds {name} in {kind}, which is not read: {READ}.")


def refuse_foreign(file: str, names: Iterable[str], metadata: Mapping[str, str]) -> None:
    """Raise ValueError, saying what it is, if these are not the names of a Wan network."""
    names = list(names)
    architecture = metadata.get("general.architecture", "wan")
    if architecture not in ("wan", "pig"):
        raise ValueError(f"{file} is a GGUF of “{architecture}”, no Wan network: {ADVICE}.")
    for sign, what in _FOREIGN:
        found = next((name for name in names if re.search(sign, name)), None)
        if found is not None:
            raise ValueError(
                f"{file} is {what} (it has {found}), not a Wan image- or text-to-video network: {ADVICE}."
            )
    missing = [f"{name}.weight" for name in ("patch_embedding", *LINEARS) if f"{name}.weight" not in names]
    if missing:
        raise ValueError(f"{file} is no Wan network: it lacks {named(missing)}; {ADVICE}.")


def check_types(file: str, tensors: Mapping[str, Entry], scales: Mapping[str, Entry]) -> None:
    """Raise ValueError where a tensor's type, or the scale that it needs, cannot be right."""
    for name, entry in tensors.items():
        if entry.gguf_type is None and entry.type not in FLOATS and entry.type not in ROUNDED:
            raise ValueError(f"{file} holds {name} as {entry.type}, which no Wan network has: {READ}.")
        if entry.type == "I8" and name not in scales:
            raise ValueError(f"{file} is damaged: {name} is int8 and has no scale; download it again.")
    for name, scale in scales.items():
        rows = tensors[name].shape[:1] if name in tensors else None
        if rows is None or (scale.shape not in ((), (1,), (1, 1), (*rows, 1))) or scale.type not in FLOATS:
            raise ValueError(
                f"{file} is damaged: {name} has a scale of {scale.shape} in {scale.type} where one number or "
                "one for each row was expected; download it again."
            )


def named(keys: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _without_prefix(key: str) -> str:
    return key.removeprefix(next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""))


def _official(key: str) -> str:
    """From diffusers' name; any other stays as it is."""
    layer, dot, end = key.rpartition(".")
    try:
        return to_official(layer) + dot + end if end in NOTES or end in SCALES else to_official(key)
    except KeyError:
        return key
