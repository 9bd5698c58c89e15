"""How often real clips are called suspect, and what each damage does to its suspicion; for quality.md.

    python docs/suspicions.py measure signs.json --pack ../shared/weights/insightface/models/antelopev2 \\
        --clips ../shared/media/clips/*.mp4 ../shared/media/derived/i2v81_*.mp4
    python docs/suspicions.py judge signs.json

Measuring takes minutes, judging none. A piece of a clip is never judged by limits that another piece of the
same person made.
"""

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipro_core.clips.video import iterate_frames
from ipro_core.evaluation import corruptions
from ipro_core.evaluation.bands import KINDS, Signs, band_of
from ipro_core.evaluation.rates import Rate
from ipro_core.evaluation.signs import Watched, input_face, measure_signs, watch
from ipro_core.faces.alignment import crop_faces
from ipro_core.faces.detector import Detector
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.recognizer import Recognizer
from ipro_core.tinyworld import FACE_PACK
from ipro_core.tinyworld.painting import render
from ipro_core.tinyworld.scenes import PROMPTS, split_generator
from ipro_core.tinyworld.world import draw_clips

WORLD, DAMAGED, FRAMES, SIDE = 160, 30, 17, 96
"""Clips of the embedded world, how many of them are damaged too, their frames and pixels."""
PIECE, PIECES = 13, 2
"""Frames of a piece of a real clip, every second one of the file's, and pieces of a clip."""
DAMAGES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "first frame for ever": (corruptions.still, "stiffness"),
    "first face pasted on every frame": (corruptions.frozen_face, "pasted face"),
    "face smoothed": (corruptions.smoothed_face, "surface"),
    "face sharpened": (corruptions.sharpened_face, "surface"),
    "blocks of 8 pixels": (corruptions.blocks, "surface"),
    "flicker of ±0.03": (corruptions.flicker, "surface"),
    "face grows 1.5 times": (corruptions.growing_face, "size"),
    "turns into another face": (corruptions.other_face, "other face"),
    "second face beside the head": (corruptions.second_face, "more faces"),
    "all but the head stands still": (corruptions.frozen_background, "still background"),
}
Networks = tuple[Detector, Recognizer]


def measured(
    clips: Sequence[tuple[str, Tensor]], damaged: Collection[int], networks: Networks
) -> Iterator[dict[str, Any]]:
    """A row for every clip and every damage to those of these numbers: whose, what, and the signs."""
    seen: dict[str, Tensor] = {}
    for n, (who, frames_TCHW) in enumerate(clips):
        try:
            reference_D, faces = input_face(frames_TCHW[0], *networks)
        except ValueError:  # it does not begin with a face
            continue
        real = watch(frames_TCHW, *networks, reference_D)

        def signs(clip: Watched, real: Watched = real, reference_D=reference_D, faces=faces) -> Signs:
            return measure_signs(clip, real.frames_TCHW[0], reference_D, faces, real)

        yield {"who": who, "what": "real", "signs": signs(real)}
        if n in damaged:
            for name, (damage, _) in DAMAGES.items():
                strangers = [crop for other, crop in seen.items() if other != who]
                if damage is corruptions.other_face and not strangers:
                    continue
                given = strangers[-1:] if damage is corruptions.other_face else ()
                frames = damage(real.frames_TCHW, real.track, *given)
                yield {"who": who, "what": name, "signs": signs(watch(frames, *networks, reference_D))}
        seen[who] = crop_faces(frames_TCHW[:1], real.track.points_T52[:1], 64)[0]


def world_clips() -> list[tuple[str, Tensor]]:
    """One person each, nothing before the face."""
    generator = split_generator("checks", 21)
    prompts = [PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))] for _ in range(WORLD)]
    scenes = draw_clips(prompts, generator, frames=FRAMES)
    clear = scenes.occluders_NTO8 * torch.tensor([1.0] * 7 + [0.0])
    alone = torch.tensor([[1.0, 0.0]]).expand(WORLD, -1)
    scenes = replace(scenes, present_NK=alone, occluders_NTO8=clear)
    return [(f"{n}", render(scenes[n : n + 1], SIDE)[0]) for n in range(WORLD)]


def real_pieces(files: Sequence[Path]) -> list[tuple[str, Tensor]]:
    """Pieces of real clips, of 480 px at most on the longer side; a person's name is the file's last word."""
    pieces = []
    for file in files:
        frames = torch.cat(list(iterate_frames(file, 0, 2 * PIECE * PIECES, max_side=480)))[::2]
        pieces += [(file.stem.split("_")[-1], piece) for piece in frames.split(PIECE) if len(piece) == PIECE]
    return pieces


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    told: dict[str, list[dict[str, Any]]] = {
        "world": list(measured(world_clips(), range(WORLD)[-DAMAGED:], load_face_models(FACE_PACK)))
    }
    options.signs.write_text(json.dumps(told))
    if options.clips:
        pieces = real_pieces(options.clips)
        told["real"] = []
        for row in measured(pieces, range(len(pieces))[1::PIECES], load_face_models(options.pack)):
            told["real"].append(row)
            options.signs.write_text(json.dumps(told))


def auc(damaged: Sequence[float], real: Sequence[float]) -> float:
    """How often a damaged clip's score lies above a real one's; a tie counts half."""
    a, b = np.array(damaged)[:, None], np.array(real)[None]
    return float((a > b).mean() + (a == b).mean() / 2)


def judge(options: argparse.Namespace) -> None:
    for source, rows in json.loads(options.signs.read_text()).items():
        people = sorted({row["who"] for row in rows})
        # Of the embedded world every clip is somebody else's: half of them judge the other half.
        held = [people[half::2] for half in (0, 1)] if source == "world" else [[who] for who in people]
        judged: list[tuple[dict, dict[str, float], tuple[str, ...]]] = []
        for some in held:
            band = band_of([row["signs"] for row in rows if row["what"] == "real" and row["who"] not in some])
            judged += [
                (row, band.scores(row["signs"]), band.suspicions(row["signs"]))
                for row in rows
                if row["who"] in some
            ]
        real = [(row, scores, found) for row, scores, found in judged if row["what"] == "real"]
        alarms = Rate(sum(bool(found) for *_, found in real), len(real))
        low, high = alarms.ci95
        print(f"{source}: {len(real)} real clips of {len(people)}, suspected {alarms.count}", end=" ")
        print(f"({alarms.share:.1%}, 95 % {low:.1%} to {high:.1%})")
        for kind in KINDS:
            count = sum(kind.name in found for *_, found in real)
            print(f"  {kind.name:<18} {count:3d}")
        print(f"  {'damage':<34} {'suspicion':<18} AUC   up   found  any")
        for name, (_, kind) in DAMAGES.items():
            some = [one for one in judged if one[0]["what"] == name]
            if not some:
                continue
            own = {id(one): s[kind] for one in some for row, s, _ in real if row["who"] == one[0]["who"]}
            up = np.mean([one[1][kind] > own[id(one)] for one in some])
            found = np.mean([kind in one[2] for one in some])
            anything = np.mean([bool(one[2]) for one in some])
            area = auc([one[1][kind] for one in some], [scores[kind] for _, scores, _ in real])
            print(f"  {name:<34} {kind:<18} {area:.2f} {up:5.0%} {found:5.0%} {anything:5.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("measure", "judge"))
    parser.add_argument("signs", type=Path, help="Where the signs are kept.")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--clips", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    {"measure": measure, "judge": judge}[options.task](options)


if __name__ == "__main__":
    main()
