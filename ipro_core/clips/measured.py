"""What a curation's folder keeps of what was measured: `measures.jsonl` and `pictures`.

The former only grows, one line for each shot under its file's content and the networks that looked at it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..files import sha256
from .lines import append_rows, read_rows
from .measures import Look, PersonMeasures, ShotMeasures, measure_video
from .pictures import sheet
from .settings import MeasureSettings
from .shots import cut_finder
from .video import write_picture

MEASURES, PICTURES = "measures.jsonl", "pictures"


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
                append_rows(folder / MEASURES, [asdict(shot) for shot in known[content]])
            yield [replace(shot, video=str(video)) for shot in known[content]]


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
    for row in read_rows(path):
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
