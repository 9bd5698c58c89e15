"""A study's results in words."""

import math

from .preferences import PairPreference, StudyResults
from .study_design import QUESTIONS


def results_in_words(counted: StudyResults) -> str:
    """A few lines for a terminal or a node's panel."""
    lines = [f"votes on pairs {counted.votes}, voters {counted.voters}, scenes {counted.scenes}"]
    if not counted.votes:
        lines[0] = "Nobody has voted on a pair yet."
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
        lines.append(f"stopped before they met a control, and are counted: {counted.unchecked}")
    lines += [f"left out: voter {voter[:6]} {reason}" for voter, reason in counted.left_out.items()]
    if counted.damaged:
        lines.append(f"cut short while they were written, and not counted: {counted.damaged} lines")
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
