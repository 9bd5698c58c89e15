"""`ipro preferences`: the head of a preference reward, from distorted clips and from a study's votes."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..clips.scenes import find_clips
from ..clips.video import first_shown, read_frames
from ..evaluation.distortions import DISTORTIONS
from ..evaluation.preference_pairs import Pair, clip_pairs, study_pairs
from ..faces.detector import Detector
from ..faces.packs import find_pack, load_face_models
from ..faces.recognizer import Recognizer
from ..faces.sight import look
from ..rewards.preference import Preference, accuracy, features, train_head
from ..tinyworld import FACE_PACK
from ..tinyworld.scenes import TinyScene, tiny_scenes
from .flags import pack_roots, progress

SCENES = 1000
"""Of the embedded world; one in five shows two people."""
TOGETHER = 0.6
"""How much of the bystander's face must be seen, on average, in a clip of two."""


def preferences(options: argparse.Namespace) -> dict[str, Any]:
    """Train a preference reward's head (Bradley–Terry) on clips beside themselves distorted, and on votes."""
    models = load_face_models(_pack(options))
    pairs = [*_distorted(options, *models)]
    for study in options.study:
        pairs += progress(study_pairs(study, *models), f"votes of {study.name}")
    learnt = [(pair, _learnt(pair)) for pair in pairs]
    held = _held_out([pair.scene for pair in pairs], options.held_out)
    head = train_head([one for pair, one in learnt if pair.scene not in held], seed=options.seed)
    head.save(options.out, models[1].name)
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    right = {
        kind: accuracy(head, [one for pair, one in learnt if pair.scene in held and pair.kind == kind])
        for kind in kinds
    }
    whole = accuracy(head, [one for pair, one in learnt if pair.scene in held])
    told = ", ".join(f"{kind} {share:.1%}" for kind, share in right.items() if share == share)
    scenes = len({pair.scene for pair in pairs})
    print(f"{options.out}: trained on {len(pairs)} pairs of {scenes} scenes, {len(held)} of them held out")
    print(f"right on held-out pairs: {whole:.1%} ({told})" if held else "nothing was held out to test it on")
    finite = {kind: share if share == share else None for kind, share in right.items()}
    return {"head": str(options.out), "pairs": len(pairs), "scenes": scenes, "held_out": len(held)} | {
        "accuracy": whole if whole == whole else None,
        "by_kind": finite,
    }


def preferences_arguments(parser: argparse.ArgumentParser) -> None:
    clips = "Clips, folders of them, or a manifest: each is distorted. Default: the embedded world's scenes."
    parser.add_argument("--clips", nargs="+", type=Path, default=[], help=clips)
    study = "Folders of `ipro study` that asked about identity: every vote is a pair."
    parser.add_argument("--study", nargs="+", type=Path, default=[], help=study)
    parser.add_argument("--out", "-o", type=Path, default=Path("preference.safetensors"), help="The file.")
    pack = "A face pack: its folder, or its name under a models/insightface; default: antelopev2."
    parser.add_argument("--faces", help=pack)
    kinds = "How clips are distorted; default: all."
    parser.add_argument(
        "--kinds", nargs="+", choices=list(DISTORTIONS), default=list(DISTORTIONS), help=kinds
    )
    parser.add_argument("--scenes", type=int, default=SCENES, help="Scenes of the embedded world to look at.")
    parser.add_argument(
        "--split", default="tuning", choices=["tuning", "checks", "held_out"], help="Of them."
    )
    parser.add_argument("--frames", type=int, default=17, help="Frames of each clip.")
    parser.add_argument("--fps", type=float, default=8.0, help="Frames per second of them.")
    parser.add_argument("--held-out", type=float, default=0.25, help="Share of the scenes to test it on.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Decides the strengths, and where training starts."
    )


def _pack(options: argparse.Namespace) -> Path:
    if options.clips or options.study:
        return find_pack(options.faces or "antelopev2", pack_roots())
    return find_pack(options.faces, pack_roots()) if options.faces else FACE_PACK


def _distorted(options: argparse.Namespace, detector: Detector, recognizer: Recognizer) -> Iterator[Pair]:
    if options.clips:
        named = [(str(clip), clip) for clip in find_clips(options.clips)]
        fps = options.fps
        clips: Any = (
            (name, read_frames(clip.video, first_shown(clip.start, fps), options.frames, fps=fps))
            for name, clip in named
        )
        count = len(named)
    elif options.study:
        return
    else:
        shown = (scene for scene in tiny_scenes(options.split, options.scenes) if shows_two(scene))
        clips, count = ((scene.name, scene.frames_TCHW) for scene in shown), None
    for number, (name, frames_TCHW) in enumerate(progress(clips, "distorting", count)):
        yield from clip_pairs(
            name, frames_TCHW, detector, recognizer, kinds=options.kinds, seed=options.seed + number
        )


def _learnt(pair: Pair) -> Preference:
    first, second = (features(look(seen, pair.people)) for seen in (pair.first, pair.second))
    return Preference(first, second, pair.share)


def shows_two(scene: TinyScene) -> bool:
    """Whether the embedded world's scene shows a bystander who can be known."""
    return scene.visible_TK[:, 1].mean().item() > TOGETHER


def _held_out(scenes: Sequence[str], share: float) -> set[str]:
    """Every so many-th scene, in the order given."""
    own = list(dict.fromkeys(scenes))
    return {scene for number, scene in enumerate(own) if int((number + 1) * share) > int(number * share)}
