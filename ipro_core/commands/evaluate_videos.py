"""`ipro evaluate` for videos that exist already, whoever made them; also of several people with pools."""

import argparse
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clips.scenes import find_videos
from ..clips.video import read_frames
from ..evaluation.compare import SceneVideos, compare_videos
from ..evaluation.report import write_report
from ..evaluation.verdict import Comparison
from ..faces.packs import find_pack, load_face_models, load_recognizer
from ..types import FacePool
from .flags import pack_roots, progress

SEED = re.compile(r"(.+?)[ _.-]*seed[ _-]?(\d+)")
"""walk_seed3.mp4 is another video of the scene walk."""


def given_videos(options: argparse.Namespace) -> bool:
    return bool(options.base_videos or options.tuned_videos or options.real_videos or options.pool)


def videos_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("videos that exist already, in the place of a run or a LoRA")
    names = (
        "Files or folders; the videos of a pair have one name, and walk_seed1, walk_seed2 are of one scene."
    )
    group.add_argument(
        "--base-videos", nargs="+", type=Path, default=[], help=f"By the model as it was. {names}"
    )
    group.add_argument("--tuned-videos", nargs="+", type=Path, default=[], help="By the tuned model.")
    real = "What was really filmed, named as the scenes: the ceiling."
    group.add_argument("--real-videos", nargs="+", type=Path, default=[], help=real)
    pools = "The pools of `ipro pool`, one a person, if several people are to be kept in every video."
    group.add_argument("--pool", nargs="+", type=Path, default=[], help=pools)


def compare_files(options: argparse.Namespace) -> Comparison:
    """Base against tuned, pair by pair as the files are named; writes the report.

    Raises:
        ValueError: a video has no partner, is damaged or of another length, or a pool does not fit.
    """
    if options.run or options.lora:
        raise ValueError("Give either videos, or what makes them: --run or --lora.")
    detector, recognizer = load_face_models(find_pack(options.faces or "antelopev2", pack_roots()))
    judge = getattr(options, "judge", "")
    other = load_recognizer(find_pack(judge, pack_roots())) if judge else None
    people = people_of(options.pool, recognizer.name) if options.pool else {}
    base, tuned, real = map(_named, (options.base_videos, options.tuned_videos, options.real_videos))
    strays = sorted(base.keys() ^ tuned.keys())
    if strays or not base:
        raise ValueError(
            f"Every base video needs a tuned one of its name, and {strays[0]} has none: name them alike."
            if strays
            else "There is nothing to compare: give --base-videos and --tuned-videos."
        )

    def pairs() -> Generator[SceneVideos, None, None]:
        for name in progress(sorted(base), "judging", total=len(base)):
            yield _pair(name, base[name], tuned[name], real.get(name) or real.get(scene_of(name)[0]), people)

    with closing(pairs()) as watched:  # the bar goes before a refusal is told
        comparison = compare_videos(watched, detector, recognizer, other)
    settings = {
        "base_videos": len(base),
        "real_videos": len(real),
        "people": ", ".join(people),
        "detector": detector.name,
    }
    write_report(options.report or Path("report.html"), comparison, settings=settings)
    return comparison


def people_of(paths: Sequence[Path], recognizer: str) -> dict[str, Tensor]:
    """Name → faces, from pool files; a person is named as the file.

    Raises:
        ValueError: two files of one name, or a pool of another recogniser.
    """
    people: dict[str, Tensor] = {}
    for path in paths:
        pool = FacePool.load(path)
        if pool.recognizer != recognizer:
            raise ValueError(
                f"The pool {path.name} was built with {pool.recognizer}, but the face pack holds "
                f"{recognizer}: give the pack that built the pools with --faces."
            )
        if path.stem in people:
            raise ValueError(f"Two pools are named {path.stem}: give every person's file a name of its own.")
        people[path.stem] = pool.embeddings_PD
    return people


def scene_of(name: str) -> tuple[str, int]:
    """The scene and the seed that a file's name tells."""
    told = SEED.fullmatch(name)
    return (told[1], int(told[2])) if told else (name, 0)


def _named(places: Sequence[Path]) -> dict[str, Path]:
    return {path.stem: path for path in find_videos(places)} if places else {}


def _pair(name: str, base: Path, tuned: Path, real: Path | None, people: Mapping[str, Tensor]) -> SceneVideos:
    base_TCHW, tuned_TCHW = read_frames(base), read_frames(tuned)
    if len(base_TCHW) != len(tuned_TCHW):
        raise ValueError(
            f"{base.name} has {len(base_TCHW)} frames and the tuned one {len(tuned_TCHW)}: give videos of "
            "one length."
        )
    scene, seed = scene_of(name)
    real_TCHW = read_frames(real) if real else None
    reference_CHW = (base_TCHW if real_TCHW is None else real_TCHW)[0]
    return SceneVideos(scene, "", seed, reference_CHW, base_TCHW, tuned_TCHW, real_TCHW, people)


def told(comparison: Comparison) -> dict[str, Any]:
    """The figures, and the people of every pair."""
    people = [
        {
            "scene": pair.scene,
            "seed": pair.seed,
            **{which: video.people.figures() for which, video in pair.videos.items() if video.people},
        }
        for pair in comparison.pairs
        if pair.base.people
    ]
    return comparison.figures() | ({"people": people} if people else {})
