"""What every run may be told, whatever its method: knobs alone, so that a menu of them imports no network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..types import Choose, knob

if TYPE_CHECKING:
    from ..models.plan_shape import Passes


@dataclass(frozen=True)
class LoopSettings:
    """How the adapter is optimised. An update is one optimiser step; a step is one of the sampler's."""

    updates: int = knob(100, "Optimiser steps in all.", min=1)
    batch_size: int = knob(64, "Videos sampled for one update.", min=1)
    learning_rate: float = knob(2e-5, "Adam's learning rate, reached after the warm-up.", min=0)
    warmup: int = knob(0, "Updates over which the learning rate rises to its value; 0: none.", min=0)
    last_rate: float = knob(
        1.0, "Share of the learning rate that the last update has, reached in a straight line.", min=0, max=1
    )
    averaging: float = knob(
        0.0,
        "Share of the past in a running average of the adapter, which is then what the run gives; 0: the "
        "adapter of the last update.",
        min=0,
        max=0.9999,
    )
    clip_norm: float = knob(0.0, "Largest norm of the adapter's gradient; 0: no limit.", min=0)
    seed: int = knob(0, "Decides the order of samples and all noise.", min=0)
    checkpoint_every: int = knob(10, "Updates between two saved states; one is also saved at the end.", min=1)


@dataclass(frozen=True)
class SamplingSettings:
    """How videos are sampled and their faces looked at; every method's settings add what is its own."""

    wants: ClassVar[tuple[str, ...]] = ("faces",)
    """What is made of each clip beside its text and first frame, see `Studio.prepare`."""
    samples: ClassVar[bool] = True
    """Whether the model's own videos are learnt from; else nothing is made ahead by a high-noise expert."""
    needs_gradient: ClassVar[bool] = False
    """Whether the reward's gradient is followed, so that the reward must have one."""
    title: ClassVar[str] = ""
    """The method's name for people."""
    plain: ClassVar[tuple[str, ...]] = ()
    """The knobs that everybody meets in a graph, beside the schedule."""

    steps: int = knob(8, "Sampling steps.", min=1)
    shift: float = knob(5.0, "Shift of the noise schedule.", min=0.01)
    first_tuned_step: int = knob(
        0,
        "The step from which the adapter is on; before it the frozen model samples, as Wan 2.2's high-noise "
        "expert does (3 of 8 steps at its boundary 0.9).",
        min=0,
    )
    boundary_seeds: int = knob(
        4,
        "Noises of each clip, where a high-noise expert of its own makes what lies before first_tuned_step: "
        "it does so once, into the cache.",
        min=1,
    )
    choose: Choose = knob(
        "tracked",
        "Whose face counts: 'tracked' the subject's, 'largest' each frame's largest, the authors' code.",
    )
    people: int = knob(
        1,
        "People of each clip whose faces count, each against the own pool: 1 the subject; more at most so "
        "many, the largest and most seen; 0 all of them.",
        min=0,
    )
    landmark_jitter: float = knob(
        0.0, "Noise on the five points, in pixels of the crop, so that no exact crop can be fitted.", min=0
    )
    pool_first_frame: bool = knob(True, "Whether the pool's faces of frame 0, the input image, count.")
    noise_seed: int = knob(
        -1,
        "-1: new noise for every draw, the expectation of Eq. 3. Else one noise for all, by this seed.",
        min=-1,
    )
    microbatch: int = knob(
        1, "Videos of one shape that pass the network together: faster, more memory.", min=1
    )

    def __post_init__(self) -> None:
        if self.people != 1 and self.choose == "largest":
            raise ValueError(
                "Several people are told apart by following them, and 'largest' is one face a frame: choose "
                "'tracked', or 1 for people."
            )

    def begins(self, switch: int) -> int:
        """The first tuned step, where the tuned network takes over at step `switch`: that one."""
        return switch

    def passes(self) -> "Passes":
        """How a video goes through the network, for the plan of memory and time."""
        raise NotImplementedError
