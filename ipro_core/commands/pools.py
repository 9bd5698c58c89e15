"""`ipro pool` and `ipro score`: the faces of real clips, and videos held against them."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clips.video import iterate_frames, probe
from ..evaluation.people import judge_people
from ..faces.packs import find_pack, load_face_models
from ..faces.pool import build_pools, inspect_pool, merge_pools
from ..faces.tracks import person_of_video, see_faces
from ..rewards.base import reward_catalogue
from ..types import FacePool, GeneratedVideo
from .evaluate_videos import people_of
from .flags import pack_of, pack_roots, progress_bar


def pool(options: argparse.Namespace) -> dict[str, Any]:
    """Collect the faces of one person's clips into a face pool (Section 4.2), or of one clip's people."""
    if options.people != 1 and len(options.videos) > 1:
        raise ValueError("Several people are taken from one clip: give one video, or 1 for --people.")
    models = load_face_models(find_pack(options.faces, pack_roots()))
    how = {"most": options.people, "min_face": options.min_face}
    found = [
        build_pools(_watched(video, options), *models, source=video.name, **how) for video in options.videos
    ]
    people = found[0] if len(found) == 1 else [merge_pools([pool for pools in found for pool in pools])]
    told = []
    for number, person in enumerate(people, 1):
        path = options.out.with_stem(f"{options.out.stem}_{number}") if number > 1 else options.out
        person.save(path)
        facts = inspect_pool(person)
        print(
            f"{path}: {facts.faces} faces in {facts.frames} frames, coverage {facts.coverage:.0%}, "
            f"self-similarity {facts.self_similarity:.3f}, ceiling {facts.ceiling:.3f}"
        )
        told.append({"pool": str(path), **asdict(facts)})
    return told[0] | ({"others": told[1:]} if told[1:] else {})


def pool_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", type=Path, metavar="video", help="Clips of one person.")
    parser.add_argument("--out", "-o", type=Path, default=Path("pool.safetensors"), help="The file to write.")
    people = (
        "Most people of the clip to keep, the subject first; 0: everybody who is seen long enough. The "
        "second one's file has the first's name with _2, and so on."
    )
    parser.add_argument("--people", type=int, default=1, help=people)
    parser.add_argument("--min-face", type=float, default=24, help="Smallest face to keep, in pixels.")
    _add_reading(parser, faces="antelopev2")


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Score a video's faces against a face pool (Eq. 5 and 6), or several people's against theirs."""
    if len(options.pool) > 1:
        return _score_people(options)
    reference = FacePool.load(options.pool[0])
    folder = find_pack(options.faces, pack_roots()) if options.faces else pack_of(reference)
    detector, recognizer = load_face_models(folder)
    if recognizer.name != reference.recognizer:
        raise ValueError(
            f"The pool was built with {reference.recognizer}, but the face pack holds {recognizer.name}: "
            "give the pack that built the pool with --faces."
        )
    person = person_of_video(lambda: _watched(options.video, options), detector, recognizer, pool=reference)
    result = reward_catalogue()[options.reward]()(GeneratedVideo((person,)))
    value, coverage = result.value.item(), person.seen_T.float().mean().item()
    print(f"{options.video}: {value:.3f} of {reference.ceiling:.3f}, face in {coverage:.0%} of the frames")
    return {
        "score": value,
        "ceiling": reference.ceiling,
        "coverage": coverage,
        "frames": len(person.seen_T),
        "per_frame": [None if value != value else value for value in result.per_frame_T.tolist()],
        "recognizer": recognizer.name,
    }


def _score_people(options: argparse.Namespace) -> dict[str, Any]:
    """Who is kept, missing, swapped: each against their own pool, every frame counted."""
    folder = (
        find_pack(options.faces, pack_roots()) if options.faces else pack_of(FacePool.load(options.pool[0]))
    )
    detector, recognizer = load_face_models(folder)
    people = people_of(options.pool, recognizer.name)
    seen = see_faces(_watched(options.video, options), detector, recognizer)
    kept = judge_people(seen, people, recognizer.name, given=0)
    for person in kept.people:
        state = "missing" if person.missing else f"{person.facesim.all:.3f}"
        print(f"{person.name}: {state}, face in {person.facesim.coverage:.0%} of the frames")
    for swap in kept.swaps:
        print(f"from frame {swap.frame} on {swap.after} stands where {swap.before} stood")
    print(f"{options.video}: identity F1 {kept.identity_f1:.3f}")
    return {"score": kept.worst.facesim.all, "frames": len(seen.detections), **kept.figures()}


def score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path)
    pools = "Files that `ipro pool` wrote; several: one for each person of the video."
    parser.add_argument("--pool", nargs="+", type=Path, required=True, help=pools)
    parser.add_argument(
        "--reward", choices=["face-pool", "aligned"], default="face-pool", help="How to score."
    )
    _add_reading(parser, faces=None)


def _watched(video: Path, options: argparse.Namespace) -> Iterator[Tensor]:
    """The video's frames a few at a time, with a bar."""
    facts = probe(video)
    total = round(facts.duration * options.fps) if options.fps else facts.frames
    pieces = iterate_frames(video, fps=options.fps or None, max_side=options.max_side, chunk=PIECE)
    with progress_bar(video.name, total) as bar:
        for piece_TCHW in pieces:
            yield piece_TCHW
            bar.update(len(piece_TCHW))


PIECE = 16
"""Frames in memory at a time: 400 MB at 1080 lines."""


def _add_reading(parser: argparse.ArgumentParser, faces: str | None) -> None:
    meant = faces or "the pack that built the pool"
    where = f"A face pack: its folder, or its name under a models/insightface; default: {meant}."
    parser.add_argument("--faces", default=faces, help=where)
    parser.add_argument("--fps", type=float, default=0, help="Frames per second to look at; 0: every frame.")
    parser.add_argument(
        "--max-side", type=int, default=1920, help="Shrink larger frames to this many pixels."
    )
