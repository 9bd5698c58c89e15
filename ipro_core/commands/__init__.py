"""The commands of `ipro`: functions of the parsed options. Their docstrings are the help, their results what
--json prints."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import bench, pools, tuning


class Command(NamedTuple):
    run: Callable[[argparse.Namespace], Mapping[str, Any]]
    arguments: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "demo": Command(tuning.demo, tuning.demo_arguments),
    "pool": Command(pools.pool, pools.pool_arguments),
    "score": Command(pools.score, pools.score_arguments),
    "sample": Command(tuning.sample, tuning.sample_arguments),
    "train": Command(tuning.train, tuning.train_arguments),
    "evaluate": Command(tuning.evaluate, tuning.evaluate_arguments),
    "bench": Command(bench.bench, bench.bench_arguments),
    "export": Command(tuning.export, tuning.export_arguments),
}
