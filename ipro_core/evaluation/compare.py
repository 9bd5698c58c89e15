"""Base against tuned on people never trained on: same scene, seed and noise, so only the adapter differs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..clips.luma import luma, sharpness
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import SeenFaces, follow_person, see_faces, track_of
from ..types import FaceTrack
from .facesim import FaceSim, embed_reference, find_reference, followed_sim, similarity, stranger_floor
from .film import face_window, thumbnails
from .motion import head_motion, head_turn
from .people import PeopleKept, judge_people
from .statistics import Gain, paired_gain
from .verdict import Comparison, PairResult, VideoResult, judged

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
    people: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → faces (P, D) of the reward's recogniser, if several people are to be kept; then they are the
    references, and the one kept worst is the headline."""
    seen: Mapping[str, SeenFaces] = field(default_factory=dict)
    """By "base", "tuned" and "real": the faces, where somebody has found them with the same networks."""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By the same: figures of quality, where somebody has measured them; what `MARGINS` names is guarded."""

    @property
    def videos(self) -> dict[str, Tensor]:
        taken = {"base": self.base_TCHW, "tuned": self.tuned_TCHW, "real": self.real_TCHW}
        return {which: frames_TCHW for which, frames_TCHW in taken.items() if frames_TCHW is not None}


@dataclass(frozen=True)
class Quality:
    """Something that a gain must not cost, more of it being better."""

    name: str
    measure: Callable[[Tensor], float]
    """Of the frames (T, 3, H, W) in [0, 1]; NaN where it cannot be told."""
    margin: float = 0.99
    """The least tuned / base."""


def detail(frames_TCHW: Tensor) -> float:
    """`sharpness` of the whole picture, median of the frames."""
    return (
        torch.cat([sharpness(luma(frame_1CHW)) for frame_1CHW in frames_TCHW.detach().split(1)])
        .median()
        .item()
    )


SHARPNESS = Quality("sharpness", detail, margin=0.9)
MARGINS = {"sc": 0.99, "bc": 0.99, "aq": 0.99, "iq": 0.99, "ms": 0.99, "dd_top5_rel": 0.8}
"""The least tuned / base of VBench's figures, whose networks are a user's to bring. Temporal flickering is no
guard: it rewards standing still."""


def compare_videos(
    scenes: Iterable[SceneVideos],
    detector: Detector,
    recognizer: Recognizer,
    judge: Recognizer | None = None,
    *,
    given: int = 1,
    kl: float | None = None,
    quality: Sequence[Quality] = (SHARPNESS,),
) -> Comparison:
    """Measure every pair as it comes; the videos themselves are not kept.

    Args:
        scenes: may be a generator that samples as it goes.
        recognizer: the reward's.
        judge: a second, independent recogniser, on the same tracks; where people have pools it is not asked.
        given: frames at the beginning that are the input image and do not count.
        kl: of the tuned model to the frozen one, if known; passed through.
        quality: what else must not be lost; each becomes a guard, as does what was measured on the way.

    Raises:
        ValueError: there is no scene, the judge is the reward's own, or a reference shows no face (its scene
            is named).
    """
    if judge is not None:
        refuse_own_judge(recognizer.name, judge.name)
    pairs = tuple(
        _measure(videos, seen, detector, recognizer, judge, given, quality)
        for videos, seen in _looked_at(scenes, detector, recognizer)
    )
    names = [pair.scene for pair in pairs]

    def gain(measure: Callable[[VideoResult], float]) -> Gain:
        return paired_gain(
            [measure(pair.base) for pair in pairs], [measure(pair.tuned) for pair in pairs], names
        )

    references = {pair.scene: (pair.reference_D, pair.judge_reference_D) for pair in pairs}
    by_judge = [judge_D for _, judge_D in references.values() if judge_D is not None]
    return Comparison(
        pairs=pairs,
        gain=gain(lambda video: video.facesim.all),
        judge_gain=gain(judged) if by_judge and len(by_judge) == len(references) else None,
        stranger_floor=stranger_floor([reference_D for reference_D, _ in references.values()]),
        kl=kl,
        judge_floor=stranger_floor(by_judge),
        margins={one.name: one.margin for one in quality} | _margins(pairs),
    )


def _margins(pairs: Sequence[PairResult]) -> dict[str, float]:
    """Of the figures that were measured on some pair on the way."""
    return {
        name: margin
        for name, margin in MARGINS.items()
        if any(math.isfinite(pair.tuned.quality.get(name, math.nan)) for pair in pairs)
    }


def refuse_own_judge(recognizer: str, judge: str) -> None:
    """Raise ValueError where both names are one."""
    if judge == recognizer:
        raise ValueError(
            f"The judge is the reward's own recogniser ({judge}), which sees what it was tuned for: "
            "give another one, or none."
        )


def _looked_at(
    scenes: Iterable[SceneVideos], detector: Detector, recognizer: Recognizer
) -> Iterator[tuple[SceneVideos, dict[str, SeenFaces]]]:
    """Each pair with the faces of its videos, unless they were found on the way here; those of a real clip
    once for all the seeds of its scene."""
    last: tuple[str, SeenFaces] | None = None
    for videos in scenes:
        seen = dict(videos.seen)
        if last and last[0] == videos.scene:
            seen.setdefault("real", last[1])
        for which, frames_TCHW in videos.videos.items():
            if which not in seen:
                seen[which] = see_faces(frames_TCHW, detector, recognizer)
        last = (videos.scene, seen["real"]) if "real" in seen else None
        yield videos, seen


@dataclass(frozen=True, eq=False)
class _Looked:
    """One video's faces: who was followed, and how like they are."""

    tracks: tuple[FaceTrack, ...]
    """Of the subject, or of all the people in the order of their names."""
    facesim: FaceSim
    judge: FaceSim | None = None
    people: PeopleKept | None = None


