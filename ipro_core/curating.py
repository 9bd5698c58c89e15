"""A curation (Section 5.1): clips measured, judged, a vision-language model asked if one is named, written.

Its stages are iterated over by whoever shows them; leaving between two items loses nothing that was measured.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .clips.captions import ask
from .clips.curation import Candidate, CurationSettings, Verdict, judge
from .clips.manifest import Source, measure, source_of, words_of, write_manifest
from .clips.measures import MeasureSettings
from .clips.vision import VisionClient, VisionSettings
from .evaluation.curation_page import write_curation_page
from .faces.detector import Detector
from .faces.packs import face_model_names, load_face_models
from .faces.recognizer import Recognizer
from .studio import Work

ANSWERS, PAGE = "vision.jsonl", "index.html"


@dataclass(frozen=True)
class CurationPlan:
    measures: MeasureSettings = MeasureSettings()
    limits: CurationSettings = CurationSettings()
    vision: VisionSettings = VisionSettings()
    source: Source = Source()
    """Of clips without a file beside them that says it."""


class Curation:
    """One folder of a curation, and the videos that are judged for it."""

    def __init__(
        self, videos: Sequence[Path], folder: Path, pack: Path, plan: CurationPlan, device: str = "cpu"
    ) -> None:
        """`pack`: the face pack; it is opened when a video is to be measured that never was."""
        self.videos, self.folder, self.plan = [video.resolve() for video in videos], folder, plan
        self._names = face_model_names(pack)
        self._open: Callable[[], tuple[Detector, Recognizer]] = lambda: load_face_models(pack, device)
        self.candidates: list[Candidate] = []

    def stages(self) -> Iterator[Work]:
        """Measuring, then asking about what passes all else.

        Raises:
            ValueError: another process is at work in the folder, a sidecar is damaged, nobody answers.
        """
        # Whatever can be refused is refused before the long work.
        sources = [source_of(video, self.plan.source) for video in self.videos]
        asked = self.plan.vision.vision_model
        client = VisionClient(self.plan.vision, self.folder / ANSWERS) if asked else None
        yield Work("measuring", len(self.videos), self._measured(sources))
        if client:
            passing = [n for n, verdict in enumerate(self.judged()) if verdict.kept]
            yield Work("asking", len(passing), self._asked(client, passing))

    def judged(self) -> list[Verdict]:
        """By the plan's limits."""
        return judge(self.candidates, self.plan.limits)

    def write(self) -> list[Verdict]:
        """Write manifest and page, each complete or not at all."""
        verdicts = self.judged()
        write_manifest(self.folder, [row_of(verdict) for verdict in verdicts])
        write_curation_page(self.folder / PAGE, self.folder, verdicts, self.plan.limits)
        return verdicts

    def _measured(self, sources: Sequence[Source]) -> Iterator[Path]:
        shots = measure(self.videos, self.folder, self._open, self.plan.measures, names=self._names)
        for video, source, found in zip(self.videos, sources, shots, strict=True):
            self.candidates += [Candidate(shot, source, words=words_of(video)) for shot in found]
            yield video

    def _asked(self, client: VisionClient, passing: Sequence[int]) -> Iterator[Path]:
        for n in passing:
            one = self.candidates[n]
            answers = ask(client, self.folder, one.shot, caption=not one.prompt)
            self.candidates[n] = replace(one, answers=answers)
            yield Path(one.shot.video)


def row_of(verdict: Verdict) -> dict[str, Any]:
    """A line of the manifest."""
    candidate, shot = verdict.candidate, verdict.candidate.shot
    return {
        "video": shot.video,
        "name": shot.name,
        "shot": shot.shot,
        "shots": shot.shots,
        "start": shot.start,
        "end": shot.end,
        "kept": verdict.kept,
        "reason": verdict.reason,
        "split": verdict.split,
        "people": list(verdict.people),
        "prompt": candidate.prompt,
        **asdict(candidate.source),
        "rules": [asdict(ruling) for ruling in verdict.rulings],
        "answers": asdict(candidate.answers),
        "measures": asdict(shot),
    }
