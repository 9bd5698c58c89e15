"""Base against tuned on people never trained on: same scenes, seeds and noise, so only the adapter differs.

A frame without the subject's face counts as 0 in every headline: leaving such frames out would rank a model
that loses hard faces above one that keeps them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import find_person
from ..types import FaceTrack
from .facesim import FaceSim, embed_reference, find_reference, similarity
from .film import face_window, thumbnails
from .motion import head_motion, head_turn, motion_ratio
from .statistics import Gain, paired_gain, scene_means

LEAST_MOTION = 0.8
"""Tuned over base: below it the face may be kept by moving it less."""
LEAST_TRANSFER = 0.5
"""The judge's gain over the reward recogniser's: below it the gain is that recogniser's, not the face's."""
COVERAGE_SLACK = 0.02
STRIP_FRAMES = 9


@dataclass(frozen=True, eq=False)
class SceneVideos:
    """One pair: two models' videos of one scene, from the same noise."""

    scene: str
    """The unit of the statistics: person and first frame."""
    prompt: str
    seed: int
    reference_CHW: Tensor
    """The input image, in [0, 1]."""
    base_TCHW: Tensor
    tuned_TCHW: Tensor
    real_TCHW: Tensor | None = None
    """What was really filmed, if known: the ceiling."""


@dataclass(frozen=True, eq=False)
class VideoResult:
    """What was measured on one video."""

    facesim: FaceSim
    judge: FaceSim | None
    motion: float
    """`head_motion`, of base and tuned over the frames in which both show the face."""
    turn: float
    strip_SCHW: Tensor
    """uint8 pictures of the head at the pair's `strip_frames`."""


