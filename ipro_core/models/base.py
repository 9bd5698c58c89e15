"""What sampling and training know of a video model: small protocols."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

if TYPE_CHECKING:
    from .lora_keys import LowRank


class VideoModel(Protocol):
    """A velocity network with a trainable adapter (v_θ and v_ref of Eq. 7).

    `condition` is opaque to sampling: text, first frame, whatever the network wants, of x's batch size.
    """

    def velocity(self, x_BCTHW: Tensor, sigma: float, condition: Any) -> Tensor:
        """v_θ(x, t) with t = 1000 sigma; differentiable in x and in the adapter. Same shape as x."""
        ...

    def frozen_velocity(self, x_BCTHW: Tensor, sigma: float, condition: Any) -> Tensor:
        """v_ref(x, t): the same weights with our adapter off. Differentiable in x if grad mode is on."""
        ...

    def adapter_parameters(self) -> Mapping[str, Parameter]:
        """The tensors that are trained, and no others, by name."""
        ...


class AdaptedModel(Protocol):
    """What a model must offer to have its adapter exported and imported."""

    linears: dict[str, Linear]

    @property
    def path(self) -> Path: ...
    @property
    def base_sha256(self) -> str: ...
    def adapter(self) -> "dict[str, LowRank]": ...
    def place_adapter(self, layers: "Mapping[str, LowRank]", *, frozen: bool = False) -> None: ...
    def frozen_shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def change_frozen(self, differences: Mapping[str, Tensor]) -> None: ...


class AdaptedVideoModel(VideoModel, AdaptedModel, Protocol):
    """One whose adapter a job begins, puts in its place and takes out."""

    def new_adapter(self, rank: int, *, seed: int = 0) -> None:
        """A fresh adapter in the place of ours, with which v_θ begins as v_ref."""
        ...


class VideoCodec(Protocol):
    """A video autoencoder. Latents are in the units the network works in (normalised)."""

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames in [0, 1] → latents (B, C, T', H', W')."""
        ...

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Latents → frames (B, T, 3, H, W) in about [0, 1]; not clamped: a clamped pixel has no gradient."""
        ...

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        """The vector-Jacobian product of `decode`: d/d latents of ⟨gradient, decode(latents)⟩."""
        ...


def recalling(model: VideoModel) -> Callable[[int], AbstractContextManager[None]]:
    """Contexts for the passes of one update, by their numbers: within, v_θ's first run, without a gradient,
    may leave what spares the second one work. Both see the same x; a model may do without."""
    own = getattr(model, "recalling", None)
    return own() if own is not None else lambda number: nullcontext()


PASSES = ("velocity", "frozen_velocity", "velocities")


class Watched:
    """A model like the one it is given, but before each pass of the network it looks whether to go on."""

    def __init__(self, model: Any, look: Callable[[], None]) -> None:
        self._model, self._look = model, look

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if name not in PASSES:
            return found

        def looked(*arguments: Any, **more: Any) -> Any:
            self._look()
            return found(*arguments, **more)

        return looked


def watched(model: Any, look: Callable[[], None]) -> Any:
    """The model, every pass of which begins with `look`: what that raises ends the work within one step, and
    whoever iterates over the work's parts is left with those that were finished."""
    return Watched(model, look)


Result = TypeVar("Result")
Judge = Callable[[Tensor], tuple[Result, Tensor]]
"""Frames (1, T, 3, H, W) → what there is to say of them, and the gradient of it with respect to them."""


def pull(codec: VideoCodec, latents_BCTHW: Tensor, judge: Judge[Result]) -> tuple[Result, Tensor]:
    """What the judge says of one video, and its gradient pulled back to the latents.

    A codec that shows the judge less than the whole truth has a `pull` of its own, which sees to it that the
    gradient is true.
    """
    own = getattr(codec, "pull", None)
    if own is not None:
        return own(latents_BCTHW, judge)
    result, gradient_BTCHW = judge(codec.decode(latents_BCTHW))
    return result, codec.pullback(latents_BCTHW, gradient_BTCHW)


def pullback_by_autograd(codec: VideoCodec, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
    """`VideoCodec.pullback` for a codec small enough to be differentiated whole."""
    with torch.enable_grad():
        latents = latents_BCTHW.detach().requires_grad_()
        (pulled,) = torch.autograd.grad(codec.decode(latents), latents, gradient_BTCHW)
    return pulled
