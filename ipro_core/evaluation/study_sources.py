"""Videos for a study: a folder with one folder a method, or a manifest; and how such a folder is left.

videos/base/anna@0.mp4, videos/tuned/anna@0.mp4      scene, and the seed after @ if there is one
videos/inputs/anna.png, videos/inputs/anna.txt       the input image and the prompt, if there are any
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..clips.scenes import SUFFIXES
from ..clips.video import write_picture, write_video
from ..files import write_atomically
from .study import VideoSet

INPUTS = "inputs"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def read_sets(place: Path | str) -> list[VideoSet]:
    """
    Raises:
        ValueError: there are no two methods, or one lacks a scene that another has.
    """
    place = Path(place)
    if not place.exists():
        raise ValueError(f"{place} does not exist: name a folder with one folder of videos a method.")
    named, inputs = _folder(place) if place.is_dir() else _manifest(place)
    methods = list(dict.fromkeys(method for videos in named.values() for method in videos))
    if len(methods) < 2:
        raise ValueError(
            f"{place} holds videos by {methods[0] if methods else 'no method'}: a study needs two methods "
            "or more, a folder of videos each."
        )
    for (scene, seed), videos in named.items():
        if lacking := [method for method in methods if method not in videos]:
            which = f"{scene}, seed {seed}," if seed else scene
            raise ValueError(f"{which} has no video by {lacking[0]}: every scene needs one by each method.")
    return [
        VideoSet(scene, {method: videos[method] for method in methods}, *inputs.get(scene, (None, "")))
        for (scene, _), videos in sorted(named.items())
    ]


Named = dict[tuple[str, str], dict[str, Path]]
"""(scene, seed) → method → file."""
Inputs = dict[str, tuple[Path | None, str]]


def _folder(place: Path) -> tuple[Named, Inputs]:
    named: Named = {}
    folders = sorted(path for path in place.iterdir() if path.is_dir() and path.name != INPUTS)
    for folder in folders:
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                scene, seed = _scene_and_seed(file.stem)
                videos = named.setdefault((scene, seed), {})
                if folder.name in videos:
                    raise ValueError(f"{folder} holds two videos of {file.stem}: keep one.")
                videos[folder.name] = file
    inputs: Inputs = {}
    for scene, _ in named:
        pictures = [place / INPUTS / f"{scene}{suffix}" for suffix in PICTURES]
        words = place / INPUTS / f"{scene}.txt"
        picture = next((path for path in pictures if path.is_file()), None)
        inputs[scene] = picture, words.read_text(encoding="utf-8") if words.is_file() else ""
    return named, inputs


def _manifest(place: Path) -> tuple[Named, Inputs]:
    named: Named = {}
    inputs: Inputs = {}
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = dict(json.loads(line))
            scene, method, video = (str(row[key]) for key in ("scene", "method", "video"))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Line {number} of {place} must be a JSON object with scene, method and video ({error})."
            ) from None
        videos = named.setdefault((scene, str(row.get("seed", ""))), {})
        if method in videos:
            raise ValueError(f"Line {number} of {place}: {scene} has a video by {method} already.")
        videos[method] = place.parent / video
        image = place.parent / str(row["image"]) if row.get("image") else None
        before = inputs.get(scene, (None, ""))
        inputs[scene] = image or before[0], str(row.get("prompt") or before[1])
    return named, inputs


def _scene_and_seed(stem: str) -> tuple[str, str]:
    told = re.fullmatch(r"(.+)@(\d+)", stem)
    return (told[1], told[2]) if told else (stem, "")


def keep_videos(
    folder: Path,
    scene: str,
    seed: int,
    videos: Mapping[str, Tensor],
    fps: float,
    *,
    image_CHW: Tensor,
    prompt: str = "",
) -> None:
    """Leave one scene's videos, by method, for a study to be made of."""
    name = re.sub(r"[^\w .-]", "_", scene).strip(" .") or "scene"
    for place in (INPUTS, *videos):
        (folder / place).mkdir(parents=True, exist_ok=True)
    write_picture(folder / INPUTS / f"{name}.png", image_CHW)
    if prompt:
        write_atomically(folder / INPUTS / f"{name}.txt", prompt.encode())
    for method, frames_TCHW in videos.items():
        # Finer than for the eye, because a study encodes it once more.
        write_video(folder / method / f"{name}@{seed}.mp4", frames_TCHW, fps, crf=10)


def questions_for(sets: Iterable[VideoSet], names: Iterable[str]) -> list[str]:
    """Those of the questions that can be answered: what a text asks for, only where there is one."""
    texts = all(videos.prompt.strip() for videos in sets)
    return [name for name in names if name != "text" or texts]
