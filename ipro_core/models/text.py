"""Prompts to embeddings: UMT5-XXL from the text encoder file that ComfyUI users have (5.1: Wan's own).

The network is transformers' UMT5EncoderModel; the tokenizer is a sentencepiece model, which ComfyUI's files
carry inside as the tensor `spiece_model`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .containers import Container, Entry, open_container
from .frozen import FrozenLinear, StoredWeight

PROMPT_TOKENS = 512
"""Wan's length: shorter embeddings are filled up with zeros, longer prompts cut."""

_ADVICE = "choose umt5_xxl as ComfyUI has it (umt5_xxl_fp8_e4m3fn_scaled.safetensors or _fp16)"
_SCALES = (".scale_weight", ".weight_scale")
_BESIDE = re.compile(r"spiece_model$|scaled_fp8$|\.(scale_input|input_scale|comfy_quant)$")
_FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class TextEncoder:
    """A prompt's embedding as Wan's networks are told it."""

    def __init__(self, network: Any, tokenizer: Any, device: torch.device | str) -> None:
        self.network, self.tokenizer, self.device = network, tokenizer, device

    @torch.no_grad()
    def __call__(self, prompt: str) -> Tensor:
        """(512, D) float32 on the CPU, zeros after the prompt's last token."""
        ids = [*self.tokenizer.encode(prompt)[: PROMPT_TOKENS - 1], 1]  # 1 ends a text
        tokens_BL = torch.zeros(1, PROMPT_TOKENS, dtype=torch.long, device=self.device)
        tokens_BL[0, : len(ids)] = torch.tensor(ids)
        mask_BL = (torch.arange(PROMPT_TOKENS, device=self.device) < len(ids))[None]
        embedding_LD = self.network(input_ids=tokens_BL, attention_mask=mask_BL.long()).last_hidden_state[0]
        return (embedding_LD.float() * mask_BL[0, :, None]).cpu()


def open_text_encoder(path: Path | str) -> Container:
    """A text encoder's header.

    Raises:
        ValueError: the file is missing, damaged, no UMT5, or lacks its tokenizer.
    """
    container = open_container(path, "text encoder", _ADVICE)
    name, entries = container.path.name, container.entries
    if "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" not in entries:
        raise ValueError(f"{name} is no UMT5 text encoder: {_ADVICE}.")
    if "spiece_model" not in entries:
        raise ValueError(f"{name} holds no tokenizer (spiece_model): {_ADVICE}.")
    return container


def load_text_encoder(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> TextEncoder:
    """Open a text encoder file. fp8 weights stay in fp8 and are dequantised as they are used.

    Args:
        dtype: to compute in.

    Raises:
        ValueError: the file is missing, damaged, no UMT5, or lacks its tokenizer.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import UMT5Config, UMT5EncoderModel

    container = open_text_encoder(path)
    name, entries = container.path.name, container.entries
    with torch.device("meta"):
        network = UMT5EncoderModel(UMT5Config(**_config(container)))
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    wanted.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    weights = {
        key: entry
        for key, entry in entries.items()
        if not _BESIDE.search(key) and not key.endswith(_SCALES) and key != "encoder.embed_tokens.weight"
    }
    wrong = sorted(
        {key for key in wanted.keys() & weights.keys() if weights[key].shape != wanted[key]}
        | (wanted.keys() ^ weights.keys())
    )
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        told = ", ".join(wrong[:3]) + more
        raise ValueError(f"{name} does not fit UMT5: {told} missing, unknown or misshapen; {_ADVICE}.")
    for key, entry in weights.items():
        _place(network, key, _stored(name, key, entry, entries), device, dtype)
    network.encoder.embed_tokens = network.shared
    try:
        tokenizer = SentencePieceProcessor(model_proto=bytes(entries["spiece_model"].read().tolist()))
    except RuntimeError as error:
        raise ValueError(f"The tokenizer inside {name} is damaged ({error}): download it again.") from None
    return TextEncoder(network.eval(), tokenizer, device)


def _config(container: Container) -> dict[str, Any]:
    """UMT5's sizes, from the shapes: a head is 64 wide unless the bias table counts otherwise."""
    entries = container.entries
    vocabulary, width = entries["shared.weight"].shape
    first = "encoder.block.0.layer."
    buckets, heads = entries[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": entries[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": entries[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
        "num_layers": 1 + max(int(key.split(".")[2]) for key in entries if key.startswith("encoder.block.")),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": False,
    }


def _stored(file: str, key: str, entry: Entry, entries: Mapping[str, Entry]) -> StoredWeight:
    layer = key.removesuffix(".weight")
    scale = next((entries[layer + end].read().float() for end in _SCALES if layer + end in entries), None)
    stored = entry.read()
    if entry.type in _FP8:
        stored = stored.view(_FP8[entry.type])
    elif not stored.is_floating_point():
        raise ValueError(f"{file} holds {key} as {entry.type}, which is not read: {_ADVICE}.")
    return StoredWeight(stored, None if scale is None else scale.reshape(()))


def _place(
    network: nn.Module, key: str, weight: StoredWeight, device: torch.device | str, dtype: torch.dtype
) -> None:
    module_name, _, tensor_name = key.rpartition(".")
    module = network.get_submodule(module_name)
    quantised = weight.scale is not None or weight.stored.dtype in _FP8.values()
    if quantised and isinstance(module, nn.Linear):
        parent, _, child = module_name.rpartition(".")
        layer: Any = FrozenLinear(weight.to(device), None, module.in_features)
        layer.weight = None  # transformers asks a layer's weight for its type, unless it has none
        setattr(network.get_submodule(parent), child, layer)
    else:
        tensor = weight.dequantised(dtype).to(device)
        setattr(module, tensor_name, nn.Parameter(tensor, requires_grad=False))
