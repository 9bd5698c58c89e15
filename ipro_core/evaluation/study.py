"""A blind study on disk: what is asked, and videos that tell nothing of who made them (Section 5.4, Fig. 9).

study.json     the plan: which method made what. It never leaves this machine.
media/         the videos and input images, encoded anew under drawn names
voters.jsonl, votes.jsonl     see `ballots`
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from secrets import randbits, token_hex

from torch import Tensor

from ..clips.video import read_image, write_picture, write_video
from ..files import fingerprint, sha256, write_atomically
from .ballots import Ballots
from .study_design import QUESTIONS, Kind, Showing, StudySettings, Trial, ballot
from .study_videos import Take, alike, shrunk, spoilt


@dataclass(frozen=True)
class VideoSet:
    """Every method's video of one scene, from the same input and, if they know of one, the same seed."""

    scene: str
    videos: Mapping[str, Path | Take]
    """By method."""
    image: Path | Tensor | None = None
    """The input image."""
    prompt: str = ""


@dataclass(frozen=True)
class Plan:
    """study.json."""

    id: str
    """Its address: nobody finds a study who was not given it."""
    title: str
    questions: tuple[str, ...]
    settings: StudySettings
    trials: tuple[Trial, ...] = ()
    sets: tuple[str, ...] = ()
    """What tells each set of videos, so that none is added twice."""

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(name for trial in self._pairs for name in trial.methods))

    @property
    def scenes(self) -> list[str]:
        return list(dict.fromkeys(trial.scene for trial in self._pairs))

    @property
    def _pairs(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.kind == "pair"]


class Study:
    """A study's folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, self.ballots = folder, plan, Ballots(folder)

    @classmethod
    def create(
        cls,
        folder: Path | str,
        title: str,
        questions: Sequence[str],
        settings: StudySettings | None = None,
    ) -> "Study":
        """An empty study, for `add`.

        Raises:
            ValueError: the folder holds one already, or a question is unknown.
        """
        folder = Path(folder)
        unknown = [name for name in questions if name not in QUESTIONS]
        if unknown or not questions:
            raise ValueError(
                f"A study asks some of {', '.join(QUESTIONS)}, not {', '.join(unknown) or 'nothing'}."
            )
        if (folder / "study.json").exists():
            raise ValueError(f"{folder} holds a study: name another folder, or remove that one.")
        (folder / "media").mkdir(parents=True, exist_ok=True)
        settings = settings or StudySettings()
        settings = replace(settings, seed=settings.seed or randbits(48))
        study = cls(folder, Plan(token_hex(16), title, tuple(questions), settings))
        study._write(study.plan)
        return study

    @classmethod
    def make(
        cls,
        folder: Path | str,
        title: str,
        questions: Sequence[str],
        settings: StudySettings,
        sets: Iterable[VideoSet],
    ) -> "Study":
        """A study of these sets; nothing is left of it if one of them is refused (see `add`)."""
        study = cls.create(folder, title, questions, settings)
        try:
            for videos in sets:
                study.add(videos)
        except BaseException:
            (study.folder / "study.json").unlink()
            shutil.rmtree(study.folder / "media")
            raise
        return study

    @classmethod
    def open(cls, folder: Path | str) -> "Study":
        """
        Raises:
            ValueError: there is no study in the folder, or its plan is damaged.
        """
        folder = Path(folder)
        try:
            told = json.loads((folder / "study.json").read_bytes())
            trials = tuple(
                Trial(**one | {key: tuple(one[key]) for key in ("methods", "videos")})
                for one in told["trials"]
            )
            lists = {key: tuple(told[key]) for key in ("questions", "sets")}
            plan = Plan(**told | lists | {"trials": trials, "settings": StudySettings(**told["settings"])})
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"There is no study in {folder}: make one with `ipro study make`.") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder}/study.json cannot be read ({error}): make the study anew.") from None
        return cls(folder, plan)

    def add(self, videos: VideoSet) -> bool:
        """Take in one scene: every two methods become a trial, and the first scenes controls too.

        Returns:
            False if it was in already.

        Raises:
            ValueError: there are fewer than two methods, they are others than before, the prompt that is
                asked about is missing, a file is bad or too large, two differ in shape, or somebody has begun
                to vote.
        """
        plan, key = self.plan, _key(videos)
        if key in plan.sets:
            return False
        if len(videos.videos) < 2:
            raise ValueError(f"{videos.scene} has one video: a study needs those of two methods or more.")
        if plan.trials and sorted(videos.videos) != sorted(plan.methods):
            raise ValueError(
                f"The study compares {', '.join(plan.methods)}; {videos.scene} has videos by "
                f"{', '.join(videos.videos)}: give every scene one by each."
            )
        if "text" in plan.questions and not videos.prompt.strip():
            raise ValueError(f"The study asks about the text, and {videos.scene} has none: give its prompt.")
        if self.ballots.voters():
            raise ValueError(
                "Somebody has begun to vote, and all must see the same: make a new study for more videos."
            )
        ordered = {method: videos.videos[method] for method in plan.methods or videos.videos}
        takes = alike(ordered, plan.settings.max_side)
        image = (
            videos.image
            if videos.image is None or isinstance(videos.image, Tensor)
            else read_image(videos.image)
        )
        pictured = self._picture(image) if image is not None else ""
        files = {method: self._video(take) for method, take in takes.items()}

        def trial(kind: Kind, methods: tuple[str, str], files: tuple[str, str]) -> Trial:
            fps = takes[methods[0]].fps
            return Trial(
                token_hex(16), kind, videos.scene, methods, files, pictured, videos.prompt.strip(), fps
            )

        trials = [trial("pair", (a, b), (files[a], files[b])) for a, b in combinations(takes, 2)]
        number = len(plan.sets)
        if number < plan.settings.controls:
            one = list(takes)[number % len(takes)]
            trials.append(trial("same", (one, one), (files[one], files[one])))
            spoilt_file = self._video(replace(takes[one], frames_TCHW=spoilt(takes[one].frames_TCHW)))
            trials.append(trial("spoilt", (one, f"{one}, spoilt"), (files[one], spoilt_file)))
        self._write(replace(plan, trials=(*plan.trials, *trials), sets=(*plan.sets, key)))
        return True

    def showings(self, voter: str) -> tuple[Showing, ...]:
        """All that this voter meets, in order.

        Raises:
            KeyError: there is no such voter.
        """
        settings = self.plan.settings
        number = self.ballots.voters()[voter]
        return ballot(self.plan.trials, number, seed=settings.seed, pairs=settings.pairs)

    def _video(self, take: Take) -> str:
        name = f"{token_hex(16)}.mp4"
        write_video(self.folder / "media" / name, take.frames_TCHW, take.fps)
        return name

    def _picture(self, image_CHW: Tensor) -> str:
        name = f"{token_hex(16)}.png"
        write_picture(self.folder / "media" / name, shrunk(image_CHW[None], self.plan.settings.max_side)[0])
        return name

    def _write(self, plan: Plan) -> None:
        write_atomically(self.folder / "study.json", json.dumps(asdict(plan), indent=1).encode() + b"\n")
        self.plan = plan


def _key(videos: VideoSet) -> str:
    """Of what is shown, not of where it lies."""
    told = {
        method: fingerprint({"frames": video.frames_TCHW}) if isinstance(video, Take) else sha256(video)
        for method, video in sorted(videos.videos.items())
    }
    return json.dumps([videos.scene, told])
