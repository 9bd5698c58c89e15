"""The guards' part of report.html: quality by dimension, suspicions by kind, what a vision model says of
clips."""

import math
from html import escape

from .bands import KINDS
from .guards import GuardResults
from .hacking import Hacking
from .quality_measures import Quality, licence_of
from .rates import Rate
from .signs import SIGNS
from .statistics import Gain
from .vbench_runner import OFFICIAL
from .vision_verdict import MODELS, Verdicts


def guard_sections(results: GuardResults) -> str:
    """HTML; "" where nothing was asked for."""
    parts = [_hacking(results.hacking) if results.hacking else ""]
    parts.append(_verdicts(results.verdicts) if results.verdicts else "")
    parts.append(_quality(results.quality) if results.quality else "")
    parts.append(_official(results) if results.official else "")
    return "".join(parts)


def _hacking(hacking: Hacking) -> str:
    if hacking.band is None:
        return f'<section><h2>Suspicions</h2><p class="note">{escape(hacking.reason)}</p></section>'
    rows = []
    for kind in KINDS:
        rise, alarms = hacking.rise(kind.name), hacking.band.false_alarms[kind.name]
        shares = [_share(hacking.rate(which, kind.name)) for which in ("base", "tuned")] + [_share(alarms)]
        if hacking.band.reason:
            shares = ["–"] * 3
        colour = "" if rise is None else "fall" if rise.ci95[0] > 0 else "rise" if rise.ci95[1] < 0 else ""
        rows.append(
            f"<tr><th>{kind.name}<small>{kind.suspicion}</small></th>"
            f'<td class="{colour}">{_gain(rise, 2)}</td>' + "".join(f"<td>{s}</td>" for s in shares) + "</tr>"
        )
    if not hacking.band.reason:
        cells = [hacking.any_rate("base"), hacking.any_rate("tuned"), hacking.band.any_false_alarm]
        shown = "".join(f"<td>{_share(rate)}</td>" for rate in cells)
        rows.append(f"<tr><th>any of them</th><td></td>{shown}</tr>")
    signs = "".join(
        f"<tr><th>{sign.name}<small>{escape(sign.meaning)}</small></th>"
        + "".join(
            f"<td>{_number(hacking.mean(which, sign.name))}</td>" for which in ("base", "tuned", "real")
        )
        + "</tr>"
        for sign in SIGNS
    )
    note = f'<p class="note">{escape(hacking.band.reason)}</p>' if hacking.band.reason else ""
    flags = "".join(f"<li>{escape(flag)}</li>" for flag in hacking.flags)
    flagged = f'<div class="flags"><strong>Signs of a hack</strong><ul>{flags}</ul></div>' if flags else ""
    return (
        f'<section><h2>Suspicions</h2>{flagged}<div class="wide"><table class="numbers"><thead><tr><th></th>'
        "<th>rise from base to tuned, in real clips’ deviations</th><th>base</th><th>tuned</th>"
        f"<th>real clips</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
        '<p class="note">Shares of suspected clips with Wilson’s interval. Limits are set by '
        f"{hacking.band.clips} real clips, each scored by the others, for all kinds together. A suspicion is "
        "no verdict: look at the clips.</p>"
        '<details><summary>Every sign</summary><div class="wide"><table class="numbers"><thead><tr><th></th>'
        f"<th>base</th><th>tuned</th><th>real</th></tr></thead><tbody>{signs}</tbody></table></div></details>"
        "</section>"
    )


def _verdicts(verdicts: Verdicts) -> str:
    rows = []
    for which in MODELS:
        corrected = verdicts.corrected(which)
        told = (
            escape(corrected.reason)
            if corrected.value is None
            else f"{corrected.value:.0%} <small>[{corrected.ci95[0]:.0%}, {corrected.ci95[1]:.0%}]</small>"
        )
        rows.append(
            f"<tr><th>{which}</th><td>{_share(verdicts.rate(which))}</td>"
            f"<td>{_share(verdicts.undecided(which))}</td><td>{told}</td></tr>"
        )
    real, frozen = verdicts.rate("real"), verdicts.rate("frozen")
    return (
        "<section><h2>Called hacked by a vision-language model</h2>"
        f'<div class="wide"><table class="numbers"><thead><tr><th></th><th>said</th><th>undecided</th>'
        f"<th>corrected</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">{escape(verdicts.model)}, asked twice of every clip, once mirrored. Of control '
        f"clips it suspects {_share(real)} of the real ones and {_share(frozen)} of those whose face was "
        "frozen; the rates are corrected by these errors (Rogan and Gladen).</p></section>"
    )


def _quality(quality: Quality) -> str:
    rows = []
    for dimension in quality.meter.dimensions:
        licence = licence_of(dimension)
        reason = quality.meter.reasons.get(dimension.short)
        for figure in dimension.figures:
            means = [_number(quality.mean(which, figure), 4) for which in ("base", "tuned", "real")]
            about = f"{dimension.name}. {licence}" if licence else dimension.name
            change = escape(reason) if reason and means == ["–"] * 3 else _gain(quality.gain(figure), 4)
            rows.append(
                f"<tr><th>{figure}<small>{escape(about)}</small></th><td>{means[0]}</td><td>{means[1]}</td>"
                f"<td>{change}</td><td>{means[2]}</td></tr>"
            )
    head = "<thead><tr><th></th><th>base</th><th>tuned</th><th>change, 95 %</th><th>real</th></tr></thead>"
    body = f'<table class="numbers">{head}<tbody>{"".join(rows)}</tbody>'
    return (
        f'<section><h2>Quality</h2><div class="wide">{body}'
        '</table></div><p class="note">VBench’s formulas over networks of other packages: compatible, not '
        "official.</p></section>"
    )


def _official(results: GuardResults) -> str:
    assert results.official
    rows = []
    for short in OFFICIAL:
        cells = []
        for which in ("base", "tuned"):
            score = results.official.get(which, {}).get(short)
            cells.append("–" if score is None else escape(score.reason) or f"{score.value:.4f}")
        rows.append(
            f"<tr><th>{OFFICIAL[short].replace('_', ' ')}</th><td>{cells[0]}</td><td>{cells[1]}</td></tr>"
        )
    return (
        '<section><h2>Official VBench</h2><div class="wide"><table class="numbers"><thead><tr><th></th>'
        f"<th>base</th><th>tuned</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _gain(gain: Gain | None, digits: int) -> str:
    if gain is None:
        return "–"
    low, high = (_signed(value, digits) for value in gain.ci95)
    between = f"[{low}, {high}]" if math.isfinite(gain.ci95[0]) else "[no interval from one scene]"
    return f"{_signed(gain.mean, digits)} <small>{between}</small>"


def _share(rate: Rate) -> str:
    if not rate.of:
        return "–"
    low, high = rate.ci95
    return f"{rate.count} of {rate.of} <small>[{low:.0%}, {high:.0%}]</small>"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
