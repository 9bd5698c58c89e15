"""What Wan's decoder takes, for the planner: a video decoded whole or as a draft, a face's gradient."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .vae import GROUP
from .vae_decoder import CausalDecoder


@dataclass(frozen=True)
class DecoderCost:
    """Of one video, in bfloat16."""

    weights: int
    decode: int
    """Bytes on the device, at most, of the whole video decoded truly, as for samples."""
    work: int
    """The same of an update's: what the reward is shown, and its gradient."""
    waiting: int
    """On the host: the caches between latent frames, or the graphs."""
    flops: float
    kept_bytes: int
    """For `WanVae`: what the graphs may take."""


_FLOPS = {False: 8.5e6, True: 18.5e6}
"""Operations of Wan 2.1's and 2.2's decoder for one pixel of one frame, as counted."""
_DRAFT_FLOPS = {False: 3.4e5, True: 5.7e4}
_BOX_FLOPS = 1.63
"""A pass through a face's box does more of the decoder's operations than it keeps of its numbers: its inner
stages see more of the picture."""
_WIDEST = {False: 7.6, True: 10.1}
"""Tensors of the decoder's widest stage that are alive while its last layers run."""
_DRAFT_WIDEST = 9.2
"""Of the draft's, 64 channels wide."""
_GRAPHS, _KEPT_GRAPHS = 6.3, 3.1
"""Graphs of a latent frame's box that its gradient takes on the device, decoded again or kept on the host."""
_GRAPH_BYTES = 2 << 30  # of WanVae


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
def decoder_cost(
    is_5b: bool, width: int, height: int, frames: int, drafted: bool = False, keeps: bool = False
) -> DecoderCost:
    """For a face a fifth of the picture high, which stands still.

    Args:
        drafted: only the face's box is decoded truly (`DraftedVae`).
        keeps: whether the graphs of a drafted video's box wait on the host, so that it is decoded once.
    """
    decoder, numbers, channels = _decoder(is_5b)
    scale, itemsize = decoder.scale, 2
    h, w, count = height // scale, width // scale, (frames - 1) // GROUP + 1
    side, top, left = height // 5, height // 4, width // 2
    windows = decoder.windows((top, top + side, left, left + side), h, w)
    video = 4 * 3 * frames * height * width  # float32
    wide = itemsize * GROUP * (height // decoder.patch) * (width // decoder.patch)
    whole, seen = decoder.chunk_size(h, w), decoder.chunk_size(h, w, windows)
    sparing = itemsize * seen.graph > _GRAPH_BYTES
    graph = itemsize * (seen.sparing_graph if sparing else seen.graph)
    decode = video + itemsize * whole.caches + _WIDEST[is_5b] * channels * wide
    if drafted:
        looking = video + _DRAFT_WIDEST * 64 * wide
        passes, given, borders = (2 if keeps else 3), _DRAFT_FLOPS[is_5b], count
    else:
        looking, passes, given, borders = decode, 3, _FLOPS[is_5b], count - 1
    pulling = 2.4 * video + (_KEPT_GRAPHS if keeps else _GRAPHS) * graph
    kept = (count - 0.6) * graph  # the first latent frame is one frame, not four
    share = _BOX_FLOPS * seen.graph / whole.graph
    return DecoderCost(
        itemsize * numbers,
        round(decode),
        round(max(looking, pulling)),
        round(kept if keeps else borders * itemsize * seen.caches),
        (given + (passes + sparing) * share * _FLOPS[is_5b]) * width * height * frames,
        count * graph if keeps else 0,
    )
