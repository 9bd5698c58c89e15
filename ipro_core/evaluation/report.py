"""report.html: what an evaluation found, as one file that opens anywhere, now and in ten years.

No script, no address outside the file; the worst scenes come first. Names and prompts are other people's text
and are escaped. The same values give the same bytes. Beside it the same as report.json and report.csv.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..files import write_atomically
from ..types import StepRecord
from .charts import Line, line_chart, pair_chart
from .claims import Guard, least_gain, scenes_needed
from .facesim import PROTOCOL, Scale
from .page import counted, facts, figure, interval, number, page, section, signed, table
from .statistics import Gain, bootstrap_interval, scene_means
from .strips import film, people
from .tables import csv_text, json_text
from .verdict import WORTH_SHOWING, Comparison, VideoResult, judged

FEW_SCENES = 32
CURVES = ("reward", "kl", "grad_norm")
"""Metrics of a run that come first."""
MOST_CURVES = 8

MEASURES: tuple[tuple[str, str, str, Callable[[VideoResult], float]], ...] = (
    (
        "facesim",
        "FaceSim",
        "mean cosine to the input's face; a frame without it counts 0",
        lambda video: video.facesim.all,
    ),
    ("judge", "… by the judge", "a second recogniser that was not trained on", judged),
    ("", "… where found", "only the frames that show the face", lambda video: video.facesim.found),
    ("", "… of frame 0", "the input itself, left out of the means", lambda video: video.facesim.first),
    (
        "drift_tail",
        "Drift",
        "FaceSim of the last quarter less that of the first",
        lambda video: video.facesim.drift_tail,
    ),
    ("", "Coverage", "share of frames that show the face", lambda video: video.facesim.coverage),
    (
        "",
        "Head motion",
        "how far the face strays from its mean place, in face sizes",
        lambda video: video.motion,
    ),
    ("", "Head turn", "how far it turns and nods, in face sizes", lambda video: video.turn),
)


def write_report(
    path: Path | str,
    comparison: Comparison,
    *,
    title: str = "Base against tuned",
    steps: Sequence[StepRecord] = (),
    settings: Mapping[str, object] | None = None,
    environment: Mapping[str, object] | None = None,
    sections: str = "",
) -> None:
    """Write the report, with its .json and .csv beside it, each complete or not at all.

    Args:
        steps: the rows of metrics.jsonl; every metric that changes becomes a curve.
        settings: the run's knobs, for the table at the end; so is `environment`.
        sections: more of them, HTML; see `guards_page`.

    Raises:
        OSError: the folder is missing or the disk is full.
    """
    parts = [
        _verdict(comparison),
        _summary(comparison),
        _guards(comparison),
        figure("FaceSim, frame by frame", _frames_chart(comparison), FRAMES_CAPTION),
        figure("Every scene", _scenes_chart(comparison), SCENES_CAPTION),
        people(comparison),
        _training(steps),
        sections,
        film(comparison),
        facts("Settings", settings or {}),
        facts("Environment", environment or {}),
        _method(comparison),
    ]
    path = Path(path)
    write_atomically(path, page(title, "".join(parts)).encode())
    write_atomically(path.with_suffix(".json"), json_text(comparison).encode())
    write_atomically(path.with_suffix(".csv"), csv_text(comparison).encode())


def _verdict(comparison: Comparison) -> str:
    gain, flags = comparison.gain, comparison.hack_flags
    (low, high), shown = gain.ci95, gain.p_value < 0.05
    if low > 0 and shown:
        words = "The tuned model keeps the face better"
    elif high < 0 and shown:
        words = "The tuned model keeps the face worse"
    else:
        words = "No difference is shown"
    sentence = (
        f"FaceSim {comparison.facesim_base:.3f} → {comparison.facesim_tuned:.3f}, a change of "
        f"{signed(gain.mean)} {_interval(gain)} on {counted(gain.scenes, 'scene')}, "
        f"{counted(gain.pairs, 'pair')} of videos from the same noise."
    )
    if flags:
        listed = "".join(f"<li>{escape(flag)}</li>" for flag in flags)
        checks = f'<div class="flags"><strong>Signs of a hack</strong><ul>{listed}</ul></div>'
    else:
        passed = ["the head still moves", "no face got lost"]
        if comparison.judge_gain:
            passed.insert(0, "the judge does not object")
        if math.isfinite(comparison.real_ceiling):
            passed.insert(0, "tuned lies below the real clips")
        checks = f'<div class="clear"><strong>No sign of a hack:</strong> {", ".join(passed)}.</div>'
    return (
        f'<section><p class="verdict">{words}.</p><p>{sentence}</p>{checks}{_scenes_needed(gain)}</section>'
    )


def _scenes_needed(gain: Gain) -> str:
    """What so many scenes can show, and how many a claim needs."""
    few = "Exploratory: " if gain.scenes < FEW_SCENES else ""
    least, needed = least_gain(gain.scenes, gain.spread), scenes_needed(WORTH_SHOWING, gain.spread)
    words = f"{few}{counted(gain.scenes, 'scene')} "
    if math.isfinite(least):
        words += f"like these show a true gain of {least:.3f} four times of five"
    else:
        words += "cannot tell any gain from chance"
    if needed:
        words += f"; one of {WORTH_SHOWING} needs {counted(needed, 'scene')}"
    return f'<p class="note">{words}; {FEW_SCENES} scenes with 3 seeds each are a fair test.</p>'


def _summary(comparison: Comparison) -> str:
    scales = {"facesim": comparison.scale, "judge": comparison.judge_scale}
    rows = []
    for key, name, meaning, measure in MEASURES:
        means = [comparison.mean(which, measure) for which in ("base", "tuned", "real")]
        if not any(map(math.isfinite, means)):
            continue
        gain = comparison.gain_in(measure)
        colour = "" if gain is None else "rise" if gain.ci95[0] > 0 else "fall" if gain.ci95[1] < 0 else ""
        change = "–" if gain is None else f"{signed(gain.mean)} <small>{_interval(gain)}</small>"
        p_value = number(comparison.p_holm.get(key, math.nan), ".2g")
        cells = [_on_scale(mean, scales.get(key)) for mean in means]
        rows.append(
            f"<tr><th>{name}<small>{meaning}</small></th><td>{cells[0]}</td><td>{cells[1]}</td>"
            f'<td class="{colour}">{change}</td><td>{p_value}</td><td>{cells[2]}</td></tr>'
        )
    transfer, needed = comparison.transfer, comparison.common
    shown = [
        ("scenes improved", f"{comparison.gain.share_improved:.0%}"),
        ("frames of both: base", number(needed[0])),
        ("frames of both: tuned", number(needed[1])),
        ("strangers' FaceSim", number(comparison.stranger_floor)),
        ("KL to the frozen model", "–" if comparison.kl is None else f"{comparison.kl:.3g}"),
    ]
    if transfer:
        unit = "of calibrated gains" if transfer.calibrated else "of cosines"
        shown.insert(1, (f"transfer to the judge, {unit}", _with_interval(transfer.value, transfer.ci95)))
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in shown)
    head = "<th></th><th>base</th><th>tuned</th><th>change, 95 %</th><th>p, Holm</th><th>real</th>"
    note = '<p class="note">In brackets: on a scale from strangers (0 %) to the real clips (100 %).</p>'
    known = note if comparison.scale.known else ""
    return section("Summary", f'{known}{table(head, "".join(rows))}<dl class="facts">{boxes}</dl>')


def _on_scale(mean: float, scale: Scale | None) -> str:
    if scale is None or not scale.known or not math.isfinite(mean):
        return number(mean)
    return f"{number(mean)} <small>({number(100 * scale.calibrated(mean), '.0f')} %)</small>"


def _guards(comparison: Comparison) -> str:
    note = (
        '<p class="note">A guard is kept if its whole interval lies above the margin; "not shown" means that '
        f"so few scenes cannot tell. Quality rests on {escape(comparison.rests_on)}.</p>"
    )
    head = "<th></th><th>tuned against base, 95 %</th><th>margin</th><th></th>"
    return section("Guards", note + table(head, "".join(map(_guard, comparison.guards))))


def _guard(guard: Guard) -> str:
    form, sign = (".2f", "/") if guard.unit == "ratio" else ("+.3f", "−")
    colour = {"kept": "rise", "lost": "fall", "not shown": ""}[guard.verdict]
    change = f"{number(guard.change, form)} <small>{interval(guard.ci95, form)}</small>"
    return (
        f"<tr><th>{escape(guard.name)}<small>tuned {sign} base</small></th><td>{change}</td>"
        f'<td>{number(guard.margin, form)}</td><td class="{colour}">{guard.verdict}</td></tr>'
    )


FRAMES_CAPTION = (
    '<i class="base"></i>base <i class="tuned"></i>tuned <i class="real"></i>real clips '
    '<i class="stranger"></i>strangers. Means over scenes with 95 % bands; a frame without it counts 0. '
    "Dashed: the mean of the real clips and that of strangers, ceiling and floor."
)


def _frames_chart(comparison: Comparison) -> str:
    lines = []
    for which in ("real", "base", "tuned"):
        videos = [(pair.scene, video) for pair in comparison.pairs if (video := getattr(pair, which))]
        if not videos:
            continue
        count = min(len(video.facesim.cosine_T) for _, video in videos)
        curves = np.stack([video.facesim.cosine_T[:count].nan_to_num(0.0).numpy() for _, video in videos])
        curves_ST = scene_means(curves, [scene for scene, _ in videos])
        low_T, high_T = bootstrap_interval(curves_ST, resamples=2000)
        lines.append(Line(which, curves_ST.mean(axis=0).tolist(), which, low_T.tolist(), high_T.tolist()))
    levels = [
        ("strangers", comparison.stranger_floor, "stranger"),
        ("real clips", comparison.real_ceiling, "real"),
    ]
    return line_chart(lines, levels=levels, title="FaceSim of every frame", x_name="frame")


SCENES_CAPTION = '<i class="base"></i>base <i class="tuned"></i>tuned, the scene that changed worst on top.'


def _scenes_chart(comparison: Comparison) -> str:
    scenes = [pair.scene for pair in comparison.pairs]
    both = np.array([[pair.base.facesim.all, pair.tuned.facesim.all] for pair in comparison.pairs])
    rows = zip(dict.fromkeys(scenes), scene_means(both, scenes).tolist(), strict=True)
    ordered = sorted(((name, base, tuned) for name, (base, tuned) in rows), key=lambda row: row[2] - row[1])
    return pair_chart(ordered, title="FaceSim of every scene, base and tuned")


def _training(steps: Sequence[StepRecord]) -> str:
    names = list(dict.fromkeys(name for step in steps for name in step.metrics))
    names.sort(key=lambda name: CURVES.index(name) if name in CURVES else len(CURVES))
    charts = []
    for name in names:
        y = [float(step.metrics.get(name, float("nan"))) for step in steps]
        known = [value for value in y if math.isfinite(value)]
        if len(known) < 2 or min(known) == max(known) or len(charts) == MOST_CURVES:
            continue
        chart = line_chart(
            [Line(name, y, "plain")],
            x=[step.step for step in steps],
            title=name,
            x_name="step",
            width=320,
            height=180,
        )
        charts.append(f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>")
    if not charts:
        return ""
    return f'<section><h2>Training</h2><div class="charts">{"".join(charts)}</div></section>'


def _method(comparison: Comparison) -> str:
    first = comparison.pairs[0].base
    judge = f"; judge {escape(first.judge.recognizer)}" if first.judge else ""
    return (
        f'<section class="note"><p>Recogniser {escape(first.facesim.recognizer)}{judge}. {PROTOCOL}. '
        "The subject is the person of the input image, followed through the video. The first "
        f"{counted(first.facesim.given, 'frame')} of a video, being the input, are left out of the means. "
        "Intervals: bootstrap over scenes, the seeds of a scene averaged first; p: sign flips of "
        "scenes, adjusted by Holm's step-down over all that is claimed.</p></section>"
    )


def _interval(gain: Gain) -> str:
    return interval(gain.ci95) if gain.scenes > 1 else "[no interval from one scene]"


def _with_interval(value: float, ci95: tuple[float, float]) -> str:
    return f"{number(value, '.2f')} <small>{interval(ci95, '.2f')}</small>"
