"""`ipro paper-tables`: the paper's tables in miniature, by one command that may be repeated."""

import argparse
import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..paper_tables.page import figures, markdown, read_results
from ..paper_tables.plan import ROWS, SEEDS, Row
from ..paper_tables.work import OUTCOME, run_row
from ..runs import read_metrics
from .flags import progress_bar

PAGE = "paper-tables.md"
TICK = 2.0
"""Seconds between two looks at what the runs have done."""


def paper_tables(options: argparse.Namespace) -> dict[str, Any]:
    """Rerun the paper's Tables 1 to 6 on the embedded world: every method, three seeds, with intervals."""
    wanted = [row for row in ROWS if not options.rows or row.name in options.rows]
    jobs = [(row, seed) for seed in SEEDS[: options.seeds] for row in wanted]
    options.out.mkdir(parents=True, exist_ok=True)
    work_through(jobs, options.out, options.processes)
    results = read_results(options.out)
    page = options.out / PAGE
    write_atomically(page, markdown(results).encode())
    print(markdown(results))
    return {"page": str(page), **figures(results)}


def paper_tables_arguments(parser: argparse.ArgumentParser) -> None:
    names = [row.name for row in ROWS]
    parser.add_argument("--out", type=Path, default=Path("runs") / "paper-tables", help="Where all runs lie.")
    parser.add_argument("--rows", nargs="+", choices=names, help="Some rows only; default: all.")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="How many of the seeds to tune with.")
    parser.add_argument("--processes", type=int, default=2, help="Runs at a time, one core each.")


def work_through(jobs: list[tuple[Row, int]], out: Path, processes: int) -> None:
    """Finish every run that is not finished, some at a time."""
    folders = {(row.name, seed): out / f"{row.name}-{seed}" for row, seed in jobs}
    left = [(row, seed) for row, seed in jobs if not (folders[row.name, seed] / OUTCOME).exists()]
    updates = {(row.name, seed): row.plan(seed).loop.updates for row, seed in left}
    bar = progress_bar("updates of all runs", total=sum(updates.values()))
    # Spawned: a forked process would share the threads of a torch that is already at work.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting: list[Future[None]] = [
            pool.submit(run_row, row, seed, folders[row.name, seed]) for row, seed in left
        ]
        try:
            while waiting:
                time.sleep(TICK)
                done = sum(len(read_metrics(folders[job])) for job in updates if folders[job].exists())
                bar.update(done - bar.n)
                for future in [future for future in waiting if future.done()]:
                    future.result()  # its refusal is the command's
                    waiting.remove(future)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
        finally:
            bar.close()
