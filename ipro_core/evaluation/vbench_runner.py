"""The official `vbench` in an environment of its own: its packages would break everybody else's.

A Python of the user's that has vbench is run as a process of its own, and what it writes is read. On its
first run vbench fetches its own weights into ~/.cache/vbench (or $VBENCH_CACHE_DIR); nothing else here
downloads.
"""

import json
import logging
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("ipro")

OFFICIAL = {
    "sc": "subject_consistency",
    "bc": "background_consistency",
    "aq": "aesthetic_quality",
    "tf": "temporal_flickering",
    "dd": "dynamic_degree",
    "iq": "imaging_quality",
    "ms": "motion_smoothness",
}
# Run by the other interpreter: one dimension at a time, so that one that cannot be imported loses no other.
PROGRAM = """
import json, sys
from vbench import VBench
order = json.loads(sys.argv[1])
for dimension in order["dimensions"]:
    try:
        bench = VBench(order["device"], "", order["folder"])
        told = {"videos_path": order["videos"], "name": dimension, "dimension_list": [dimension]}
        bench.evaluate(**told, mode="custom_input")
    except Exception as error:
        print(f"ipro: {dimension}: {type(error).__name__}: {error}", flush=True)
"""


@dataclass(frozen=True)
class OfficialScore:
    """What vbench says of a folder of videos."""

    dimension: str
    value: float | None
    """As its tables give it."""
    videos: dict[str, float]
    """By file name, as vbench writes them: IQ 0 to 100, DD 1 or 0."""
    reason: str = ""


def run_vbench(
    python: Path | str,
    videos: Path | str,
    dimensions: Sequence[str] = tuple(OFFICIAL),
    *,
    device: str = "cuda",
    timeout: float = 24 * 3600.0,
) -> dict[str, OfficialScore]:
    """Score a folder of .mp4 files.

    Args:
        python: the interpreter of an environment with vbench.
        dimensions: short names.

    Raises:
        ValueError: there is no such interpreter, no video, no vbench in it, or it takes too long.
    """
    python, folder = Path(python).expanduser(), Path(videos)
    if not python.is_file():
        raise ValueError(
            f"There is no Python at {python}: give the interpreter of an environment with vbench."
        )
    if not list(folder.glob("*.mp4")):
        raise ValueError(f"{folder} holds no .mp4 file for vbench to score.")
    for short in dimensions:
        if short not in OFFICIAL:
            raise ValueError(f"vbench has no {short}: choose of {', '.join(OFFICIAL)}.")
    log.warning("vbench fetches weights that it lacks into its own cache.")
    with tempfile.TemporaryDirectory() as scratch:
        names = [OFFICIAL[short] for short in dimensions]
        order = {"dimensions": names, "device": device, "folder": scratch, "videos": str(folder.resolve())}
        said = _run(python, order, timeout)
        return {short: _score(short, Path(scratch), said) for short in dimensions}


def _run(python: Path, order: dict, timeout: float) -> str:
    # Neither our packages nor our modules in the other interpreter.
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        done = subprocess.run(
            [str(python), "-c", PROGRAM, json.dumps(order)],
            cwd=order["folder"],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"vbench did not end within {timeout:g} seconds: give it fewer videos.") from None
    except OSError as error:
        raise ValueError(f"{python} cannot be run ({error}).") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()
        raise ValueError(
            f"vbench failed in {python}: {lines[-1]}. Install it there with pip install vbench "
            '"setuptools<81", on Python 3.10 or 3.11.'
        )
    return done.stdout


def _score(short: str, folder: Path, said: str) -> OfficialScore:
    name = OFFICIAL[short]
    try:
        mean, rows = json.loads((folder / f"{name}_eval_results.json").read_text())[name]
        videos = {Path(row["video_path"]).name: float(row["video_results"]) for row in rows}
        value = float(mean)
    except FileNotFoundError:
        told = [line for line in said.splitlines() if line.startswith(f"ipro: {name}: ")]
        reason = told[-1].removeprefix(f"ipro: {name}: ") if told else "vbench wrote no result"
        return OfficialScore(name, None, {}, reason)
    except (ValueError, KeyError, TypeError) as error:
        return OfficialScore(name, None, {}, f"vbench's result cannot be read ({error})")
    if not math.isfinite(value):
        return OfficialScore(name, None, videos, "vbench's result is no number")
    return OfficialScore(name, value, videos)
