"""What a run may be told: knobs alone, so that a menu of them imports no network."""

from dataclasses import dataclass

from ..types import AnchorWeighting, Choose, KLThrough, knob


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
class IproSettings:
    """What is optimised; the defaults are the paper's, or the authors' where the paper is silent."""

    steps: int = knob(8, "Sampling steps.", min=1)
    shift: float = knob(5.0, "Shift of the noise schedule.", min=0.01)
    grad_steps: int = knob(4, "K: steps, counted from the end, that carry gradients (Eq. 4).", min=1)
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
    reward_weight: float = knob(0.1, "Weight of the face reward.", min=0)
    kl_weight: float = knob(1.0, "Weight of the KL anchor to the frozen model (Eq. 7).", min=0)
    kl_weighting: AnchorWeighting = knob(
        "sigma", "w'_t of Eq. 7: 'sigma' is 1 / (2 sigma²), the authors' code; 'uniform' is 1."
    )
    kl_through: KLThrough = knob(
        "detached", "The anchor's gradient through x_t: 'detached' none, 'exact', 'biased' the authors' code."
    )
    choose: Choose = knob(
        "tracked",
        "Whose face counts: 'tracked' the subject's, 'largest' each frame's largest, the authors' code.",
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
    reference_steps: int = knob(
        0,
        "Of the K steps, how many are compared with the frozen model, drawn anew each time; 0: all. Saves "
        "passes, right in expectation.",
        min=0,
    )
    reference_chance: float = knob(
        1.0,
        "How often a video is compared with the frozen model at all; where it is, the anchor counts for the "
        "others too. Below 1 saves passes, right in expectation.",
        min=0.01,
        max=1,
    )
    gradient_frames: int = knob(
        0,
        "Frames, drawn anew each time, through which the reward's gradient flows; 0: all. Saves decoding, "
        "right in expectation.",
        min=0,
    )
    random_grad_steps: bool = knob(False, "Draw K anew each time, between 1 and grad_steps; fewer passes.")
    low_variance: int = knob(
        0,
        "DRaFT-LV: gradients of the last step alone, averaged over this many renoised ends of one sampled "
        "video; 0: off.",
        min=0,
    )
    kept_passes: int = knob(
        1,
        "Of the K steps, from the end, how many passes keep what their gradient needs instead of being run "
        "again: each saves a pass. The last one's is there anyhow; each more costs its memory.",
        min=0,
    )
    microbatch: int = knob(
        1, "Videos of one shape that pass the network together: faster, more memory.", min=1
    )