@dataclass(frozen=True, eq=False)
class PairResult:
    """What was measured on one pair."""

    scene: str
    prompt: str
    seed: int
    base: VideoResult
    tuned: VideoResult
    real: VideoResult | None
    reference_D: Tensor
    strip_frames: tuple[int, ...]

    @property
    def gain(self) -> float:
        return self.tuned.facesim.all - self.base.facesim.all


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that an evaluation says; `figures` is its short form."""

    pairs: tuple[PairResult, ...]
    gain: Gain
    judge_gain: Gain | None
    stranger_floor: float
    """Mean cosine between the reference faces of different scenes; NaN for a single scene."""
    kl: float | None = None

    def mean(self, which: str, measure: Callable[[VideoResult], float]) -> float:
        """Mean over scenes of a measure on "base", "tuned" or "real"; NaN where nothing could be measured."""
        measured = [(pair.scene, measure(video)) for pair in self.pairs if (video := getattr(pair, which))]
        measured = [(scene, value) for scene, value in measured if math.isfinite(value)]
        if not measured:
            return float("nan")
        scenes, values = zip(*measured, strict=True)
        return float(scene_means(np.array(values), scenes).mean())

    @property
    def facesim_base(self) -> float:
        return self.mean("base", lambda video: video.facesim.all)

    @property
    def facesim_tuned(self) -> float:
        return self.mean("tuned", lambda video: video.facesim.all)

    @property
    def real_ceiling(self) -> float:
        """FaceSim of the real clips by the same protocol; NaN without them."""
        return self.mean("real", lambda video: video.facesim.all)

    @property
    def motion_ratio(self) -> float:
        """Head motion, tuned over base."""
        return motion_ratio(
            [pair.tuned.motion for pair in self.pairs], [pair.base.motion for pair in self.pairs]
        )

    def coverage(self, which: str) -> float:
        return self.mean(which, lambda video: video.facesim.coverage)

    @property
    def hack_flags(self) -> tuple[str, ...]:
        """What speaks against the gain, one plain sentence each; empty if nothing does."""
        flags = []
        if self.facesim_tuned > self.real_ceiling:
            flags.append(
                f"FaceSim of the tuned model ({self.facesim_tuned:.3f}) lies above that of the real clips "
                f"({self.real_ceiling:.3f}): real faces turn and change, so the face is probably frozen."
            )
        if not self.motion_ratio >= LEAST_MOTION:
            flags.append(
                f"Head motion fell to {self.motion_ratio:.2f} of the base model's (at least {LEAST_MOTION} "
                "is wanted): the face may be kept by moving it less."
                if math.isfinite(self.motion_ratio)
                else "Head motion could not be measured, so a frozen face would go unnoticed."
            )
        if self.judge_gain and self.gain.mean > 0 and self.judge_gain.mean < LEAST_TRANSFER * self.gain.mean:
            flags.append(
                f"The judge, a recogniser that was not trained on, gains {self.judge_gain.mean:+.3f} where "
                f"the reward's own gains {self.gain.mean:+.3f}: the tuning pleases one network more than it "
                "keeps the face."
            )
        if self.coverage("tuned") < self.coverage("base") - COVERAGE_SLACK:
            flags.append(
                f"The face is found in {self.coverage('tuned'):.0%} of the tuned frames and in "
                f"{self.coverage('base'):.0%} of the base's: faces get lost."
            )
        return tuple(flags)

    def figures(self) -> dict[str, Any]:
        """The numbers a program reads, ready for JSON: what could not be measured is None."""
        judge = self.judge_gain
        figures = {
            "facesim_base": self.facesim_base,
            "facesim_tuned": self.facesim_tuned,
            "gain": self.gain.mean,
            "gain_ci95": list(self.gain.ci95),
            "p_value": self.gain.p_value,
            "share_improved": self.gain.share_improved,
            "judge_gain": judge.mean if judge else None,
            "judge_gain_ci95": list(judge.ci95) if judge else None,
            "motion_ratio": self.motion_ratio,
            "real_ceiling": self.real_ceiling,
            "stranger_floor": self.stranger_floor,
            "coverage_base": self.coverage("base"),
            "coverage_tuned": self.coverage("tuned"),
            "coverage_real": self.coverage("real"),
            "kl": self.kl,
            "scenes": self.gain.scenes,
            "pairs": self.gain.pairs,
            "hack_flags": list(self.hack_flags),
        }
        return {name: _jsonable(value) for name, value in figures.items()}


def compare_videos(
    scenes: Iterable[SceneVideos],
    detector: Detector,
    recognizer: Recognizer,
    judge: Recognizer | None = None,
    *,
    given: int = 1,
    kl: float | None = None,
) -> Comparison:
    """Measure every pair as it comes; the videos themselves are not kept.

    Args:
        scenes: may be a generator that samples as it goes.
        recognizer: the reward's.
        judge: a second, independent recogniser, on the same tracks.
        given: frames at the beginning that are the input image and do not count.
        kl: of the tuned model to the frozen one, if known; passed through.

    Raises:
        ValueError: there is no scene, or a reference without a face (its scene is named).
    """
    pairs = tuple(_measure(videos, detector, recognizer, judge, given) for videos in scenes)
    names = [pair.scene for pair in pairs]

    def gain(measure: Callable[[VideoResult], float]) -> Gain:
        return paired_gain(
            [measure(pair.base) for pair in pairs], [measure(pair.tuned) for pair in pairs], names
        )

    return Comparison(
        pairs=pairs,
        gain=gain(lambda video: video.facesim.all),
        judge_gain=gain(lambda video: video.judge.all if video.judge else float("nan")) if judge else None,
        stranger_floor=_stranger_floor({pair.scene: pair.reference_D for pair in pairs}),
        kl=kl,
    )


def _measure(
    videos: SceneVideos, detector: Detector, recognizer: Recognizer, judge: Recognizer | None, given: int
) -> PairResult:
    try:
        face = find_reference(videos.reference_CHW, detector)
    except ValueError as error:
        raise ValueError(f"Scene {videos.scene}: {error}") from None
    reference_D = embed_reference(videos.reference_CHW, face, recognizer)
    judge_D = embed_reference(videos.reference_CHW, face, judge) if judge else None
    frames = {"base": videos.base_TCHW, "tuned": videos.tuned_TCHW, "real": videos.real_TCHW}
    frames = {which: frames_TCHW for which, frames_TCHW in frames.items() if frames_TCHW is not None}
    tracks = {
        which: find_person(taken, detector, recognizer, reference_D=reference_D)
        for which, taken in frames.items()
    }
    facesims = {
        which: similarity(taken, tracks[which], reference_D, recognizer, given=given)
        for which, taken in frames.items()
    }
    assert len(videos.base_TCHW) == len(videos.tuned_TCHW), "two videos of one length"
    # Motion where both show the face: a model that loses it in the liveliest frames would seem to hold still.
    both_T = tracks["base"].seen_T & tracks["tuned"].seen_T
    shown = _strip_frames(min(map(len, frames.values())), facesims["tuned"])

    def result(which: str) -> VideoResult:
        taken, track = frames[which], tracks[which]
        moving_T = track.seen_T if which == "real" else both_T
        return VideoResult(
            facesim=facesims[which],
            judge=None
            if judge is None or judge_D is None
            else similarity(taken, track, judge_D, judge, given=given),
            motion=head_motion(track.points_T52, moving_T),
            turn=head_turn(track.points_T52, moving_T),
            strip_SCHW=thumbnails(taken[list(shown)], _window(tracks, frames, which)),
        )

    return PairResult(
        scene=videos.scene,
        prompt=videos.prompt,
        seed=videos.seed,
        base=result("base"),
        tuned=result("tuned"),
        real=result("real") if "real" in frames else None,
        reference_D=reference_D,
        strip_frames=shown,
    )


def _window(tracks: dict[str, FaceTrack], frames: dict[str, Tensor], which: str) -> tuple[int, int, int, int]:
    """One window for all videos of a scene, so that their strips compare; its own for one of another size."""
    size = frames[which].shape[2:]
    alike = [track for name, track in tracks.items() if frames[name].shape[2:] == size]
    boxes_N4 = torch.cat([track.boxes_T4[track.seen_T] for track in alike])
    return face_window(boxes_N4, *size)


def _strip_frames(count: int, facesim: FaceSim) -> tuple[int, ...]:
    """Frames to show: evenly spaced, the nearest one moved onto the tuned video's worst frame."""
    shown = np.unique(np.linspace(0, count - 1, min(count, STRIP_FRAMES)).round().astype(int))
    worst = facesim.worst_frame
    if worst is not None and worst < count:
        nearest = int(abs(shown - worst).argmin())
        if nearest > 0:
            shown[nearest] = worst
    return tuple(int(frame) for frame in shown)


def _stranger_floor(references: dict[str, Tensor]) -> float:
    if len(references) < 2:
        return float("nan")
    reference_SD = torch.stack(list(references.values())).double()
    cosine_SS = reference_SD @ reference_SD.T
    apart = ~torch.eye(len(cosine_SS), dtype=torch.bool)
    return cosine_SS[apart].mean().item()


def _jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return [_jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
