"""A draft of the whole video, and Wan's own decoder where the faces are: a VideoCodec for TI2V-5B.

Decoding the whole video costs six passes of TI2V-5B's network, a tiny autoencoder's draft a fiftieth of one.
So faces are looked for in the draft, and only the box around them is decoded truly, exactly (`vae_box`). The
frames that the reward gets are the draft's with that box laid over them. Its gradient is the true one as long
as it lies inside the box; where it does not, the reward saw draft pixels: the video is then decoded whole and
judged again, so that no gradient is ever taken on a draft.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from .base import Judge, Result
from .taehv import DraftCodec
from .vae import WanVae
from .vae_decoder import Window

_log = logging.getLogger("ipro")

Find = Callable[[Tensor], Window | None]
"""Frames (T, 3, H, W) → the box around all that a reward may look at in any of them; None: there is none."""


class DraftedVae:
    """`VideoCodec` whose frames are true inside one box, and a draft's outside of it."""

    def __init__(self, vae: WanVae, draft: DraftCodec, find: Find) -> None:
        """
        Raises:
            ValueError: the draft's network is for other latents.
        """
        if draft.channels != vae.channels:
            raise ValueError(
                f"The draft is for latents of {draft.channels} channels, the autoencoder's have "
                f"{vae.channels}: choose taew2_2 for TI2V-5B, taew2_1 for the others."
            )
        self.vae, self.draft, self.find = vae, draft, find
        self.judged, self.judged_again = 0, 0
        """Videos so far, and those that had to be decoded whole."""

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Wan's own."""
        return self.vae.encode(frames_BTCHW)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Latents → frames (B, 1 + 4k, 3, H, W), true inside the box that each video's draft led to."""
        frames_BTCHW = self._drafts(latents_BCTHW)
        for latents, frames in zip(latents_BCTHW.split(1), frames_BTCHW.split(1), strict=True):
            box = self.find(frames[0])
            if box is not None:
                _inside(frames, box).copy_(self.vae.look(latents, box)[0])
        return frames_BTCHW

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        """The true decoder's, wherever the gradient lies."""
        return self.vae.pullback(latents_BCTHW, gradient_BTCHW)

    def pull(self, latents_BCTHW: Tensor, judge: Judge[Result]) -> tuple[Result, Tensor]:
        """What the judge says of one video, and its gradient pulled back; the box is decoded once for both.

        The draft shows no face: the judge gets it as it is, and will find none.
        """
        self.judged += 1
        frames_BTCHW = self._drafts(latents_BCTHW)
        box, pull = self.find(frames_BTCHW[0]), None
        if box is not None:
            truth_BTCHW, pull = self.vae.look(latents_BCTHW, box)
            _inside(frames_BTCHW, box).copy_(truth_BTCHW)
        result, gradient_BTCHW = judge(frames_BTCHW)
        wanted_T = (gradient_BTCHW[0] != 0).flatten(1).any(1)  # NaN counts, and comes out as NaN
        if not wanted_T.any():
            return result, torch.zeros_like(latents_BCTHW)
        if pull is not None and box is not None:
            inside_BTCHW = _inside(gradient_BTCHW, box)
            if inside_BTCHW.count_nonzero() == gradient_BTCHW.count_nonzero():
                return result, pull(inside_BTCHW[:, : int(wanted_T.nonzero()[-1]) + 1])
        if not self.judged_again:
            _log.warning("A reward looked beside the faces of the draft; such videos are decoded whole.")
        self.judged_again += 1
        result, gradient_BTCHW = judge(self.vae.decode(latents_BCTHW))
        return result, self.vae.pullback(latents_BCTHW, gradient_BTCHW)

    @torch.no_grad()
    def _drafts(self, latents_BCTHW: Tensor) -> Tensor:
        return self.draft.decode(latents_BCTHW)


def _inside(frames_BTCHW: Tensor, box: Window) -> Tensor:
    top, bottom, left, right = box
    return frames_BTCHW[..., top:bottom, left:right]
