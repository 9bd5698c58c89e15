"""CLIP networks as their users have them: what a file or folder holds, under transformers' names.

Read are transformers' names and open_clip's (in which HPSv2 is published), as one .safetensors file or as a
folder; sizes come from a config.json beside the weights or from the tensors' shapes. Never unpickled.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
ADVICE = "give CLIP's or HPSv2's .safetensors file, or its folder from Hugging Face"
HEAD = {1280: 80, 1408: 88, 1664: 104}
"""How wide a head is in towers of that width (ViT-H, g, bigG); 64 in all others that were published."""
Read = Callable[[], Tensor]


@dataclass(frozen=True)
class ScorerFile:
    """The weights of one CLIP; nothing is read but names, shapes and sizes."""

    path: Path
    weights: Path
    """The file that tells it from others."""
    tensors: Mapping[str, Read]
    """By transformers' names, each read when it is called."""
    vision: Mapping[str, Any]
    """The arguments of transformers' CLIPVisionConfig."""
    text: Mapping[str, Any] | None
    """Those of CLIPTextConfig; None: the file holds the image tower alone."""
    pads: bool
    """Whether whole pictures are looked at, with black beside them (HPSv2), or their middle squares."""

    @property
    def folder(self) -> Path:
        """Where the tokeniser's files lie."""
        return self.weights.parent


def open_scorer_file(path: Path | str) -> ScorerFile:
    """Read the headers.

    Raises:
        ValueError: the file is missing, damaged, a pickle, or no CLIP.
    """
    path = Path(path).expanduser()
    files = _files(path)
    tensors, shapes = {}, {}
    for file in files:
        for name, (shape, read) in _header(file).items():
            tensors[name], shapes[name] = read, shape
    config = _config(files[0].parent)
    if "visual.conv1.weight" in shapes:
        tensors, shapes = _renamed(tensors, shapes)
        config = config or _published(path, shapes, open_clip=True)
    config = config or _published(path, shapes, open_clip=False)
    if "vision_model.embeddings.patch_embedding.weight" not in shapes:
        raise ValueError(f"{path.name} holds no CLIP image tower: {ADVICE}.")
    if "visual_projection.weight" not in shapes:
        raise ValueError(f"{path.name} lacks CLIP's projection of pictures: {ADVICE}.")
    with_text = "text_projection.weight" in shapes
    return ScorerFile(
        path,
        files[0],
        tensors,
        {**_vision(shapes), **_told(config, "vision")},
        {**_text(shapes), **_told(config, "text")} if with_text else None,
        "hps" in files[0].name.lower() or "hps" in path.name.lower(),
    )


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"There is no text-image scorer at {path}: {ADVICE}.")
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        if index.exists():
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted(path / name for name in set(named.values()))
        found = sorted(path.glob("*.safetensors"))
        whole = [file for file in found if file.name == "model.safetensors"] or found
        pickled = [file for file in sorted(path.iterdir()) if file.suffix in PICKLES]
        if len(whole) == 1:
            return whole
        if found or not pickled:
            raise ValueError(f"{path} holds {len(found)} .safetensors files: {ADVICE}.")
        path = pickled[0]
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path.name} is a pickle, which can run any code and is never read here: get a .safetensors "
            "file, or, if you trust it, make one by python -c "
            f"\"import torch, safetensors.torch as s; w = torch.load('{path.name}', weights_only=True); "
            "s.save_file({k: v.contiguous() for k, v in w.get('state_dict', w).items()}, "
            f"'{path.stem}.safetensors')\"."
        )
    return [path]


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], Read]]:
    try:
        opened = safe_open(str(file), framework="pt")
        names = opened.keys()
        return {
            name: (tuple(opened.get_slice(name).get_shape()), partial(opened.get_tensor, name))
            for name in names
        }
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file.name} cannot be read ({error}): it is damaged or of another kind; {ADVICE}."
        ) from None


