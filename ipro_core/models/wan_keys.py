"""The two names of every Wan tensor: the official one, which ComfyUI uses too, and diffusers'.

A pure rename and a bijection: nothing is transposed, split or reshaped. For every text- and image-to-video
network of Wan 2.1 and 2.2; `img_emb`, `k_img` and `v_img`, for CLIP's image embedding, are Wan 2.1's alone.
"""

import re

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What whole checkpoints and ComfyUI's own saves put before the official names."""

_MODULES = {  # official: diffusers
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
}
_BLOCK_MODULES = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",  # before the cross-attention; diffusers' norm3 has no weights
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
} | {
    f"{official}.{part}": f"{diffusers}.{diffusers_part}"
    for official, diffusers in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for part, diffusers_part in {
        "q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k",
    }.items()
}  # fmt: skip
_NAME = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")


def to_diffusers(official: str) -> str:
    """The diffusers name of a tensor or module; KeyError if Wan has none of that name."""
    return _renamed(official, _MODULES, _BLOCK_MODULES)


def to_official(diffusers: str) -> str:
    """The official name of a tensor or module; KeyError if diffusers' Wan has none of that name."""
    return _renamed(diffusers, _inverse(_MODULES), _inverse(_BLOCK_MODULES))


def _renamed(name: str, modules: dict[str, str], block_modules: dict[str, str]) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        raise KeyError(name)
    block, module, tensor = match.group(1) or "", match.group(2), match.group(3) or ""
    return block + (block_modules if block else modules)[module] + tensor


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in names.items()}
