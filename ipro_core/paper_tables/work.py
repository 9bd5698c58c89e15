"""One run of one row: tuned, then judged on people of no training; each part is kept when it is done."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache import TensorCache
from ..clips.scenes import Scene
from ..evaluation.compare import compare_videos
from ..evaluation.facesim import jsonable
from ..evaluation.guards import Guards
from ..evaluation.verdict import VideoResult, judged
from ..files import write_atomically
from ..job import Job, Tuner, adapter_of_run, name_of_scenes, showing_faces, usable
from ..runs import Run, read_config, read_metrics, read_seconds
from ..studio import Sampler, Studio
from ..tinyworld import open_tiny_world
from ..tinyworld.scenes import tiny_scenes
from ..training.loop import MAY_DIFFER
from ..training.presets import Preset
from ..wan_settings import WanFiles
from .plan import HELD_OUT, SCENES, WORLD, Row

OUTCOME = "outcome.json"
Look = Callable[[str, int, int], None]
"""Told what is done, how many of it, of how many."""


def run_row(row: Row, seed: int, folder: Path, look: Look = lambda *_: None) -> None:
    """Make folder/outcome.json, going on from whatever is there.

    Args:
        folder: of this run; the cache of scenes lies beside it.
    """
    torch.set_num_threads(1)
    cache, began = folder.parent / "cache", time.process_time()
    tune(row, seed, folder, cache, look)
    tuned = time.process_time()
    pairs = judge(folder, cache, look)
    told = {
        "row": row.name,
        "seed": seed,
        "seconds_of_tuning": sum(read_seconds(folder)),
        "seconds_of_judging": time.process_time() - tuned,
        "cpu_seconds_here": time.process_time() - began,
        "kl": [record.metrics.get("kl", math.nan) for record in read_metrics(folder)],
        **pairs,
    }
    write_atomically(folder / OUTCOME, json.dumps(jsonable(told), indent=1).encode() + b"\n")


def tune(row: Row, seed: int, folder: Path, cache: Path, look: Look) -> None:
    """The run of `ipro train` with these settings, begun or gone on with."""
    studio, plan = open_studio(cache, row.by_scorer), row.plan(seed)
    job = Job(studio, replace(plan, framing=studio.framing), asdict(WanFiles()) | {"faces": ""})
    scenes: Sequence[Scene] = list(tiny_scenes("tuning", SCENES, world=WORLD))
    config = job.config([], SCENES, name_of_scenes(scenes))
    begun = (folder / "config.json").exists()
    opened = Run.open(folder, config, may_differ=MAY_DIFFER) if begun else Run.create(folder, config)
    with opened as run:
        for work in job.prepare(scenes):
            deque(work.items, maxlen=0)
        tuner = Tuner(job, usable(studio, scenes))
        with closing(tuner.records(run)) as records:
            for record in records:
                look("tuning", record.step, plan.loop.updates)


def judge(folder: Path, cache: Path, look: Look) -> dict[str, Any]:
    """Each held-out scene by the base and by the tuned model, from the same noise."""
    studio, settings = open_studio(cache), Preset.from_config(read_config(folder)).method
    scenes = showing_faces(studio, tiny_scenes("held_out", HELD_OUT, world=WORLD))
    for work in studio.prepare(scenes, settings, [0], faces=False):
        deque(work.items, maxlen=0)
    model, codec, faces = studio.model.open(), studio.codec.open(), studio.faces.open()
    model.place_adapter(adapter_of_run(folder)[1])

    def decoded(real_TCHW: Tensor) -> Tensor:
        return codec.decode(codec.encode(real_TCHW[None]))[0].clamp(0, 1)

    guards = Guards(studio.framing.fps, faces=faces, decoded=decoded)
    seen = guards.watch(Sampler(studio, model, codec, settings).pairs(scenes, [0]))
    assert studio.judge
    pairs = []
    comparison = compare_videos(seen, *faces, studio.judge.open())
    for pair in comparison.pairs:
        pairs.append({"scene": pair.scene, **{which: _measured(one) for which, one in pair.videos.items()}})
    hacking = guards.results().hacking
    assert hacking
    signs = [{"scene": clip.scene, "signs": clip.signs} for clip in hacking.clips]
    return {"pairs": pairs, "signs": signs, "stranger_floor": comparison.stranger_floor}


def open_studio(cache: Path, by_scorer: bool = False) -> Studio:
    """The world of turns; what is made of its scenes is shared by all runs.

    Args:
        by_scorer: the reward compares faces by the scorer's image tower.
    """
    studio = replace(open_tiny_world(world=WORLD), cache=TensorCache(cache))
    return replace(studio, face_encoder=studio.scorer) if by_scorer else studio


def _measured(video: VideoResult) -> dict[str, float]:
    return {
        "facesim": video.facesim.all,
        "judge": judged(video),
        "coverage": video.facesim.coverage,
        "motion": video.motion,
        "turn": video.turn,
        **video.quality,
    }
