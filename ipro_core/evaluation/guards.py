"""The guards of a gain: quality, suspicions, a vision model's verdict and official vbench, all opt-in,
measured on the pairs as they pass by on their way to `compare_videos`."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..clips.video import write_video
from ..clips.vision import VisionClient
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import SeenFaces
from .compare import SceneVideos
from .hacking import ClipSigns, Hacking, judge_signs
from .quality_measures import ClipQuality, Quality, QualityMeter
from .signs import Watched, input_face, measure_signs, watch
from .vbench_runner import OfficialScore, run_vbench
from .vision_verdict import Said, Truth, Verdicts, ask_of_clip, controls


@dataclass(frozen=True, eq=False)
class GuardResults:
    """What was asked for; None: it was not."""

    quality: Quality | None = None
    hacking: Hacking | None = None
    verdicts: Verdicts | None = None
    official: Mapping[str, Mapping[str, OfficialScore]] | None = None
    """By "base" and "tuned", then by dimension."""

    @property
    def flags(self) -> tuple[str, ...]:
        return self.hacking.flags if self.hacking else ()

    def figures(self) -> dict[str, Any]:
        """For JSON, beside the comparison's."""
        told: dict[str, Any] = {}
        if self.quality:
            told["quality"] = self.quality.figures()
        if self.hacking:
            told["hacking"] = self.hacking.figures()
        if self.verdicts:
            told["verdicts"] = self.verdicts.figures()
        if self.official:
            told["official_vbench"] = {
                which: {short: {"value": s.value, "reason": s.reason or None} for short, s in scores.items()}
                for which, scores in self.official.items()
            }
        return _jsonable(told)


def _jsonable(value: Any) -> Any:
    """Without the numbers that JSON has no word for: NaN is None."""
    if isinstance(value, Mapping):
        return {name: _jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(eq=False)
class Guards:
    """Measures each pair once, in passing."""

    fps: float
    meter: QualityMeter | None = None
    faces: tuple[Detector, Recognizer] | None = None
    """Opened, where suspicions are wanted."""
    client: VisionClient | None = None
    """Asked about clips too, where suspicions are wanted."""
    decoded: Callable[[Tensor], Tensor] | None = None
    """A real clip as the model's codec gives it back: what the codec blurs is nobody's hack."""
    vbench_python: Path | None = None
    device: str = "cpu"
    """Of vbench."""

    def __post_init__(self) -> None:
        self._quality: list[ClipQuality] = []
        self._signs: list[ClipSigns] = []
        self._said: list[Said] = []
        self._videos = TemporaryDirectory() if self.vbench_python else None
        """What vbench is to score."""
        self._told: set[str] = set()
        """Scenes whose real clip the vision model has been shown."""
        self._real: tuple[str, Watched | None, dict[str, float]] | None = None
        """The last scene's real clip and its quality: the seeds of a scene share it."""

    def watch(self, pairs: Iterable[SceneVideos]) -> Iterator[SceneVideos]:
        """The same pairs; each is measured before it goes on, with what was found."""
        for number, pair in enumerate(pairs):
            seen = self._measure(pair)
            if self._videos:
                for which, frames_TCHW in (("base", pair.base_TCHW), ("tuned", pair.tuned_TCHW)):
                    place = Path(self._videos.name) / which
                    place.mkdir(exist_ok=True)
                    write_video(place / f"{number:05d}.mp4", frames_TCHW, self.fps)
            yield replace(pair, seen=seen, measured=self._quality[-1].figures if self._quality else {})

    def results(self) -> GuardResults:
        """After the last pair; vbench runs now."""
        official = None
        if self._videos and self.vbench_python:
            with self._videos as folder:
                official = {
                    which: run_vbench(self.vbench_python, Path(folder, which), device=self.device)
                    for which in ("base", "tuned")
                }
        return GuardResults(
            Quality(tuple(self._quality), self.meter) if self.meter else None,
            judge_signs(self._signs) if self.faces else None,
            Verdicts(tuple(self._said), self.client.settings.vision_model) if self.client else None,
            official,
        )

    @torch.no_grad()
    def _measure(self, pair: SceneVideos) -> dict[str, SeenFaces]:
        """Of the pair's own videos: the faces, where they were looked for."""
        videos = {"base": pair.base_TCHW, "tuned": pair.tuned_TCHW}
        known = self._real is not None and self._real[0] == pair.scene
        if pair.real_TCHW is not None and not known:
            real_TCHW = self.decoded(pair.real_TCHW) if self.decoded else pair.real_TCHW
            videos["real"] = real_TCHW
        quality = (
            {which: self.meter(frames, self.fps) for which, frames in videos.items()} if self.meter else {}
        )
        clips: dict[str, Watched] = {}
        reference_D, faces = torch.zeros(0), 0
        if self.faces:
            reference_D, faces = input_face(pair.reference_CHW, *self.faces)
            clips = {which: watch(frames, *self.faces, reference_D) for which, frames in videos.items()}
        if "real" in videos:
            self._real = (pair.scene, clips.get("real"), quality.get("real", {}))
        elif not known:
            self._real = None
        if self._real:
            quality |= {"real": self._real[2]}
            clips |= {"real": self._real[1]} if self._real[1] else {}
        if self.meter:
            self._quality.append(ClipQuality(pair.scene, pair.seed, quality))
        if self.faces:
            real = clips.get("real")
            signs = {
                which: measure_signs(clip, pair.reference_CHW, reference_D, faces, real)
                for which, clip in clips.items()
            }
            self._signs.append(ClipSigns(pair.scene, pair.seed, signs))
            self._ask(pair, clips, reference_D)
        # A real clip that went through the codec is another video.
        return {which: clip.seen for which, clip in clips.items() if which != "real" or self.decoded is None}

    def _ask(self, pair: SceneVideos, clips: Mapping[str, Watched], reference_D: Tensor) -> None:
        """The vision model of both videos, and of the scene's control clips once."""
        if self.client is None or self.faces is None:
            return
        shown: list[tuple[Truth, Watched]] = [("base", clips["base"]), ("tuned", clips["tuned"])]
        if "real" in clips and pair.scene not in self._told:
            self._told.add(pair.scene)
            for truth, frames_TCHW in controls(clips["real"].frames_TCHW, clips["real"].track):
                shown.append((truth, watch(frames_TCHW, *self.faces, reference_D)))
        for truth, clip in shown:
            answer = ask_of_clip(self.client, pair.reference_CHW, clip.frames_TCHW, clip.track, pair.prompt)
            self._said.append(Said(pair.scene, pair.seed, truth, answer))
