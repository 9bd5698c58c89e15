"""The files of a curation: what was measured, line by line as it is measured; what was judged; pictures.

A folder holds `measures.jsonl`, which only grows, one line for each shot under its file's content and the
networks that looked at it; `manifest.jsonl`, every shot that was judged with measurements, rulings, licence,
prompt and split, written whole; and `pictures`. Nothing is ever deleted, no clip is ever moved.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..files import sha256, write_atomically
from ..types import Clip
from .lines import append_lines, read_lines
from .measures import Look, MeasureSettings, PersonMeasures, ShotMeasures, measure_video
from .pictures import sheet
from .shots import cut_finder
from .splits import Split
from .video import write_picture

MEASURES, MANIFEST, PICTURES = "measures.jsonl", "manifest.jsonl", "pictures"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Source:
    """Where a clip is from and what may be done with it: these are faces of people."""

    licence: str = UNKNOWN
    consent: str = UNKNOWN
    """Whether the people agreed, and to what."""
    source: str = UNKNOWN
    """An address, or a word."""


def measure(
    videos: Sequence[Path],
    folder: Path,
    open_models: Callable[[], tuple[Detector, Recognizer]],
    settings: MeasureSettings,
    *,
    names: Sequence[str],
) -> Iterator[list[ShotMeasures]]:
    """The shots of each video: read where they were measured before, else measured and written down at once.

    Args:
        folder: of the curation; whatever ends this process, only the video in work is lost.
        open_models: called for the first video that is to be measured; not at all if there is none.
        names: of the face networks.

    Raises:
        ValueError: another process is at work in the folder.
    """
    made_by = "; ".join([*names, *(f"{name} {value}" for name, value in asdict(settings).items())])
    made_by += f"; cuts by {cut_finder()}"
    with _alone(folder):
        known, models = _known(folder / MEASURES, made_by), None
        for video in videos:
            content = sha256(video)
            if content not in known:
                models = models or open_models()
                measured = measure_video(video, *models, settings, made_by=made_by)
                for shot, look in measured:
                    if look is not None:
                        _write_sheets(folder / PICTURES, shot, look)
                known[content] = [shot for shot, _ in measured]
                append_lines(folder / MEASURES, [asdict(shot) for shot in known[content]])
            yield [replace(shot, video=str(video)) for shot in known[content]]


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
    rows = read_lines(path)
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


def sheet_path(folder: Path, shot: ShotMeasures, kind: Literal["frames", "faces"]) -> Path:
    """Where a shot's pictures are; there are no faces where none was seen."""
    return folder / PICTURES / f"{shot.key}-{kind}.jpg"


def _write_sheets(folder: Path, shot: ShotMeasures, look: Look) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, pictures in (("frames", look.frames), ("faces", look.portraits)):
        if pictures:
            write_picture(folder / f"{shot.key}-{kind}.jpg", sheet(pictures))


def _known(path: Path, made_by: str) -> dict[str, list[ShotMeasures]]:
    """By content: the files whose every shot was measured in this way."""
    found: dict[str, list[ShotMeasures]] = {}
    for row in read_lines(path):
        if row["made_by"] == made_by:
            people = tuple(PersonMeasures(**person) for person in row["people"])
            shot = ShotMeasures(**{**row, "people": people, "hashes": tuple(row["hashes"])})
            found.setdefault(shot.sha256, []).append(shot)
    return {content: shots for content, shots in found.items() if len(shots) == shots[0].shots}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Not per thread: a host may end the work from another thread than it was begun in.
        with FileLock(folder / "curate.lock", timeout=0, thread_local=False):
            yield
    except Timeout:
        raise ValueError(
            f"Another process curates into {folder}: wait for it, or choose another folder."
        ) from None
