"""What a reward is, how frames without a face count, and the catalogue of rewards.

A reward is a frozen dataclass that can be called; its fields are its knobs. The file `face_pool.py` holds
`FacePoolReward`, which every menu calls `face-pool`: a new file of that form is found by itself.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..types import GeneratedVideo, PersonFaces, RewardScore

Missing = Literal["count", "skip"]
MISSING_HELP = (
    "Frames without a face: 'count' them as no better than a stranger, so that losing the face never pays; "
    "'skip' them, as the authors' code does, for comparison."
)


class Reward(Protocol):
    """Anything that scores a finished video: never a model or a codec."""

    def __call__(self, video: GeneratedVideo) -> RewardScore: ...


def has_gradient(reward: Reward) -> bool:
    """Whether what it says can be differentiated, as IPRO has to; `differentiable = False` on those that
    cannot."""
    return getattr(reward, "differentiable", True)


def asks_for_everybody(reward: Reward) -> bool:
    """Whether it looks at all faces, `GeneratedVideo.seen`; `everybody = True` on those that do."""
    return getattr(reward, "everybody", False)


def average_frames(s_T: Tensor, seen_T: Tensor | None, missing: Missing) -> tuple[Tensor, Tensor]:
    """The mean similarity of a video's frames (Eq. 6), where some frames may show no face.

    "count": an unseen frame scores min(s, 0), s being the similarity at the place where the face should be.
    That is never more than it would have scored if seen, and never more than a stranger gets: a subject who
    turns away, blurs or shrinks out of the detector's sight cannot raise the mean. The authors' mean over
    seen frames ("skip") rises when the worst frames are lost.

    Args:
        s_T: similarity of each frame, in [-1, 1].
        seen_T: bool; None if the face was seen in every frame.

    Returns:
        The mean (scalar), and what each frame counted for (T).
    """
    if seen_T is None:
        return s_T.mean(), s_T
    counted_T = torch.where(seen_T, s_T, s_T.clamp(max=0))
    if missing == "count":
        return counted_T.mean(), counted_T
    return (s_T * seen_T).sum() / seen_T.sum().clamp(min=1), counted_T


def average_people(
    video: GeneratedVideo, score: Callable[[PersonFaces], tuple[Tensor, Tensor]]
) -> RewardScore:
    """The mean over the people of a video; a frame counts as seen if every person is."""
    if not video.people:
        raise ValueError(
            "The video has nobody to score: give the face pool or reference of at least one person."
        )
    scores = [score(person) for person in video.people]
    each = tuple(
        RewardScore(value.detach(), per_frame_T.detach(), person.seen_T)
        for (value, per_frame_T), person in zip(scores, video.people, strict=True)
    )
    return RewardScore(
        value=torch.stack([value for value, _ in scores]).mean(),
        per_frame_T=torch.stack([per_frame_T for _, per_frame_T in scores]).nanmean(dim=0),
        seen_T=torch.stack([person.seen_T for person in video.people]).all(dim=0),
        people=each if len(each) > 1 else (),
    )


def reward_catalogue() -> dict[str, type]:
    """Every reward of this folder by name: `FacePoolReward` of `face_pool.py` is "face-pool"."""
    catalogue = {}
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{__package__}.{file.name}")
        class_name = file.name.title().replace("_", "") + "Reward"
        if hasattr(module, class_name):
            catalogue[file.name.replace("_", "-")] = getattr(module, class_name)
    return catalogue
