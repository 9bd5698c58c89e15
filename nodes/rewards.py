"""Rewards: one node for each reward of the core's catalogue (Sections 4.1 and 4.2, Eq. 5 and 6)."""

import inspect
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..ipro_core.rewards.base import reward_catalogue
from ..ipro_core.rewards.weighted_sum import Part, WeightedSum
from ..ipro_core.types import FacePool, GeneratedVideo
from . import _comfy
from ._sockets import FACE_MODELS, FACE_POOL, REWARD, frames_of
from ._widgets import settings_of, widgets

CATEGORY = "3 Rewards"
FOR = "For IPRO Objective, Combine Rewards and Score Video."


def reward_node(name: str, kind: type) -> type[io.ComfyNode]:
    """The node of one reward: its knobs in, the reward out."""

    class RewardNode(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return _comfy.schema(
                kind.__name__,
                f"{name.replace('-', ' ').title()} Reward",
                CATEGORY,
                " ".join(inspect.getdoc(kind).split()),  # type: ignore[union-attr]
                inputs=widgets(kind),
                outputs=[REWARD.Output(display_name="reward", tooltip=FOR)],
            )

        @classmethod
        def execute(cls, **knobs: Any) -> io.NodeOutput:
            return io.NodeOutput(settings_of(kind, knobs))

    RewardNode.__name__ = RewardNode.__qualname__ = kind.__name__
    return RewardNode


class CombineRewards(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "CombineRewards",
            "Combine Rewards",
            CATEGORY,
            "Several rewards as one: their sum, each times its weight. The objective's reward_weight then "
            "weighs the sum against the KL anchor.",
            inputs=[
                part
                for n in (1, 2, 3, 4)
                for part in (
                    REWARD.Input(f"reward_{n}", tooltip="One of the rewards.", optional=n > 2),
                    io.Float.Input(
                        f"weight_{n}",
                        default=1.0,
                        min=-10.0,
                        max=10.0,
                        step=0.05,
                        tooltip="What it is multiplied by; below 0 it is avoided.",
                    ),
                )
            ],
            outputs=[REWARD.Output(display_name="reward", tooltip=FOR)],
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        parts = [(given[f"weight_{n}"], given.get(f"reward_{n}")) for n in (1, 2, 3, 4)]
        return io.NodeOutput(WeightedSum(tuple(Part(weight, one) for weight, one in parts if one)))


class ScoreVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "ScoreVideo",
            "Score Video",
            CATEGORY,
            "What a reward says of a video. One that shows no face scores what a stranger would, and is "
            "told.",
            inputs=[
                io.MultiType.Input("video", [io.Image, io.Video], tooltip="The video to score."),
                FACE_MODELS.Input("face_models", tooltip="The pack that built the pool."),
                FACE_POOL.Input("pool", tooltip="Whose face it should be."),
                REWARD.Input("reward", tooltip="How to score."),
            ],
            outputs=[
                io.Float.Output(display_name="score", tooltip="Eq. 6: at most the pool's ceiling."),
                io.Float.Output(
                    display_name="coverage", tooltip="The share of the frames that show the face."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("give a shorter or smaller video.")
    def execute(cls, video, face_models: Path, pool: FacePool, reward) -> io.NodeOutput:
        from ..ipro_core.faces.packs import load_face_models
        from ..ipro_core.faces.tracks import person_faces, see_faces
        from ..ipro_core.rewards.base import asks_for_everybody

        if not len(pool.embeddings_PD):
            return io.NodeOutput(
                0.0, 0.0, ui={"ipro_warning": ["The pool is empty: there is nobody to compare with."]}
            )
        models = load_face_models(face_models)
        if models[1].name != pool.recognizer:
            raise ValueError(
                f"The pool was built with {pool.recognizer}, not with {models[1].name}: give that pack."
            )
        first_D, frames = pool.embeddings_PD[0], frames_of(video)
        person = person_faces(frames, *models, pool=pool, reference_D=first_D)
        seen = see_faces(frames, *models) if asks_for_everybody(reward) else None
        score = reward(GeneratedVideo((person,), frames_TCHW=frames, seen=seen))
        coverage = person.seen_T.float().mean().item()
        warning = [] if person.seen_T.any() else ["The video shows no face."]
        return io.NodeOutput(score.value.item(), coverage, ui={"ipro_warning": warning})


NODES = [reward_node(name, kind) for name, kind in sorted(reward_catalogue().items())]
NODES += [CombineRewards, ScoreVideo]
