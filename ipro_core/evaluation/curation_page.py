"""index.html of a curation: how many shots each rule drops, every measurement with its limit, what was kept.

One file that opens anywhere, as the report does. File names and captions are other people's text: escaped.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..clips.curation import RULES, CurationSettings, Rule, Ruling, Verdict
from ..clips.manifest import sheet_path
from ..clips.video import read_image
from ..files import write_atomically
from .charts import histogram
from .film import picture_address, thumbnails
from .page import page

MOST_SHOWN = 60
"""Shots with pictures, of the kept and of the dropped."""
SHEET_SIDE = 640


def write_curation_page(
    path: Path, folder: Path, verdicts: Sequence[Verdict], settings: CurationSettings
) -> None:
    """Write the page, complete or not at all.

    Args:
        folder: of the curation, which holds the pictures.

    Raises:
        OSError: the folder is missing or the disk is full.
    """
    kept = [verdict for verdict in verdicts if verdict.kept]
    dropped = [verdict for verdict in verdicts if not verdict.kept]
    body = "".join(
        [
            _summary(verdicts),
            _histograms(verdicts, settings),
            _shown("Kept", kept, folder),
            _shown("Dropped", sorted(dropped, key=lambda verdict: verdict.reason), folder),
        ]
    )
    write_atomically(path, page("Curated clips", body).encode())


def reasons(verdicts: Sequence[Verdict]) -> dict[str, tuple[int, int]]:
    """By rule, in the order of judging: the shots it was the first to drop, and all that it drops."""
    rules = dict.fromkeys(ruling.rule for verdict in verdicts for ruling in verdict.rulings)
    first = Counter(verdict.reason for verdict in verdicts)
    any_of = Counter(ruling.rule for one in verdicts for ruling in one.rulings if not ruling.passed)
    return {rule: (first[rule], any_of[rule]) for rule in rules if any_of[rule]}


def limit_of(ruling: Ruling, rule: Rule | None) -> str:
    """For people: `0.312 (wanted: at least 0.4 of the frames)`."""
    value = f"{ruling.value:.4g}" if isinstance(ruling.value, float) else str(ruling.value)
    if ruling.limit is None or ruling.value is None:
        return ruling.note
    if rule is None:
        wanted = f"at least {ruling.limit:g} bits" if isinstance(ruling.limit, float) else ruling.limit
    else:
        wanted = f"at {'most' if rule.most else 'least'} {ruling.limit:g} {rule.unit}".strip()
    return f"{value} (wanted: {wanted})" + (f", {ruling.note}" if ruling.note else "")


NAMED = {rule.name: rule for rule in RULES}


def _summary(verdicts: Sequence[Verdict]) -> str:
    kept = [verdict for verdict in verdicts if verdict.kept]
    files = len({verdict.candidate.shot.video for verdict in verdicts})
    people = len({person for verdict in kept for person in verdict.people})
    splits = Counter(verdict.split for verdict in kept)
    rows = "".join(
        f"<tr><th>{escape(rule)}</th><td>{first}</td><td>{every}</td></tr>"
        for rule, (first, every) in reasons(verdicts).items()
    )
    facts = [
        ("files", files),
        ("shots", len(verdicts)),
        ("kept", len(kept)),
        ("people in them", people),
        ("for tuning", splits["tuning"]),
        ("for evaluation", splits["evaluation"]),
    ]
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    table = (
        '<div class="wide"><table class="numbers"><thead><tr><th>dropped for</th><th>first reason</th>'
        f"<th>in all</th></tr></thead><tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    return (
        f'<section><p class="verdict">{len(kept)} of {len(verdicts)} shots are kept.</p>'
        f'<dl class="facts">{boxes}</dl></section><section><h2>Why not</h2>{table}</section>'
    )


def _histograms(verdicts: Sequence[Verdict], settings: CurationSettings) -> str:
    figures = []
    for rule in RULES:
        rulings = [one for verdict in verdicts for one in verdict.rulings if one.rule == rule.name]
        sides = [
            [float(one.value) for one in rulings if one.value is not None and one.passed == passed]
            for passed in (True, False)
        ]
        if not any(sides):
            continue
        limit = getattr(settings, rule.limit) or None
        chart = histogram(*sides, limit=limit, title=rule.name, x_name=rule.unit)
        flag = "--" + rule.limit.replace("_", "-")
        figures.append(f"<figure><figcaption>{rule.name} <small>{flag}</small></figcaption>{chart}</figure>")
    legend = (
        '<p class="legend"><i class="rise"></i>passes <i class="fall"></i>does not; dashed: the limit.</p>'
    )
    return f'<section><h2>Measurements</h2><div class="charts">{"".join(figures)}</div>{legend}</section>'


def _shown(title: str, verdicts: Sequence[Verdict], folder: Path) -> str:
    if not verdicts:
        return ""
    left = len(verdicts) - MOST_SHOWN
    more = f'<p class="note">And {left} more, in manifest.jsonl.</p>' if left > 0 else ""
    cards = "".join(_card(verdict, folder) for verdict in verdicts[:MOST_SHOWN])
    return f'<section><h2>{title}</h2><div class="sheets">{cards}</div>{more}</section>'


def _card(verdict: Verdict, folder: Path) -> str:
    shot, source = verdict.candidate.shot, verdict.candidate.source
    if verdict.kept:
        people = ", ".join(str(person + 1) for person in verdict.people)
        told = [f"{verdict.split}, person {people}" if people else f"{verdict.split}"]
        told.append(verdict.candidate.prompt)
    else:
        told = [
            f"{ruling.rule}: {limit_of(ruling, NAMED.get(ruling.rule))}"
            for ruling in verdict.rulings
            if not ruling.passed
        ]
    told.append(f"licence {source.licence}, consent {source.consent}")
    lines = "<br>".join(escape(line) for line in told if line)
    place = sheet_path(folder, shot, "frames")
    picture = ""
    if place.exists():
        sheet_1CHW = read_image(place)[None]
        whole = (0, sheet_1CHW.shape[2], 0, sheet_1CHW.shape[3])
        small = thumbnails(sheet_1CHW, whole, SHEET_SIDE)[0]
        picture = f'<img src="{picture_address(small)}" alt="{escape(shot.name)}" loading="lazy">'
    seconds = f"{shot.start:.1f} to {shot.end:.1f} s" if shot.frames else ""
    head = f"<h3>{escape(shot.name)} <span>{seconds}</span></h3>"
    return f"<article>{head}<small>{lines}</small>{picture}</article>"
