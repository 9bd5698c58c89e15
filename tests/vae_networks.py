"""Wan's two autoencoders, two channels wide and random."""

from functools import cache

import torch
from torch import Tensor

from ipro_core.models.vae_files import STATISTICS
from ipro_core.models.vae_keys import to_official

KINDS = ["2.1", "2.2"]
CHANNELS = {"2.1": 16, "2.2": 48}
SCALE = {"2.1": 8, "2.2": 16}


def empty_network(kind: str, width: int = 2):
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    if kind == "2.1":
        return AutoencoderKLWan(base_dim=width)
    mean, std = STATISTICS[48]
    return AutoencoderKLWan(
        base_dim=width, decoder_base_dim=2 * width, z_dim=48, is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=16,
        latents_mean=list(mean), latents_std=list(std),
    )  # fmt: skip


@cache
def network(kind: str, dtype: torch.dtype = torch.float32):
    """Random, with frames that stay within (0, 1): diffusers clamps others, which then have no gradient."""
    torch.manual_seed(0)
    made = empty_network(kind)
    for name, parameter in made.named_parameters():
        if "gamma" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
        elif "decoder.conv_out" in name:
            parameter.data *= 0.2
    for part in made.modules():
        if hasattr(part, "resample") and isinstance(part.resample[0], torch.nn.Upsample):
            # diffusers' own rounds to float32, which would hide differences in float64.
            part.resample[0] = torch.nn.Upsample(scale_factor=2, mode="nearest-exact")
    return torch.nn.Module.to(made, dtype).eval().requires_grad_(False)


def official_tensors(kind: str) -> dict[str, Tensor]:
    residual = kind == "2.2"
    return {to_official(key, residual=residual): tensor for key, tensor in network(kind).state_dict().items()}
