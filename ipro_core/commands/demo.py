"""`ipro demo`: the whole job on the embedded world."""

import argparse
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clips.video import write_video
from ..runs import read_config
from ..tinyworld import FRAMING, open_tiny_world
from ..training.presets import Preset
from .evaluate import add_judging, judge, table, write_reports
from .train import add_tuning, tune

FIGURES = (
    *("facesim_base", "facesim_tuned", "gain", "gain_ci95", "judge_gain", "judge_gain_ci95"),
    *("motion_ratio", "real_ceiling", "kl", "hack_flags"),
)


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """Tune the embedded model on its own world and measure the gain on people it never saw."""
    began = time.monotonic()
    options.run = options.run or _free_folder(Path("runs") / "demo")
    options.json = True  # the demo always ends with its figures
    tune(options)
    config, films = read_config(options.run), list[Tensor]()
    studio = open_tiny_world(config["files"]["faces"] or None)
    comparison = judge(
        options, studio, [], Preset.from_config(config).method, lambda _, film_TCHW: films.append(film_TCHW)
    )
    report = options.run / "report.html"
    write_reports(report, comparison, config, options.run)
    write_video(options.run / "samples" / "side_by_side.mp4", torch.cat(films), FRAMING.fps)
    print(table(comparison, report))
    figures = comparison.figures()
    outcome = {name: figures[name] for name in FIGURES}
    return outcome | {"minutes": round((time.monotonic() - began) / 60, 2), "run": str(options.run)}


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="The run's folder; default: a new one under runs.")
    parser.set_defaults(resume=False, clips=[], references=[], person="", votes=None, lora=None)
    add_tuning(parser)
    add_judging(parser)


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that does not exist."""
    tries = (folder.with_name(f"{folder.name}-{number}") if number > 1 else folder for number in count(1))
    return next(path for path in tries if not path.exists())
