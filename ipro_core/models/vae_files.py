"""Wan's autoencoders as safetensors files: what one holds, the configuration its shapes tell, in."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .containers import FLOATS, Container, open_container
from .vae_keys import to_diffusers

STATISTICS = {  # channels: (mean, standard deviation) of the latents; Wan 2.1's and Wan 2.2's own
    16: (
        (
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ),
        (
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
        ),
    ),
    48: (
        (
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
            -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
            -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
            -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
            0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ),
        (
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
            0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
            0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
            0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
            0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
            0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ),
    ),
}  # fmt: skip

_PREFIXES = ("", "vae.", "first_stage_model.", "model.")
"""What whole checkpoints, and others' saves, put before the names."""
_WHAT = "Wan autoencoder"
_ADVICE = "choose wan_2.1_vae.safetensors or wan2.2_vae.safetensors"


def statistics(channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The latents' mean and standard deviation, (1, C, 1, 1, 1), of that type and place."""
    mean_C, std_C = STATISTICS[channels]
    return like.new_tensor(mean_C).view(1, -1, 1, 1, 1), like.new_tensor(std_C).view(1, -1, 1, 1, 1)


def open_vae(path: Path | str) -> Container:
    """The header of a file, or of a diffusers folder, that holds an autoencoder."""
    path = Path(path)
    if path.is_dir():
        name = "diffusion_pytorch_model.safetensors"
        path = path / "vae" / name if (path / "vae" / name).exists() else path / name
    return open_container(path, _WHAT, _ADVICE)


def vae_channels(path: Path | str) -> int:
    """Of its latents: 16 (Wan 2.1) or 48 (2.2). Only the header is read.

    Raises:
        ValueError: the file is missing, damaged, or not one of Wan's autoencoders.
    """
    container = open_vae(path)
    mark, _ = _mark(container)
    return container.entries[mark].shape[1]


def read_vae(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's, or a diffusers folder's, tensors by diffusers' names, and AutoencoderKLWan's arguments.

    Raises:
        ValueError: the file is missing, damaged, quantised, or not one of Wan's autoencoders.
    """
    container = open_vae(path)
    mark, prefix = _mark(container)
    # A whole checkpoint's other keys belong to other models, and bear no such prefix.
    ours = {key: entry for key, entry in container.entries.items() if key.startswith(prefix)}
    tensors = _read_floats(replace(container, entries=ours), _ADVICE)
    tensors = {key[len(prefix) :]: tensor for key, tensor in tensors.items()}
    if mark.endswith("conv1.weight"):
        return named_vae(container.path, tensors)
    return tensors, _config(container.path, tensors)


def named_vae(path: Path, official: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`read_vae` of tensors by official names; `path` is what an error calls them.

    Raises:
        ValueError: they are not one of Wan's autoencoders.
    """
    tensors = _renamed(path, official)
    return tensors, _config(path, tensors)


def read_tensors(path: Path, what: str, advice: str) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU.

    Raises:
        ValueError: missing, damaged, quantised, or with numbers that are not finite.
    """
    return _read_floats(open_container(path, what, advice), advice)


def _read_floats(container: Container, advice: str) -> dict[str, Tensor]:
    for key, entry in container.entries.items():
        if entry.type not in FLOATS:
            raise ValueError(f"{container.path.name} is quantised, {key} is {entry.type}: {advice}.")
    return container.read()


def _mark(container: Container) -> tuple[str, str]:
    """The key of the decoder's first layer, which tells whose names these are, and its prefix."""
    for prefix in _PREFIXES:
        for name in ("conv1", "conv_in"):
            mark = f"{prefix}decoder.{name}.weight"
            if len(container.entries[mark].shape if mark in container.entries else ()) == 5:
                return mark, prefix
    raise ValueError(f"{container.path.name} is no {_WHAT}: it lacks decoder.conv1.weight; {_ADVICE}.")


def check_shapes(path: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], advice: str) -> None:
    """Raise ValueError unless the names and shapes are the same."""
    faults = {
        "lacks": wanted.keys() - given.keys(),
        "has unknown": given.keys() - wanted.keys(),
        "has misshapen": {k for k in wanted.keys() & given.keys() if wanted[k].shape != given[k].shape},
    }
    told = ", ".join(f"{word} {_named(keys)}" for word, keys in faults.items() if keys)
    if told:
        raise ValueError(f"{path.name} does not fit: it {told}; {advice}.")


def check_vae(path: Path | str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """`check_shapes` for one of Wan's autoencoders."""
    check_shapes(Path(path), given, wanted, _ADVICE)


def _renamed(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    residual = any(key.startswith("decoder.upsamples.0.upsamples.") for key in tensors)
    renamed = {}
    for key, tensor in tensors.items():
        try:
            renamed[to_diffusers(key, residual=residual)] = tensor
        except KeyError:
            raise ValueError(f"{path.name} is no {_WHAT}: it has unknown {key}; {_ADVICE}.") from None
    return renamed


def _config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What differs between the released autoencoders; number of stages and blocks do not."""
    needed = ("encoder.conv_in", "decoder.conv_in", "decoder.conv_out")
    missing = [f"{name}.weight" for name in needed if f"{name}.weight" not in tensors]
    if missing:
        raise ValueError(f"{path.name} is no {_WHAT}: it lacks {_named(missing)}; {_ADVICE}.")
    base_dim, in_channels = tensors["encoder.conv_in.weight"].shape[:2]
    out_channels, decoder_base_dim = tensors["decoder.conv_out.weight"].shape[:2]
    channels = tensors["decoder.conv_in.weight"].shape[1]
    residual = "decoder.up_blocks.0.upsampler.resample.1.weight" in tensors
    wanted = (48, 12, 12) if residual else (16, 3, 3)
    if (channels, in_channels, out_channels) != wanted:
        raise ValueError(
            f"{path.name} takes {in_channels} channels to {channels} latent ones and gives {out_channels}; "
            f"Wan {2.2 if residual else 2.1}'s autoencoder takes {wanted[1]} to {wanted[0]}: {_ADVICE}."
        )
    config = {
        "base_dim": base_dim,
        "decoder_base_dim": decoder_base_dim,
        "z_dim": channels,
        "in_channels": in_channels,
        "out_channels": out_channels,
    }
    if residual:
        config |= {"is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
        config |= {"latents_mean": STATISTICS[48][0], "latents_std": STATISTICS[48][1]}
    return config


def _named(keys: Any) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
