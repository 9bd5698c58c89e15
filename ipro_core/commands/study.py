"""`ipro study`: videos of two methods or more, judged blind by people in their browsers (Section 5.4)."""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation.preferences import PairPreference, StudyResults, study_results
from ..evaluation.study import QUESTIONS, Study, StudySettings
from ..evaluation.study_server import StudyServer
from ..evaluation.study_sources import questions_for, read_sets
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
    made = Study.create(options.out, options.title, questions, settings)
    for videos in progress(sets, "encoding", len(sets)):
        made.add(videos)
    plan = made.plan
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
    print(f"{len(votes)} votes by {len({vote.voter for vote in votes})} voters.")
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
    print(f"{table(counted)}\nresults  {path}")
    return {"results": str(path), **told}


def _results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="A folder that `ipro study make` made.")


def table(counted: StudyResults) -> str:
    """The results for a terminal."""
    lines = [f"{counted.votes} votes by {counted.voters} voters on {counted.scenes} scenes"]
    if not counted.votes:
        lines[0] = "There is no vote yet."
    for question in counted.questions:
        lines.append(QUESTIONS[question.question].title)
        lines += [_pair_line(pair) for pair in question.pairs]
        lines += [
            f"    {one.method:<20} strength {one.strength:+.2f}   95 % {_span(one.ci95, '+.2f')}"
            for one in question.strengths
        ]
    if math.isfinite(counted.left_share):
        lines.append(f"left was preferred in {counted.left_share:.0%} of all preferences")
    if counted.unchecked:
        lines.append(f"{counted.unchecked} voters stopped before they met a control, and are counted")
    lines += [f"left out: voter {voter[:6]} {reason}" for voter, reason in counted.left_out.items()]
    if counted.damaged:
        lines.append(f"{counted.damaged} lines were cut short while they were written, and are not counted")
    return "\n".join(lines)


def _pair_line(pair: PairPreference) -> str:
    votes = pair.wins + pair.ties + pair.losses
    shares = (
        f"{pair.first} {pair.wins / votes:.0%}   no preference {pair.ties / votes:.0%}   "
        f"{pair.second} {pair.losses / votes:.0%}"
    )
    return f"    {shares}   {pair.first}'s rate {pair.rate:.2f}   95 % {_span(pair.ci95, '.2f')}"


def _span(ends: tuple[float, float], form: str) -> str:
    return f"{ends[0]:{form}} to {ends[1]:{form}}" if math.isfinite(ends[0]) else "not known from so few"


def _finite(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
