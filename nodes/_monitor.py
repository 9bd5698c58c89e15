"""What the page is told of runs: events while one goes, and the same of any run when it asks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..ipro_core.types import StepRecord
from . import _comfy

RUNS = "ipro"
"""The folder of all runs, in the host's output."""
MOST_RECORDS = 500
_going: dict[str, Monitor] = {}
"""By the name of the run."""


def run_folder(name: str) -> Path:
    """A run's folder by its name."""
    return _comfy.inside(_comfy.output_folder() / RUNS, name)


class Monitor:
    """One run of this process, as the page follows it; use it in a `with`."""

    def __init__(self, node: str, folder: Path, updates: int) -> None:
        self.node, self.folder, self.updates = node, folder, updates
        self.state, self._before, self._seconds = "preparing", 0.0, list[float]()

    def tell_state(self, state: str, message: str = "") -> None:
        self.state = state
        run = {"node": self.node, "run": self.folder.name}
        _comfy.tell("ipro.state", {**run, "state": state, "message": message})

    def tell_step(self, record: StepRecord, sample: dict[str, Any] | None) -> None:
        now = time.perf_counter()
        self._seconds, self._before = [*self._seconds[-9:], now - self._before], now
        mean = sum(self._seconds) / len(self._seconds)
        _comfy.tell(
            "ipro.step",
            {
                "node": self.node,
                "prompt_id": _comfy.prompt_id(),
                "run": self.folder.name,
                "step": record.step,
                "updates": self.updates,
                "metrics": record.metrics,
                "seconds": self._seconds[-1],
                "left": mean * (self.updates - record.step),
                "sample": sample,
            },
        )

    def begin_steps(self) -> None:
        self._before = time.perf_counter()
        self.tell_state("training")

    def __enter__(self) -> Monitor:
        _going[self.folder.name] = self
        self.tell_state("preparing")
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        del _going[self.folder.name]
        if kind is None:
            self.tell_state("finished")
        elif issubclass(kind, _comfy.Interrupted):
            self.tell_state("cancelled", "Queue the same graph again, and the run goes on.")
        else:
            self.tell_state("failed", str(error))


def run_told(folder: Path) -> dict[str, Any]:
    """All that the page draws of a run, going or over.

    Raises:
        ValueError: there is no such run.
    """
    from ..ipro_core.runs import read_config, read_metrics, read_seconds

    updates, going = read_config(folder)["loop"]["updates"], _going.get(folder.name)
    records = [
        {"step": record.step, "seconds": seconds, "metrics": record.metrics}
        for record, seconds in zip(read_metrics(folder), read_seconds(folder), strict=False)
    ]
    done = records[-1]["step"] if records else 0
    return {
        "run": folder.name,
        "updates": updates,
        "records": _thinned(records),
        "state": going.state if going else "finished" if done >= updates else "saved",
        "sample": latest_sample(folder),
    }


def _thinned(records: list[Any]) -> list[Any]:
    """Evenly, with the last."""
    every = -(-len(records) // MOST_RECORDS) or 1
    return records[::-1][::every][::-1]


def write_sample(folder: Path, step: int, videos: dict[str, Any], fps: float) -> None:
    """Keep what base and tuned made of one scene after an update."""
    from ..ipro_core.clips.video import write_video

    for which, frames_TCHW in videos.items():
        write_video(folder / "samples" / f"update-{step:06d}-{which}.mp4", frames_TCHW, fps)


def latest_sample(folder: Path) -> dict[str, Any] | None:
    tuned = sorted((folder / "samples").glob("update-*-tuned.mp4"))
    return {which: _place(tuned[-1], which) for which in ("base", "tuned")} if tuned else None


def _place(tuned: Path, which: str) -> dict[str, str]:
    name = tuned.name.replace("-tuned", f"-{which}")
    return {"filename": name, "subfolder": f"{RUNS}/{tuned.parents[1].name}/samples", "type": "output"}


def add_routes() -> None:
    """Addresses for a page that was reloaded while a run goes. Nothing is written by any."""
    from aiohttp import web

    routes = _comfy.routes()

    @routes.get("/ipro/run")
    async def run(request: Any) -> Any:
        try:
            told = run_told(run_folder(Path(request.query.get("name", "")).name))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=404)
        return web.json_response(told)

    @routes.get("/ipro/active")
    async def active(request: Any) -> Any:
        runs = [{"node": monitor.node, "run": name} for name, monitor in list(_going.items())]
        return web.json_response({"runs": runs})
