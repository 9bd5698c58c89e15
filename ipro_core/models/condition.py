"""What Wan's networks are told beside x and t: the prompt, and the first frame as each kind takes it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import VideoCodec


@dataclass(frozen=True, eq=False)
class WanCondition:
    """What Wan's network is told besides x and t; of x's batch size. Without an image: text to video."""

    text_BLD: Tensor
    """The prompt's embedding by the text encoder (UMT5: L = 512, D = 4096, zeros after the prompt)."""
    image_BCTHW: Tensor | None = None
    """I2V-A14B and 2.1: the channels after x's own, 4 of mask and the latents of the first frame's clip."""
    clip_BLD: Tensor | None = None
    """2.1 image-to-video: the first frame by CLIP's vision encoder, its last layer but one (257, 1280)."""
    first_BC1HW: Tensor | None = None
    """TI2V-5B: the first frame's latents, which the video begins with."""


def wan_condition(told: Mapping[str, Tensor]) -> WanCondition:
    """Of batch size 1, from `text` (L, D) and from what `first_frame` gave, without its batch axis."""
    image, first = told.get("image"), told.get("first")
    return WanCondition(
        told["text"][None],
        None if image is None else image[None],
        first_BC1HW=None if first is None else first[None],
    )


def first_frame(codec: VideoCodec, first_frames_BCHW: Tensor, frames: int, kind: str) -> dict[str, Tensor]:
    """What a model of that kind (`WanFile.kind`) is told of first frames: `image`, `first` or nothing."""
    if kind.startswith("T2V"):
        return {}
    if kind == "TI2V-5B":
        return {"first": codec.encode(first_frames_BCHW[:, None])}
    return {"image": image_condition(codec, first_frames_BCHW, frames)}


@torch.no_grad()
def image_condition(codec: VideoCodec, first_frames_BCHW: Tensor, frames: int) -> Tensor:
    """`WanCondition.image_BCTHW` for videos of that many frames which begin with these.

    As Wan has it, the picture is encoded as a whole clip whose unknown frames are mid-grey; the mask is 1 on
    the first latent frame (4 channels, one for each frame that a latent frame stands for).
    """
    clip_BTCHW = first_frames_BCHW.new_full(
        (len(first_frames_BCHW), frames, *first_frames_BCHW.shape[1:]), 0.5
    )
    clip_BTCHW[:, 0] = first_frames_BCHW
    latents_BCTHW = codec.encode(clip_BTCHW)
    mask_BCTHW = torch.zeros_like(latents_BCTHW[:, :1]).repeat(1, 4, 1, 1, 1)
    mask_BCTHW[:, :, 0] = 1
    return torch.cat([mask_BCTHW, latents_BCTHW], dim=1)
