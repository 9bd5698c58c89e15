"""The commands of `ipro`: functions of the parsed options. Their docstrings are the help, their results what
--json prints."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import (
    bench,
    curate,
    demo,
    doctor,
    evaluate,
    paper_tables,
    pools,
    preferences,
    prompts,
    sample,
    study,
    train,
)


class Command(NamedTuple):
    run: Callable[[argparse.Namespace], Mapping[str, Any]]
    arguments: Callable[[argparse.ArgumentParser], None]


COMMANDS = {
    "doctor": Command(doctor.doctor, doctor.doctor_arguments),
    "demo": Command(demo.demo, demo.demo_arguments),
    "curate": Command(curate.curate, curate.curate_arguments),
    "pool": Command(pools.pool, pools.pool_arguments),
    "score": Command(pools.score, pools.score_arguments),
    "prompts": Command(prompts.prompts, prompts.prompts_arguments),
    "sample": Command(sample.sample, sample.sample_arguments),
    "train": Command(train.train, train.train_arguments),
    "evaluate": Command(evaluate.evaluate, evaluate.evaluate_arguments),
    "study": Command(study.study, study.study_arguments),
    "paper-tables": Command(paper_tables.paper_tables, paper_tables.paper_tables_arguments),
    "preferences": Command(preferences.preferences, preferences.preferences_arguments),
    "bench": Command(bench.bench, bench.bench_arguments),
    "export": Command(train.export, train.export_arguments),
}
