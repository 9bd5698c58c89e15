"""report.html: what an evaluation found, as one file that opens anywhere, now and in ten years.

No script, no address outside the file; the worst scenes come first. Names and prompts are other people's text
and are escaped. The same values give the same bytes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..files import write_atomically
from ..types import StepRecord
from .charts import Line, line_chart, pair_chart
from .compare import Comparison, PairResult, VideoResult
from .film import picture_address
from .page import page
from .statistics import Gain, bootstrap_interval, paired_gain, scene_means

MOST_SCENES = 12
"""Film strips shown, the worst."""
FEW_SCENES = 32
CURVES = ("reward", "kl", "grad_norm")
"""Metrics of a run that come first."""
MOST_CURVES = 8

MEASURES: tuple[tuple[str, str, Callable[[VideoResult], float]], ...] = (
    (
        "FaceSim",
        "mean cosine to the input's face; a frame without it counts 0",
        lambda video: video.facesim.all,
    ),
    ("… where found", "only the frames that show the face", lambda video: video.facesim.found),
    ("… last third", "where identity drifts most", lambda video: video.facesim.drift_tail),
    (
        "… by the judge",
        "a second recogniser that was not trained on",
        lambda video: video.judge.all if video.judge else float("nan"),
    ),
    ("Coverage", "share of frames that show the face", lambda video: video.facesim.coverage),
    ("Head motion", "how far the face strays from its mean place, in face sizes", lambda video: video.motion),
    ("Head turn", "how far it turns and nods, in face sizes", lambda video: video.turn),
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
    """Write the report, complete or not at all.

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
        _figure("FaceSim, frame by frame", _frames_chart(comparison), FRAMES_CAPTION),
        _figure("Every scene", _scenes_chart(comparison), SCENES_CAPTION),
        _training(steps),
        sections,
        _film(comparison),
        _table("Settings", settings or {}),
        _table("Environment", environment or {}),
        _method(comparison),
    ]
    write_atomically(path, page(title, "".join(parts)).encode())


def _verdict(comparison: Comparison) -> str:
    gain, flags = comparison.gain, comparison.hack_flags
    low, high = gain.ci95
    if low > 0:
        words = "The tuned model keeps the face better"
    elif high < 0:
        words = "The tuned model keeps the face worse"
    else:
        words = "No difference is shown"
    sentence = (
        f"FaceSim {comparison.facesim_base:.3f} → {comparison.facesim_tuned:.3f}, a change of "
        f"{_signed(gain.mean)} {_interval(gain)} on {_count(gain.scenes, 'scene')}, "
        f"{_count(gain.pairs, 'pair')} of videos from the same noise."
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
    few = ""
    if gain.scenes < FEW_SCENES:
        few = (
            f'<p class="note">Exploratory: with {_count(gain.scenes, "scene")} only large gains can be told '
        )
        few += f"from chance; {FEW_SCENES} scenes with 3 seeds each are a fair test.</p>"
    return f'<section><p class="verdict">{words}.</p><p>{sentence}</p>{checks}{few}</section>'


def _summary(comparison: Comparison) -> str:
    rows = []
    for name, meaning, measure in MEASURES:
        means = [comparison.mean(which, measure) for which in ("base", "tuned", "real")]
        if not any(map(math.isfinite, means)):
            continue
        gain = _gain(comparison, measure)
        colour = "" if gain is None else "rise" if gain.ci95[0] > 0 else "fall" if gain.ci95[1] < 0 else ""
        change = "–" if gain is None else f"{_signed(gain.mean)} <small>{_interval(gain)}</small>"
        rows.append(
            f"<tr><th>{name}<small>{meaning}</small></th><td>{_number(means[0])}</td><td>{_number(means[1])}</td>"
            f'<td class="{colour}">{change}</td><td>{_number(means[2])}</td></tr>'
        )
    facts = [
        ("scenes improved", f"{comparison.gain.share_improved:.0%}"),
        ("p, sign flips", f"{comparison.gain.p_value:.2g}"),
        ("head motion, tuned / base", _number(comparison.motion_ratio)),
        ("strangers' FaceSim", _number(comparison.stranger_floor)),
        ("KL to the frozen model", "–" if comparison.kl is None else f"{comparison.kl:.3g}"),
    ]
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        '<section><h2>Summary</h2><div class="wide"><table class="numbers"><thead><tr><th></th><th>base</th>'
        f"<th>tuned</th><th>change, 95 %</th><th>real</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f'</div><dl class="facts">{boxes}</dl></section>'
    )


