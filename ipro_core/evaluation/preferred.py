"""Pairs of videos to learn from, out of a blind study: what its voters prefer (Section 5.4)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..clips.scenes import ClipScene, PreferredScene
from ..types import Clip, Framing
from .preferences import failed_controls, for_first, votes_by_voter
from .study import Study
from .study_design import Trial


@dataclass(frozen=True)
class Preferred:
    """Two videos of one scene, and which of them the votes prefer."""

    trial: Trial
    winner: str
    """File names in the study's media."""
    loser: str
    share: float
    """Of the votes, no preference counting half to each; above one half."""


def preferred_videos(study: Study, question: str) -> list[Preferred]:
    """The pairs that counted voters have decided.

    Raises:
        ValueError: the question was not asked, or no pair is decided.
    """
    if question not in study.plan.questions:
        raise ValueError(f"The study asks {', '.join(study.plan.questions)}, not {question}.")
    trials, votes = votes_by_voter(study)
    shares: dict[str, list[float]] = {}
    for cast in votes.values():
        for vote in () if failed_controls(cast, trials) else cast:
            shares.setdefault(vote.trial, []).append(for_first(vote, trials[vote.trial], question))
    decided = []
    for trial in study.plan.trials:
        share = float(np.mean(shares.get(trial.id, 0.5)))
        if trial.kind == "pair" and share != 0.5:
            winner, loser = trial.videos if share > 0.5 else trial.videos[::-1]
            decided.append(Preferred(trial, winner, loser, max(share, 1 - share)))
    if not decided:
        raise ValueError(f"No pair of {study.folder} is decided on {question}: let more people vote.")
    return decided


VOTES = "study.json#"
"""Stands between a study's folder and the question, where a run tells what it was tuned on."""


def voted_place(study: Path, question: str) -> str:
    """What `voted_scenes` reads, in one word."""
    return f"{study.resolve() / VOTES}{question}"


def voted_scenes(place: str, framing: Framing) -> list[PreferredScene]:
    """The decided pairs as a model sees them.

    Raises:
        ValueError: there is no study, nothing is decided, or a video is too short.
    """
    folder, question = place.split(VOTES)
    study = Study.open(folder)
    media = study.folder / "media"

    def shown(trial: Trial, file: str) -> ClipScene:
        return ClipScene(Clip(media / file, trial.prompt), framing, trial.scene)

    return [
        PreferredScene(
            shown(one.trial, one.winner),
            shown(one.trial, one.loser),
            media / one.trial.image if one.trial.image else None,
        )
        for one in preferred_videos(study, question)
    ]
