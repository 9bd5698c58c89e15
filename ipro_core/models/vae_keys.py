"""The two names of every tensor of Wan's autoencoders: the official one, ComfyUI's too, and diffusers'.

As for the network, a pure rename and a bijection: nothing is transposed, split or reshaped. `residual` tells
Wan 2.2's layout (48 channels, TI2V-5B) from Wan 2.1's (16 channels).
"""

from collections.abc import Iterator

STAGES = 4
BLOCKS = {"encoder": 2, "decoder": 3}
"""Residual blocks of each stage; after them, but for the last stage, a change of size."""

_RESNET = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}


def to_diffusers(official: str, *, residual: bool) -> str:
    """The diffusers name of a tensor; KeyError if the autoencoder has none of that name."""
    module, _, tensor = official.rpartition(".")
    return f"{_DIFFUSERS[residual][module]}.{tensor}"


def to_official(diffusers: str, *, residual: bool) -> str:
    """The official name of a tensor; KeyError if diffusers' autoencoder has none of that name."""
    module, _, tensor = diffusers.rpartition(".")
    return f"{_OFFICIAL[residual][module]}.{tensor}"


def _pairs(residual: bool) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(official, diffusers, names of what is inside)"""
    yield "", "", {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for half, way in (("encoder", "down"), ("decoder", "up")):
        yield f"{half}.", f"{half}.", {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        yield f"{half}.middle.0.", f"{half}.mid_block.resnets.0.", _RESNET
        yield f"{half}.middle.1.", f"{half}.mid_block.attentions.0.", _ATTENTION
        yield f"{half}.middle.2.", f"{half}.mid_block.resnets.1.", _RESNET
        for stage in range(STAGES):
            for part in range(BLOCKS[half] + 1):
                is_resnet = part < BLOCKS[half]
                # Wan 2.1 numbers the parts of all stages through, and diffusers keeps that in the encoder.
                flat = stage * (BLOCKS[half] + 1) + part
                inside = f"resnets.{part}" if is_resnet else f"{way}sampler{'' if residual else 's.0'}"
                yield (
                    f"{half}.{way}samples." + (f"{stage}.{way}samples.{part}." if residual else f"{flat}."),
                    f"{half}.{way}_blocks."
                    + (f"{stage}.{inside}." if residual or way == "up" else f"{flat}."),
                    _RESNET if is_resnet else _RESAMPLE,
                )


_DIFFUSERS = {
    residual: {
        official + name: diffusers + other
        for official, diffusers, inside in _pairs(residual)
        for name, other in inside.items()
    }
    for residual in (False, True)
}
_OFFICIAL = {residual: {name: key for key, name in names.items()} for residual, names in _DIFFUSERS.items()}
