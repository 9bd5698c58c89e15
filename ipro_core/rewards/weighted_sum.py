"""Several rewards as one, and any reward as config.json keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from ..types import GeneratedVideo, RewardScore
from .base import Reward, asks_for_everybody, has_gradient, reward_catalogue

NAME = "weighted-sum"


class Part(NamedTuple):
    weight: float
    reward: Reward


@dataclass(frozen=True)
class WeightedSum:
    """The sum of rewards, each times its weight. None of the catalogue's, because its parts are no knobs."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not any(part.weight for part in self.parts):
            raise ValueError("A sum of rewards wants at least one whose weight is not 0.")

    @property
    def differentiable(self) -> bool:
        return all(has_gradient(part.reward) for part in self.parts if part.weight)

    @property
    def everybody(self) -> bool:
        return any(asks_for_everybody(part.reward) for part in self.parts if part.weight)

    def __call__(self, video: GeneratedVideo) -> RewardScore:
        weights = [part.weight for part in self.parts if part.weight]
        return _summed(weights, [part.reward(video) for part in self.parts if part.weight])


def _summed(weights: Sequence[float], scores: Sequence[RewardScore]) -> RewardScore:
    weighted = list(zip(weights, scores, strict=True))
    # A frame of which one reward says nothing (NaN) is told by the others.
    per_frame_ST = torch.stack([weight * score.per_frame_T for weight, score in weighted])
    return RewardScore(
        value=torch.stack([weight * score.value for weight, score in weighted]).sum(),
        per_frame_T=per_frame_ST.nansum(dim=0),
        seen_T=torch.stack([score.seen_T for score in scores]).all(dim=0),
        # Nobody, where a reward knows no people.
        people=tuple(
            _summed(weights, each) for each in zip(*(score.people for score in scores), strict=False)
        ),
    )


def reward_config(reward: Any) -> dict[str, Any]:
    """A reward by its name in the catalogue and its knobs."""
    if isinstance(reward, WeightedSum):
        parts = [{"weight": part.weight, **reward_config(part.reward)} for part in reward.parts]
        return {"name": NAME, "parts": parts}
    name = next(name for name, kind in reward_catalogue().items() if isinstance(reward, kind))
    return {"name": name, **asdict(reward)}


def reward_of(config: Mapping[str, Any]) -> Reward:
    """What `reward_config` told."""
    knobs = dict(config)
    name = knobs.pop("name")
    if name == NAME:
        return WeightedSum(tuple(_part(**part) for part in knobs["parts"]))
    return reward_catalogue()[name](**knobs)


def _part(weight: float, **config: Any) -> Part:
    return Part(weight, reward_of(config))