def _config(folder: Path) -> dict[str, Any]:
    """What config.json beside the weights says, {"vision": …, "text": …}; {} where none lies."""
    file, open_clip = folder / "config.json", folder / "open_clip_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if told.get("model_type") == "clip_vision_model":
        return {"vision": told}
    if "vision_config" in told:
        shared = {"projection_dim": told["projection_dim"]} if "projection_dim" in told else {}
        return {part: {**told.get(f"{part}_config", {}), **shared} for part in ("vision", "text")}
    if open_clip.exists():
        model = json.loads(open_clip.read_text(encoding="utf-8"))["model_cfg"]
        act = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
        vision, text = model["vision_cfg"], model["text_cfg"]
        heads = vision["width"] // vision.get("head_width", 64)
        return {
            "vision": {**act, "num_attention_heads": heads},
            "text": {**act, "num_attention_heads": text["heads"]},
        }
    return {}


def _published(path: Path, shapes: Mapping[str, tuple[int, ...]], *, open_clip: bool) -> dict[str, Any]:
    """The activation of a network without a config: OpenAI's own have another than all that came later."""
    wide = shapes.get("vision_model.embeddings.class_embedding", (0,))[0] >= 1280
    if open_clip and not wide:
        raise ValueError(
            f"{path.name} does not say which activation it has, and networks of its size differ: put its "
            "open_clip_config.json or config.json beside it."
        )
    act = {"hidden_act": "gelu" if wide else "quick_gelu"}
    return {"vision": act, "text": act}


ARGUMENTS = ("hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id", "bos_token_id")
"""What shapes do not tell."""


def _told(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    return {name: value for name, value in config.get(tower, {}).items() if name in ARGUMENTS}


def _vision(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    places = shapes["vision_model.embeddings.position_embedding.weight"][0]
    return {
        **_tower(shapes, "vision_model", width),
        "patch_size": patch,
        "image_size": patch * isqrt(places - 1),
        "projection_dim": shapes["visual_projection.weight"][0],
    }


def _text(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    words, width = shapes["text_model.embeddings.token_embedding.weight"]
    return {
        **_tower(shapes, "text_model", width),
        "vocab_size": words,
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "projection_dim": shapes["text_projection.weight"][0],
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }


def _tower(shapes: Mapping[str, tuple[int, ...]], tower: str, width: int) -> dict[str, Any]:
    start = f"{tower}.encoder.layers."
    layers = {int(name.removeprefix(start).split(".")[0]) for name in shapes if name.startswith(start)}
    return {
        "hidden_size": width,
        "intermediate_size": shapes[f"{start}0.mlp.fc1.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(width // HEAD.get(width, 64), 1),
    }


# open_clip's names → transformers'; those of a block are behind its number.
_TOWERS = {"visual.transformer.resblocks.": "vision_model", "transformer.resblocks.": "text_model"}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def _renamed(
    tensors: Mapping[str, Read], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Read], dict[str, tuple[int, ...]]]:
    """open_clip's tensors as transformers has them: queries, keys and values apart, projections turned."""
    reads: dict[str, Read] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for name, read in tensors.items():
        shape = shapes[name]
        if name in _TURNED:
            reads[_TURNED[name]] = lambda read=read: read().T.contiguous()
            sizes[_TURNED[name]] = shape[::-1]
            continue
        new = _WHOLE.get(name) or _in_block(name)
        if ".attn.in_proj_" in name:
            third = shape[0] // 3
            for part, letter in enumerate("qkv"):
                named = new.replace("*", letter)
                reads[named] = lambda read=read, part=part: read().chunk(3)[part].contiguous()
                sizes[named] = (third, *shape[1:])
        elif new:
            reads[new], sizes[new] = read, shape
    return reads, sizes


def _in_block(name: str) -> str:
    """A block's tensor by transformers' name, * for q, k or v; "" for what no tower wants."""
    for start, tower in _TOWERS.items():
        if not name.startswith(start):
            continue
        number, _, rest = name.removeprefix(start).partition(".")
        layer, _, kind = rest.rpartition(".")
        if layer == "attn":
            return f"{tower}.encoder.layers.{number}.self_attn.*_proj.{kind.removeprefix('in_proj_')}"
        if layer in _BLOCK:
            return f"{tower}.encoder.layers.{number}.{_BLOCK[layer]}.{kind}"
    return ""
