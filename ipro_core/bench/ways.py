"""Three ways to one gradient, on the same weights, noise and score.

ours        `reward_gradient`: step by step, block by block, the decoder one latent frame at a time.
plain       One graph across the K steps by diffusers' own forward pass, its blocks checkpointed; the
            decoder by diffusers' own, differentiated as it is.
reference   What the authors' released code does, written anew: one graph across the K steps, blocks
            checkpointed, x_t attached, the frozen model's passes without a graph ("biased"); the decoder in
            tiles of space, each over the whole time in one checkpoint, blended into a video.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..models.vae import WanVae
from ..models.vae_files import statistics
from ..models.wan import WanCondition, WanVideoModel
from ..sampling.anchor import kl_anchor
from ..sampling.gradient import KLThrough, Score, reward_gradient

Way = Literal["ours", "plain", "reference"]
_TILE, _STRIDE = 34 / 60, (18 / 60, 16 / 60)
"""Of the latents' height at 480 lines: the authors' tiles of 34 × 34, 18 and 16 apart."""


def gradient(
    way: Way,
    model: WanVideoModel,
    vae: WanVae,
    score: Score,
    x: Tensor,
    condition: WanCondition,
    sigmas: Tensor,
    *,
    grad_steps: int,
    kl_through: KLThrough = "detached",
    reward_weight: float = 0.1,
) -> None:
    """Add dL/dθ of `reward_gradient` to the adapter's `.grad`, by that way; "reference" is always biased."""
    if way == "ours":
        weights: Any = {"grad_steps": grad_steps, "kl_through": kl_through, "reward_weight": reward_weight}
        reward_gradient(model, vae, score, x, condition, sigmas, **weights)
        return
    kl_through = "biased" if way == "reference" else kl_through
    model.transformer.enable_gradient_checkpointing()
    levels, kl = sigmas.tolist(), []
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        with torch.set_grad_enabled(i >= len(levels) - 1 - grad_steps):
            v = _velocity(model, x, sigma, condition)
            if torch.is_grad_enabled():
                x_anchor = x.detach() if kl_through == "detached" else x
                v_anchor = _velocity(model, x_anchor, sigma, condition) if kl_through == "detached" else v
                frozen = model.adapters.frozen
                with torch.set_grad_enabled(kl_through == "exact"), model.adapters.only(frozen):
                    v_ref = _velocity(model, x_anchor, sigma, condition)
                kl.append(kl_anchor(v_anchor, v_ref, sigma))
            x = x + (sigma_next - sigma) * v
    with torch.enable_grad():
        decode = decode_whole if way == "plain" else decode_tiled
        reward = score(decode(vae, x)[0], 0).value
        (torch.stack(kl).mean() - reward_weight * reward).backward()


def decode_whole(vae: WanVae, latents_BCTHW: Tensor) -> Tensor:
    """Normalised latents → frames (B, T, 3, H, W), by diffusers, with its graph."""
    mean, std = statistics(vae.channels, latents_BCTHW)
    z_BCTHW = (latents_BCTHW * std + mean).to(vae.network.post_quant_conv.weight)
    frames_BCTHW = vae.network.decode(z_BCTHW, return_dict=False)[0]
    return (frames_BCTHW / 2 + 0.5).transpose(1, 2).to(latents_BCTHW)


def decode_tiled(vae: WanVae, latents_BCTHW: Tensor) -> Tensor:
    """The same in overlapping tiles, each computed again for its gradient, with ramps where they overlap."""
    height, width = latents_BCTHW.shape[-2:]
    tile, scale = min(max(2, round(_TILE * height)), height, width), vae.decoder.scale
    total, weight = None, None
    for top in _starts(height, tile, max(1, round(_STRIDE[0] * height))):
        for left in _starts(width, tile, max(1, round(_STRIDE[1] * height))):
            part = latents_BCTHW[..., top : top + tile, left : left + tile]
            frames = checkpoint(decode_whole, vae, part, use_reentrant=False)
            ramp_HW = _ramp(tile, scale).outer(_ramp(tile, scale)).to(frames)
            around = (
                *(scale * left, scale * (width - left - tile)),
                *(scale * top, scale * (height - top - tile)),
            )
            pad: Callable[[Tensor], Tensor] = partial(torch.nn.functional.pad, pad=around)
            total = pad(frames * ramp_HW) if total is None else total + pad(frames * ramp_HW)
            weight = pad(ramp_HW) if weight is None else weight + pad(ramp_HW)
    assert total is not None and weight is not None
    return total / weight


def _starts(size: int, tile: int, stride: int) -> list[int]:
    return sorted({*range(0, size - tile, stride), size - tile})


def _ramp(tile: int, scale: int) -> Tensor:
    """Rising from both ends of a tile to its middle."""
    from_left = torch.arange(1, tile * scale + 1)
    return torch.minimum(from_left, from_left.flip(0)).float()


def _velocity(model: WanVideoModel, x: Tensor, sigma: float, condition: WanCondition) -> Tensor:
    """`WanVideoModel.velocity` by diffusers' own forward pass."""
    x_in, t = x, torch.full((len(x),), 1000 * sigma, device=x.device)
    first = condition.first_BC1HW
    if condition.image_BCTHW is not None:
        x_in = torch.cat([x, condition.image_BCTHW.to(x)], dim=1)
    if first is not None:  # one time step for each token, 0 for the first frame's
        x_in = torch.cat([first.to(x), x[:, :, 1:]], dim=2)
        area = x.shape[3] * x.shape[4] // 4
        t = t[:, None].repeat(1, area * x.shape[2])
        t[:, :area] = 0
    text_BLD = condition.text_BLD.to(model.device, model.dtype)
    v = model.transformer(x_in.to(model.dtype), t, text_BLD, return_dict=False)[0].to(x)
    if first is None:
        return v
    return torch.cat([(x[:, :, :1] - first.to(x)) / sigma, v[:, :, 1:]], dim=2)
