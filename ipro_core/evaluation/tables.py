"""report.json and report.csv: the same as the page, for programs and for spreadsheets."""

import csv
import json
from io import StringIO
from typing import Any

from .facesim import Scale, jsonable
from .verdict import Comparison, PairResult, VideoResult


def json_text(comparison: Comparison) -> str:
    """The figures, and every video of every pair with its curve."""
    pairs = [
        {
            "scene": pair.scene,
            "prompt": pair.prompt,
            "seed": pair.seed,
            "gain": pair.gain,
            "common": pair.common,
            **{which: _video(comparison, video) for which, video in pair.videos.items()},
        }
        for pair in comparison.pairs
    ]
    return json.dumps(comparison.figures() | {"per_pair": jsonable(pairs)}, indent=2, allow_nan=False) + "\n"


def _video(comparison: Comparison, video: VideoResult) -> dict[str, Any]:
    return {
        "facesim": video.facesim.figures(comparison.scale),
        "judge": video.judge.figures(comparison.judge_scale) if video.judge else None,
        "motion": video.motion,
        "turn": video.turn,
        "quality": dict(video.quality),
        "people": video.people.figures() if video.people else None,
    }


def csv_text(comparison: Comparison) -> str:
    """A row for every video."""
    rows = [
        _row(comparison, pair, which, video)
        for pair in comparison.pairs
        for which, video in pair.videos.items()
    ]
    text = StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)  # not every video has people
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(comparison: Comparison, pair: PairResult, which: str, video: VideoResult) -> dict[str, Any]:
    shared = {"base": pair.common[0], "tuned": pair.common[1]}
    row = {"scene": _plain(pair.scene), "prompt": _plain(pair.prompt), "seed": pair.seed, "video": which}
    row |= _measures("facesim", video, comparison.scale)
    row |= {"facesim_common": shared.get(which)}
    row |= _measures("judge", video, comparison.judge_scale) if comparison.judge_gain else {}
    row |= {"motion": video.motion, "turn": video.turn, **video.quality}
    if video.people:
        row |= {"worst_person": _plain(video.people.worst.name), "identity_f1": video.people.identity_f1}
        row |= {"swaps": len(video.people.swaps)}
    row |= {"recognizer": video.facesim.recognizer}
    return jsonable(row)


def _measures(name: str, video: VideoResult, scale: Scale) -> dict[str, Any]:
    sim = video.facesim if name == "facesim" else video.judge
    keys = ("all", "calibrated", "found", "coverage", "first", "drift_tail", "worst_frame")
    return {f"{name}_{key}": sim.figures(scale)[key] if sim else None for key in keys}


def _plain(text: str) -> str:
    """Spreadsheets run what begins like a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