def _measure(
    videos: SceneVideos,
    seen: Mapping[str, SeenFaces],
    detector: Detector,
    recognizer: Recognizer,
    judge: Recognizer | None,
    given: int,
    quality: Sequence[Quality],
) -> PairResult:
    assert len(videos.base_TCHW) == len(videos.tuned_TCHW), "two videos of one length"
    frames = videos.videos
    judge_D = None
    try:
        if videos.people:
            reference_D = normalize(torch.cat(list(videos.people.values())).mean(dim=0), dim=0)
            looked = {which: _look_for_all(videos, seen[which], recognizer, given) for which in frames}
        else:
            face = find_reference(videos.reference_CHW, detector)
            reference_D = embed_reference(videos.reference_CHW, face, recognizer)
            judge_D = embed_reference(videos.reference_CHW, face, judge) if judge else None
            looked = {which: _look_for_one(seen[which], reference_D, recognizer, given) for which in frames}
    except ValueError as error:
        raise ValueError(f"Scene {videos.scene}: {error}") from None
    shown = _strip_frames(min(map(len, frames.values())), looked["tuned"].facesim)

    def result(which: str) -> VideoResult:
        taken, one = frames[which], looked[which]
        # Motion where base and tuned both show the face: a model that loses it in the liveliest frames would
        # seem to hold still.
        against = {"base": looked["tuned"], "tuned": looked["base"]}.get(which, one)
        moved = [
            (head_motion(track.points_T52, both_T), head_turn(track.points_T52, both_T))
            for track, other in zip(one.tracks, against.tracks, strict=True)
            for both_T in [track.seen_T & other.seen_T]
        ]
        motion, turn = (_mean(column) for column in zip(*moved, strict=True))
        return VideoResult(
            facesim=one.facesim,
            judge=None
            if judge is None or judge_D is None
            else similarity(taken, one.tracks[0], judge_D, judge, given=given),
            motion=motion,
            turn=turn,
            strip_SCHW=thumbnails(taken[list(shown)], _window(looked, frames, which)),
            quality={measure.name: measure.measure(taken) for measure in quality}
            | {name: value for name, value in videos.measured.get(which, {}).items() if name in MARGINS},
            people=one.people,
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
        judge_reference_D=judge_D,
    )


def _look_for_one(seen: SeenFaces, reference_D: Tensor, recognizer: Recognizer, given: int) -> _Looked:
    followed = follow_person(seen.detections, seen.embeddings, reference_D=reference_D)
    facesim = followed_sim(seen, followed, reference_D, recognizer.name, given=given)
    return _Looked((_track(seen, followed),), facesim)


def _look_for_all(videos: SceneVideos, seen: SeenFaces, recognizer: Recognizer, given: int) -> _Looked:
    kept = judge_people(seen, videos.people, recognizer.name, given=given)
    tracks = tuple(_track(seen, person.faces) for person in kept.people)
    return _Looked(tracks, kept.worst.facesim, people=kept)


def _mean(values: Sequence[float]) -> float:
    """Of those that could be measured; NaN if none could."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _track(seen: SeenFaces, followed: Mapping[int, int]) -> FaceTrack:
    return track_of({t: seen.detections[t][face] for t, face in followed.items()}, len(seen.detections))


def _window(
    looked: Mapping[str, _Looked], frames: Mapping[str, Tensor], which: str
) -> tuple[int, int, int, int]:
    """One window for all videos of a scene, so that their strips compare; its own for one of another size."""
    size = frames[which].shape[2:]
    alike = [track for name, one in looked.items() if frames[name].shape[2:] == size for track in one.tracks]
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
