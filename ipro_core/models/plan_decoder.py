"""What Wan's decoder takes, for the planner: its weights, a video decoded whole, a face's gradient."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .vae import GROUP
from .vae_decoder import CausalDecoder


@dataclass(frozen=True)
class DecoderBytes:
    weights: int
    work: int
    """On the device, at most."""
    borders: int
    """On the host: the caches between latent frames."""
    graph: int
    """For `WanVae.graph_bytes`."""


_FLOPS = {False: 8.5e6, True: 18.4e6}
"""Operations of Wan 2.1's and 2.2's decoder for one pixel of one frame, as counted."""
_PULLBACK = 0.24
"""Of a decode: the gradient of a face a fifth of the picture high, as counted."""
_WIDEST = 7
"""Tensors of the decoder's widest stage that are alive while its last layers run."""
_GRAPH_BYTES = 2 << 30


def decoder_flops(is_5b: bool, width: int, height: int, frames: int) -> float:
    return (1 + _PULLBACK) * _FLOPS[is_5b] * width * height * frames


@cache
def _decoder(is_5b: bool) -> tuple[CausalDecoder, int, int]:
    """On the meta device; its numbers, and the channels of its widest stage's pixels."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    wide: dict[str, Any] = {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    }  # fmt: skip
    with torch.device("meta"):
        network = AutoencoderKLWan(**(wide if is_5b else {}))
    numbers = sum(p.numel() for part in (network.decoder, network.post_quant_conv) for p in part.parameters())
    decoder = CausalDecoder(network)
    return decoder, numbers, network.decoder.conv_out.in_channels


@cache
def decoder_bytes(is_5b: bool, width: int, height: int, frames: int) -> DecoderBytes:
    """In bfloat16: decoding the whole picture is the most that it takes, with a latent frame's caches and the
    next one's; a face's gradient takes less of the picture."""
    decoder, numbers, channels = _decoder(is_5b)
    scale, itemsize = decoder.scale, 2
    h, w, count = height // scale, width // scale, (frames - 1) // GROUP + 1
    side, top, left = height // 5, height // 4, width // 2
    windows = decoder.windows((top, top + side, left, left + side), h, w)
    video = 4 * 3 * frames * height * width  # float32
    widest = itemsize * channels * GROUP * (height // decoder.patch) * (width // decoder.patch)
    whole = decoder.chunk_size(h, w)
    seen = decoder.chunk_size(h, w, windows)
    graph = itemsize * (seen.graph if itemsize * seen.graph <= _GRAPH_BYTES else seen.sparing_graph)
    decoding = video + 2 * itemsize * whole.caches + _WIDEST * widest
    pulling = 2 * video + 4 * itemsize * seen.caches + 2 * graph
    borders = (count - 1) * itemsize * seen.caches
    return DecoderBytes(itemsize * numbers, max(decoding, pulling), borders, _GRAPH_BYTES)
