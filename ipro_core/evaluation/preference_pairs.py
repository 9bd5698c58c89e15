"""Pairs of videos of which one keeps people better: clips beside themselves distorted, and a study's votes.

What a head is trained on and tested with (`rewards/preference.py`). A pair holds no frames, only everybody's
faces and whom they should show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..clips.video import read_frames, read_image
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import follow_people, see_faces, track_of
from ..types import FaceTrack, SeenFaces
from .distortions import ALONE, DISTORTIONS
from .study import Study

QUESTION = "identity"
SEEN = 0.5
"""Share of the frames that must show a person who counts."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two videos of the same people."""

    scene: str
    kind: str
    """The distortion; "study" of a vote."""
    people: tuple[Tensor, ...]
    """What each is known by, (P, D)."""
    first: SeenFaces
    second: SeenFaces
    share: float = 1.0
    """How often the first is preferred: 1/2 for a tie."""


def clip_pairs(
    scene: str,
    frames_TCHW: Tensor,
    detector: Detector,
    recognizer: Recognizer,
    *,
    kinds: Sequence[str] = tuple(DISTORTIONS),
    seed: int = 0,
) -> Iterator[Pair]:
    """A clip before itself distorted, and distorted a little before distorted much: two pairs of each kind. A
    clip that shows one person is bent only, one that shows nobody gives nothing."""
    generator = torch.Generator().manual_seed(seed)
    clean = see_faces(frames_TCHW, detector, recognizer)
    tracks, people = _people(clean)
    for kind in kinds:
        if not tracks or (len(tracks) < 2 and kind not in ALONE):
            continue
        little, much = (torch.rand(2, generator=generator) * 0.5 + torch.tensor([0.2, 0.5])).tolist()
        spot = generator.get_state()
        harmed = []
        for strength in (little, max(much, little + 0.1)):
            generator.set_state(spot)  # both harm the same people in the same way
            worse_TCHW = DISTORTIONS[kind](frames_TCHW, tracks, strength, generator)
            harmed.append(see_faces(worse_TCHW, detector, recognizer))
        yield Pair(scene, kind, people, clean, harmed[0])
        yield Pair(scene, kind, people, *harmed)


def _people(clean: SeenFaces) -> tuple[list[FaceTrack], tuple[Tensor, ...]]:
    """The tracks of those who are seen often enough, and their faces."""
    often = [
        followed
        for followed in follow_people(clean.detections, clean.embeddings)
        if len(followed) >= SEEN * len(clean.detections)
    ]
    tracks = [
        track_of({t: clean.detections[t][face] for t, face in followed.items()}, len(clean.detections))
        for followed in often
    ]
    faces = [torch.stack([clean.embeddings[t][face] for t, face in followed.items()]) for followed in often]
    return tracks, tuple(faces)


def study_pairs(folder: Path | str, detector: Detector, recognizer: Recognizer) -> Iterator[Pair]:
    """Every vote on identity between two methods, the people being those of the input image, or where there
    is none of the first frame.

    Raises:
        ValueError: there is no study in the folder, or it did not ask about identity.
    """
    study = Study.open(folder)
    if QUESTION not in study.plan.questions:
        raise ValueError(f"The study in {folder} did not ask about {QUESTION}: give one that did.")
    trials = {trial.id: trial for trial in study.plan.trials if trial.kind == "pair"}
    seen: dict[str, SeenFaces] = {}

    def see(name: str) -> SeenFaces:
        if name not in seen:
            seen[name] = see_faces(read_frames(study.folder / "media" / name), detector, recognizer)
        return seen[name]

    for vote in study.ballots.votes():
        trial = trials.get(vote.trial)
        if trial is None or QUESTION not in vote.answers:
            continue
        videos = dict(zip(trial.methods, map(see, trial.videos), strict=True))
        if trial.image:
            image_CHW = read_image(study.folder / "media" / trial.image)
            (known_FD,) = see_faces(image_CHW[None], detector, recognizer).embeddings
        else:
            known_FD = videos[trial.methods[0]].embeddings[0]
        share = {"left": 1.0, "none": 0.5, "right": 0.0}[vote.answers[QUESTION]]
        if len(known_FD):
            yield Pair(trial.scene, "study", known_FD.split(1), videos[vote.left], videos[vote.right], share)
