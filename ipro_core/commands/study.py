"""`ipro study`: videos of two methods or more, judged blind by people in their browsers (Section 5.4)."""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation.preferences import study_results
from ..evaluation.study import Study
from ..evaluation.study_design import QUESTIONS, StudySettings
from ..evaluation.study_server import StudyServer
from ..evaluation.study_sources import questions_for, read_sets
from ..evaluation.study_words import results_in_words
from ..files import write_atomically
from .flags import add_knobs, given_knobs, progress

PORT = 8765


def study(options: argparse.Namespace) -> Mapping[str, Any]:
    """Have people judge videos blind, side by side: make a study, serve it, count its votes."""
    return options.action(options)


def study_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="action")
    for name, action, arguments in (
        ("make", make, _make_arguments),
        ("serve", serve, _serve_arguments),
        ("results", results, _results_arguments),
    ):
        summary = action.__doc__ or ""
        one = actions.add_parser(name, help=summary, description=summary)
        arguments(one)
        once_more = "Print one JSON object as the last line."
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=once_more)
        one.set_defaults(action=action)


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Make a study of a folder with one folder of videos a method, or of a manifest."""
    sets = read_sets(options.videos)
    questions = options.questions or questions_for(sets, QUESTIONS)
    settings = StudySettings(**given_knobs(options, *StudySettings.__dataclass_fields__))
    watched = progress(sets, "encoding", len(sets))
    plan = Study.make(options.out, options.title, questions, settings, watched).plan
    kinds = [trial.kind for trial in plan.trials]
    pairs, controls = kinds.count("pair"), len(kinds) - kinds.count("pair")
    print(
        f"{options.out}: {pairs} pairs by {', '.join(plan.methods)} on {len(plan.scenes)} scenes, and "
        f"{controls} controls; asked: {', '.join(plan.questions)}. Now: ipro study serve {options.out}"
    )
    return {"study": str(options.out), "methods": plan.methods, "scenes": len(plan.scenes)} | {
        "pairs": pairs,
        "controls": controls,
        "questions": list(plan.questions),
    }


def _make_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", type=Path, help="videos/METHOD/SCENE.mp4, or a JSONL manifest.")
    parser.add_argument("--out", "-o", type=Path, required=True, help="The study's folder, to be made.")
    parser.add_argument("--title", default="Which video is better?", help="What voters read first.")
    asked = "What is asked; default: all, and about the text where every scene has a prompt."
    parser.add_argument("--questions", nargs="+", choices=list(QUESTIONS), help=asked)
    add_knobs(parser, StudySettings)


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Serve a study's page until Ctrl+C; every vote is on disk before the page hears of it."""
    opened = Study.open(options.study)
    if not opened.plan.trials:
        raise ValueError(f"{options.study} has no videos yet: make a study of some.")
    with StudyServer(opened, options.host, options.port) as server:
        print(f"{server.address}   Ctrl+C ends it; what was voted is kept.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    votes = opened.ballots.votes()
    print(f"votes {len(votes)}, voters {len({vote.voter for vote in votes})}")
    return {"study": str(options.study), "address": server.address, "votes": len(votes)}


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="A folder that `ipro study make` made.")
    host = "127.0.0.1: this machine alone. 0.0.0.0: whoever reaches this machine and knows the address."
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--port", type=int, default=PORT, help=f"Default {PORT}; 0: a free one.")


def results(options: argparse.Namespace) -> dict[str, Any]:
    """Count the votes: win rates with intervals by voter and scene, strengths for more than two methods."""
    opened = Study.open(options.study)
    counted = study_results(opened)
    told = _finite(asdict(counted))
    path = opened.folder / "results.json"
    write_atomically(path, json.dumps(told, indent=2).encode() + b"\n")
    print(f"{results_in_words(counted)}\nresults  {path}")
    return {"results": str(path), **told}


def _results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="A folder that `ipro study make` made.")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
