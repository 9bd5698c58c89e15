"""The manifest of a curation: every shot that was judged, with measurements, rulings, licence, prompt, split.

It is written whole; no clip is ever moved.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..files import write_atomically
from ..types import Clip
from .lines import read_rows

Split = Literal["tuning", "evaluation"]
MANIFEST = "manifest.jsonl"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Source:
    """Where a clip is from and what may be done with it: these are faces of people."""

    licence: str = UNKNOWN
    consent: str = UNKNOWN
    """Whether the people agreed, and to what."""
    source: str = UNKNOWN
    """An address, or a word."""


def source_of(video: Path, otherwise: Source) -> Source:
    """What `clip.json` beside `clip.mp4` says, else `source.json` in its folder, else what is given.

    Raises:
        ValueError: the file is no JSON object of texts.
    """
    told: dict[str, str] = {}
    for place in (video.with_name("source.json"), video.with_suffix(".json")):
        if not place.exists():
            continue
        try:
            read = json.loads(place.read_text(encoding="utf-8"))
            told |= {name: read[name] for name in asdict(otherwise) if name in read}
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(
                f"{place} is no JSON object ({error}): write licence, consent, source."
            ) from None
    if not all(isinstance(value, str) for value in told.values()):
        raise ValueError(f"Licence, consent and source of {video} must be texts: see the .json beside it.")
    return replace(otherwise, **told)


def words_of(video: Path) -> str:
    """The prompt that the user wrote: `clip.txt` beside `clip.mp4`."""
    words = video.with_suffix(".txt")
    return words.read_text(encoding="utf-8").strip() if words.exists() else ""


def write_manifest(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Complete or not at all."""
    write_atomically(folder / MANIFEST, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The judged shots.

    Raises:
        ValueError: the file is missing or no manifest.
    """
    advice = "give a manifest.jsonl written by `ipro curate`"
    if not path.is_file():
        raise ValueError(f"There is no manifest at {path}: {advice}.")
    rows = read_rows(path)
    if not rows or not all({"video", "kept", "split", "start", "shots"} <= row.keys() for row in rows):
        raise ValueError(f"{path} is no manifest: {advice}.")
    return rows


def kept_clips(path: Path, split: Split) -> list[Clip]:
    """What a manifest keeps of one split, with prompts.

    Raises:
        ValueError: the file is missing, no manifest, or keeps nothing of that split.
    """
    rows = read_manifest(path)
    kept = [row for row in rows if row["kept"] and row["split"] == split]
    if not kept:
        found = sum(row["kept"] for row in rows)
        raise ValueError(
            f"{path} keeps no clip for {split} ({found} of {len(rows)} are kept in all): "
            "curate more clips, or change the limits or the split of `ipro curate`."
        )
    return [
        Clip(Path(row["video"]), row["prompt"])
        if row["shots"] == 1
        else Clip(Path(row["video"]), row["prompt"], row["start"], row["end"])
        for row in kept
    ]
