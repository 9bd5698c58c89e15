"""Settings that belong together: the paper's, its released code's, and the embedded world's.

"Code" is alibaba/ROLL before v0.3.0, roll/pipeline/diffusion/: `config` reward_fl/reward_fl_config.yaml,
`module` modules/wan_module.py, `tools` face_tools.py.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..rewards.base import Reward, has_gradient, reward_catalogue
from ..rewards.face_pool import FacePoolReward
from ..rewards.weighted_sum import reward_config, reward_of
from ..types import Framing
from .base import method_catalogue, method_of
from .ipro import IproSettings
from .settings import LoopSettings, SamplingSettings


@dataclass(frozen=True)
class Preset:
    loop: LoopSettings
    method: SamplingSettings
    reward: Reward
    rank: int
    """Of the LoRA; alpha is the same."""
    framing: Framing = Framing()
    """Of Wan's videos; the embedded world has a size of its own."""

    def __post_init__(self) -> None:
        if self.method.needs_gradient and not has_gradient(self.reward):
            name = reward_config(self.reward)["name"]
            raise ValueError(
                f"{self.method.title} follows the reward's gradient, and {name} has none: choose another "
                "reward, or a method that wants none, such as GRPO."
            )

    def changed(self, **settings: Any) -> "Preset":
        """With some knobs set anew, by their names alone; `reward` and `method` take names of the catalogues.

        Another method keeps what all of them share, the schedule and how faces are looked at, but for what it
        has its own value of.

        Raises:
            ValueError: there is no such reward, method or knob.
        """
        reward: Any = self.reward
        if name := settings.pop("reward", None):
            if name not in reward_catalogue():
                raise ValueError(f"There is no reward {name}: choose {', '.join(reward_catalogue())}.")
            kind = reward_catalogue()[name]
            kept = {f.name: getattr(reward, f.name) for f in fields(kind) if hasattr(reward, f.name)}
            reward = kind(**kept)

        method: Any = self.method
        if name := settings.pop("method", None):
            if name not in method_catalogue():
                raise ValueError(f"There is no method {name}: choose {', '.join(method_catalogue())}.")
            kind = method_catalogue()[name]
            if type(method) is not kind:
                own = kind.__dataclass_fields__
                shared = [f.name for f in fields(SamplingSettings) if own[f.name].default == f.default]
                method = kind(**{name: getattr(method, name) for name in shared})

        def of(part: Any) -> dict[str, Any]:
            return {f.name: settings.pop(f.name) for f in fields(part) if f.name in settings}

        preset = Preset(
            replace(self.loop, **of(self.loop)),
            replace(method, **of(method)),
            replace(reward, **of(reward)),
            settings.pop("rank", self.rank),
            replace(self.framing, **of(self.framing)),
        )
        if settings:
            raise ValueError(
                f"{method_of(method)} has no setting {', '.join(settings)}: `ipro train --help` lists each "
                "method's."
            )
        return preset

    def config(self) -> dict[str, Any]:
        """As config.json keeps it."""
        name = method_of(self.method)
        parts = {"loop": asdict(self.loop), name: asdict(self.method), "framing": asdict(self.framing)}
        return {"rank": self.rank, "reward": reward_config(self.reward), "method": name, **parts}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preset":
        """What `config` wrote."""
        name, loop = config.get("method", "ipro"), LoopSettings(**config["loop"])
        if name not in method_catalogue():
            raise ValueError(
                f"The run is of a method {name}, which is not here: take the version that began it."
            )
        method, reward = method_catalogue()[name](**_renamed(config[name])), reward_of(config["reward"])
        return cls(loop, method, reward, config["rank"], Framing(**config.get("framing", {})))


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run that was begun before estimators had names."""
    settings = dict(settings)
    if settings.pop("random_grad_steps", False):
        settings["estimator"] = "alignprop"
    if ends := settings.pop("low_variance", 0):
        settings |= {"estimator": "draft-lv", "renoised_ends": ends}
    return settings


PAPER = Preset(
    LoopSettings(
        updates=100,  # 5.1
        batch_size=64,  # 5.1
        learning_rate=2e-5,  # 5.1, "Adam"; its moments' rates are not named: torch's 0.9, 0.999
    ),
    IproSettings(
        steps=8,  # 5.1, Wan2.2-Lightning without classifier-free guidance
        shift=5.0,  # code, euler.py:16-21; the paper names none
        first_tuned_step=3,  # 5.1, all but the low-noise expert is frozen; Wan's boundary 0.9
        grad_steps=4,  # 5.1
        reward_weight=0.1,  # 5.1
        kl_weight=1.0,  # 5.1
        kl_weighting="sigma",  # w'_t is open in Eq. 7; module:69-79, averaged over the K steps
        kl_through="detached",  # open in Eq. 7; the code's own way is 5 to 9 % off the exact gradient
    ),
    FacePoolReward(),  # Eq. 5, 6; frames without a face, where the paper is silent, never pay
    rank=32,  # config:27-67; the paper does not say that it trains a LoRA
)

AUTHORS_CODE = Preset(
    LoopSettings(
        updates=100,  # 5.1; config saves every 25
        batch_size=8,  # config:27-67, 8 GPUs with 1 each
        learning_rate=2.5e-6,  # config:27-67
        warmup=10,  # config:27-67
        clip_norm=1.0,  # config:27-67
    ),
    IproSettings(
        steps=8,  # euler.py:49-61
        shift=5.0,  # euler.py:16-21
        first_tuned_step=3,  # module:52-55, the low-noise expert from t < 900
        grad_steps=4,  # config:45-47, steps 4 to 7 of 0 to 7
        reward_weight=0.1 / 0.16,  # module:285-286, −(score − 0.54) / 0.16 · 0.1; the offset has no gradient
        kl_weight=1.0,  # module:93
        kl_weighting="sigma",  # module:69-79
        kl_through="biased",  # module:69-79, v_ref without gradient at an x_t that has one
        choose="largest",  # tools:280-281, 338-361
        pool_first_frame=False,  # tools:447-456
        noise_seed=24,  # module:42
    ),
    FacePoolReward(missing="skip"),  # module:268-270, tools:459-461
    rank=32,  # config:27-67
    framing=Framing(480, 480, 81),  # reward_fl_pipeline.py:51-61, an area of at most 480 · 480, 81 frames
)
"""Not reproduced, being faults: red and blue swapped before ArcFace, the crop half a pixel off, latents
rounded to bfloat16 after every step."""

TINY = Preset(
    LoopSettings(
        updates=270,  # with the judging, eleven minutes of one core
        batch_size=10,  # measured: with 6, noise moves the adapter more than the reward does
        # Measured on 48 scenes of "checks", 300 updates: FaceSim +0.153 with 0.90 of the motion; at 1.3e-3
        # with a KL weight of 0.22 and averaging 0.95 +0.124 with all of it.
        learning_rate=1.5e-3,
        last_rate=0.4,
        averaging=0.97,  # measured: +0.002 over the last adapter
        checkpoint_every=20,
    ),
    IproSettings(
        steps=8,  # 5.1
        shift=5.0,  # measured: the base model is best there, before 3 and 2
        grad_steps=4,  # 5.1
        first_tuned_step=4,  # every tuned step is a gradient step
        reward_weight=1.0,  # prototype
        kl_weight=0.2,
        kl_weighting="uniform",  # prototype
        reference_steps=1,  # a third more updates in the same time
        kept_passes=4,  # fits any machine
        microbatch=10,  # fits any machine
    ),
    FacePoolReward(),
    rank=16,
)

LOCAL_14B = Preset(
    LoopSettings(
        updates=100,  # 5.1
        batch_size=8,  # config:27-67
        learning_rate=2.5e-6,  # config:27-67, which goes with a batch of 8
        warmup=10,  # config:27-67
        clip_norm=1.0,  # config:27-67
        checkpoint_every=2,  # an update takes minutes
    ),
    replace(
        PAPER.method,
        reference_steps=1,  # 3 passes fewer, right in expectation
        reference_chance=0.5,  # 1.2 passes fewer on average, right in expectation
        boundary_seeds=4,  # 800 videos of 50 clips: each of the 200 beginnings is used 4 times
    ),
    FacePoolReward(),
    rank=32,  # config:27-67
    framing=Framing(576, 320, 33),  # 6480 tokens
)
"""I2V-A14B on a card of 24 GB. Estimated, not measured: a video takes 18 passes of 0.19 PFLOP and 0.1 for the
VAE, so 100 updates of 8 take 8 hours at 100 TFLOP/s and 10 at 80; each clip and noise 6 seconds before."""

LOCAL_5B = replace(
    LOCAL_14B,
    method=replace(LOCAL_14B.method, first_tuned_step=0),  # one network for all steps
    framing=Framing(832, 480, 33),  # 3510 tokens
)
"""TI2V-5B on such a card. Estimated, not measured: a video takes 22 passes of 0.04 PFLOP and 0.4 for the VAE,
so 100 updates of 8 take 3 hours at 100 TFLOP/s and 3½ at 80."""

PRESETS = {
    "paper": PAPER,
    "authors-code": AUTHORS_CODE,
    "local-14b": LOCAL_14B,
    "local-5b": LOCAL_5B,
    "tiny": TINY,
}