FRAMES_CAPTION = (
    '<i class="base"></i>base <i class="tuned"></i>tuned <i class="real"></i>real clips '
    '<i class="stranger"></i>strangers. Means over scenes with 95 % bands; a frame without the face counts 0.'
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
    levels = [("strangers", comparison.stranger_floor, "stranger")]
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


def _film(comparison: Comparison) -> str:
    worst = sorted(comparison.pairs, key=lambda pair: pair.gain)[:MOST_SCENES]
    shown = "".join(map(_strips, worst))
    counted = (
        f"The {len(worst)} of {_count(len(comparison.pairs), 'pair')} that changed worst, worst first."
        if len(worst) < len(comparison.pairs)
        else "All pairs, the one that changed worst first."
    )
    return (
        f'<section><h2>Frames</h2><p class="note">{counted} Under each frame its cosine to the face of the '
        f"input; each video's worst shown frame is marked.</p>{shown}</section>"
    )


def _strips(pair: PairResult) -> str:
    rows = []
    for name in ("real", "base", "tuned"):
        video: VideoResult | None = getattr(pair, name)
        if video is None:
            continue
        cosines = [video.facesim.cosine_T[frame].item() for frame in pair.strip_frames]
        counted = [
            (-2.0 if math.isnan(cosine) else cosine) if frame >= video.facesim.given else 2.0
            for frame, cosine in zip(pair.strip_frames, cosines, strict=True)
        ]
        cells = []
        for index, (frame, cosine) in enumerate(zip(pair.strip_frames, cosines, strict=True)):
            picture = picture_address(video.strip_SCHW[index])
            label = "no face" if math.isnan(cosine) else f"{cosine:.2f}"
            mark = ' class="worst"' if index == int(np.argmin(counted)) else ""
            cells.append(
                f'<figure{mark}><img src="{picture}" alt="{name}, frame {frame}" loading="lazy">'
                f"<figcaption>{label}</figcaption></figure>"
            )
        rows.append(
            f'<div class="row"><div class="who"><i class="{name}"></i>{name}<small>'
            f"{video.facesim.all:.3f}</small></div>{''.join(cells)}</div>"
        )
    prompt = f" — {escape(pair.prompt)}" if pair.prompt else ""
    return (
        f"<article><h3>{escape(pair.scene)}<span>{prompt}</span></h3><p class='note'>seed {pair.seed}, "
        f'change {_signed(pair.gain)}</p><div class="wide">{"".join(rows)}</div></article>'
    )


def _table(title: str, values: Mapping[str, object]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return (
        f'<section><details><summary>{title}</summary><div class="wide"><table class="facts">{rows}</table>'
        "</div></details></section>"
    )


def _method(comparison: Comparison) -> str:
    pair = comparison.pairs[0]
    judge = f"; judge {escape(pair.base.judge.recognizer)}" if pair.base.judge else ""
    return (
        f'<section class="note"><p>Raw cosines of {escape(pair.base.facesim.recognizer)}{judge}. The subject '
        "is the person of the input image, followed through the video. The first "
        f"{_count(pair.base.facesim.given, 'frame')} of a video, being the input, are left out of the means. "
        "Intervals: bootstrap over scenes, the seeds of a scene averaged first.</p></section>"
    )


def _figure(title: str, chart: str, caption: str) -> str:
    return (
        f'<section><h2>{title}</h2><figure><div class="wide">{chart}</div>'
        f'<figcaption class="legend">{caption}</figcaption></figure></section>'
    )


def _gain(comparison: Comparison, measure: Callable[[VideoResult], float]) -> Gain | None:
    """Over the pairs in which both videos could be measured."""
    pairs = [(pair.scene, measure(pair.base), measure(pair.tuned)) for pair in comparison.pairs]
    pairs = [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]
    if not pairs:
        return None
    scenes, base, tuned = zip(*pairs, strict=True)
    return paired_gain(base, tuned, scenes)


def _interval(gain: Gain) -> str:
    low, high = gain.ci95
    return f"[{_signed(low)}, {_signed(high)}]" if math.isfinite(low) else "[no interval from one scene]"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
