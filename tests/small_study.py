"""A study that is made in a moment: small videos of moving colours, told apart by their method's colour."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ipro_core.clips.video import write_picture, write_video
from ipro_core.evaluation.ballots import Side, Vote
from ipro_core.evaluation.study import Study, VideoSet
from ipro_core.evaluation.study_design import Showing, StudySettings
from ipro_core.evaluation.study_server import StudyServer
from ipro_core.evaluation.study_videos import Take

COLOURS = {"base": (0.8, 0.2, 0.2), "tuned": (0.2, 0.7, 0.3), "other": (0.2, 0.3, 0.8)}


def video(method: str, scene: int, *, frames: int = 6, size: tuple[int, int] = (32, 48)) -> Tensor:
    """A bar that wanders over the method's colour, (T, 3, H, W)."""
    frames_TCHW = torch.tensor(COLOURS[method])[None, :, None, None].expand(frames, 3, *size).clone()
    for t in range(frames):
        frames_TCHW[t, :, :, 4 * scene + 3 * t : 4 * scene + 3 * t + 6] = 0.95
    return frames_TCHW


def small_study(
    folder: Path,
    *,
    scenes: int = 4,
    methods: Sequence[str] = ("base", "tuned"),
    questions: Sequence[str] = ("identity", "quality"),
    frames: int = 6,
    size: tuple[int, int] = (32, 48),
    **settings: int,
) -> Study:
    study = Study.create(folder, "Which is better?", questions, StudySettings(**{"seed": 5, **settings}))
    for scene in range(scenes):
        takes = {method: Take(video(method, scene, frames=frames, size=size), 12.0) for method in methods}
        first = next(iter(takes.values())).frames_TCHW[0]
        study.add(VideoSet(f"scene {scene}", takes, first, f"a bar wanders, {scene}"))
    return study


def video_folder(place: Path, scenes: Sequence[str], methods: Sequence[str] = ("base", "tuned")) -> Path:
    """Videos as `ipro sample` leaves them."""
    for method in methods:
        (place / method).mkdir(parents=True)
        for index, scene in enumerate(scenes):
            write_video(place / method / f"{scene}.mp4", video(method, index), 12.0)
    (place / "inputs").mkdir()
    for index, scene in enumerate(scenes):
        write_picture(place / "inputs" / f"{scene.partition('@')[0]}.png", video(methods[0], index)[0])
    return place


@contextmanager
def serving(study: Study, host: str = "127.0.0.1") -> Iterator[StudyServer]:
    """Its server, while it is needed."""
    with StudyServer(study, host) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def vote_for(study: Study, voter: str, showing: Showing, method: str) -> Vote:
    """For a method on every question, or for neither: method "", and where the method is not shown."""
    left, right = (showing.trial.methods[side] for side in showing.sides)
    side: Side = (
        "none" if left == right or method not in (left, right) else "left" if left == method else "right"
    )
    return Vote(voter, showing.trial.id, left, right, dict.fromkeys(study.plan.questions, side))
