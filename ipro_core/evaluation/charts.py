"""Small charts as inline SVG: lines with bands, dots in pairs, histograms.

They take the page's colours and fonts. Everything is text: the same values give the same bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640
"""Units of a chart's width; the page scales it."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    y: Sequence[float]
    kind: str = "tuned"
    """Colour of the page: base, tuned, real, stranger or plain."""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """A band around it; empty for none."""


def line_chart(
    lines: Sequence[Line],
    *,
    x: Sequence[float] = (),
    levels: Sequence[tuple[str, float, str]] = (),
    title: str,
    x_name: str = "",
    width: int = WIDTH,
    height: int = 260,
) -> str:
    """Lines over x (default 0, 1, …), and level marks (name, value, kind) drawn across. NaN leaves a gap."""
    x = list(x) or list(range(max((len(line.y) for line in lines), default=0)))
    values = [value for line in lines for value in (*line.y, *line.low, *line.high)]
    ticks = _ticks([value for value in values + [level[1] for level in levels] if math.isfinite(value)])
    left, right, top, bottom = 16 + 9 * max(len(_short(tick)) for tick in ticks), 12, 14, 34
    low, high = ticks[0], ticks[-1]
    first, last = (min(x), max(x)) if x else (0, 1)

    def place_x(value: float) -> float:
        return left + (width - left - right) * ((value - first) / (last - first) if last > first else 0.5)

    def place_y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in points)

    parts = []
    for tick in ticks:
        y = place_y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    if x:
        for value, anchor in ((first, "start"), (last, "end")):
            parts.append(
                f'<text x="{place_x(value):.1f}" y="{height - 16}" text-anchor="{anchor}">'
                f"{_short(value)}</text>"
            )
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 16}" text-anchor="middle">{escape(x_name)}</text>')
    for line in lines:
        triples = zip(x, line.low, line.high, strict=False)
        band = [triple for triple in triples if all(map(math.isfinite, triple))]
        if band:
            outline = [(a, c) for a, _, c in band] + [(a, b) for a, b, _ in reversed(band)]
            parts.append(f'<polygon class="band {line.kind}" points="{path(outline)}"/>')
    for name, value, kind in levels:
        if math.isfinite(value):
            y = place_y(value)
            parts.append(
                f'<line class="level {kind}" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}">'
                f"<title>{escape(name)}: {value:.3f}</title></line>"
            )
    for line in lines:
        for run in _runs(list(zip(x, line.y, strict=False))):
            parts.append(f'<polyline class="line {line.kind}" points="{path(run)}"/>')
            if len(run) == 1:
                ((a, b),) = run
                parts.append(
                    f'<circle class="dot {line.kind}" cx="{place_x(a):.1f}" cy="{place_y(b):.1f}" r="3"/>'
                )
    return _svg(title, width, height, parts)


def pair_chart(rows: Sequence[tuple[str, float, float]], *, title: str) -> str:
    """One row for each (name, before, after): two dots joined, so that a loss stands out by its direction."""
    row_height, left, right, top = 18, 190, 16, 26
    height = top + row_height * len(rows) + 12
    ticks = _ticks([value for _, *values in rows for value in values if math.isfinite(value)])
    low, high = ticks[0], ticks[-1]

    def place_x(value: float) -> float:
        return left + (WIDTH - left - right) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        x = place_x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 8}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 12}" text-anchor="middle">{_short(tick)}</text>')
    for index, (name, before, after) in enumerate(rows):
        if not (math.isfinite(before) and math.isfinite(after)):
            continue
        y, kind = top + row_height * (index + 0.5), "rise" if after >= before else "fall"
        shown = name if len(name) <= 28 else name[:27] + "…"
        parts.append(
            f"<g><title>{escape(name)}: {before:.3f} → {after:.3f}</title>"
            f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(shown)}</text>'
            f'<line class="join {kind}" x1="{place_x(before):.1f}" x2="{place_x(after):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="dot base" cx="{place_x(before):.1f}" cy="{y:.1f}" r="4"/>'
            f'<circle class="dot tuned" cx="{place_x(after):.1f}" cy="{y:.1f}" r="4.5"/></g>'
        )
    return _svg(title, WIDTH, height, parts)


def histogram(
    passed: Sequence[float],
    failed: Sequence[float],
    *,
    limit: float | None,
    title: str,
    x_name: str = "",
    width: int = 320,
    height: int = 170,
    bins: int = 24,
) -> str:
    """How often each value was met, what passes below what does not, and the limit as a line across."""
    values = [*passed, *failed]
    ticks = _ticks([*values, *([] if limit is None else [limit])])
    low, high, left, right, top, bottom = ticks[0], ticks[-1], 10, 10, 14, 34
    counts = [[0] * bins, [0] * bins]
    for row, some in zip(counts, (passed, failed), strict=True):
        for value in some:
            row[min(bins - 1, int(bins * (value - low) / (high - low)))] += 1
    most = max(map(sum, zip(*counts, strict=True)))
    wide, tall = (width - left - right) / bins, (height - top - bottom) / max(1, most)
    base, parts = height - bottom, []
    parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
    for place, pair in enumerate(zip(*counts, strict=True)):
        y = float(base)
        for count, kind in zip(pair, ("rise", "fall"), strict=True):
            if count:
                y -= count * tall
                parts.append(
                    f'<rect class="bar {kind}" x="{left + place * wide:.1f}" y="{y:.1f}" '
                    f'width="{wide - 1:.1f}" height="{count * tall:.1f}"><title>{count}</title></rect>'
                )
    for value, anchor in ((low, "start"), (high, "end")):
        x = left if anchor == "start" else width - right
        parts.append(f'<text x="{x}" y="{height - 16}" text-anchor="{anchor}">{value:g}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 16}" text-anchor="middle">{escape(x_name)}</text>')
    if limit is not None:
        x = left + (width - left - right) * (limit - low) / (high - low)
        parts.append(
            f'<line class="level limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{base}">'
            f"<title>limit {limit:g}</title></line>"
        )
    return _svg(title, width, height, parts)


def _svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _runs(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The stretches without a NaN between."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _ticks(values: Sequence[float]) -> list[float]:
    """Three to eight round numbers around the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    power = 10 ** math.floor(math.log10((high - low) / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= (high - low))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * k for k in range(start, stop + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1e-12 else "0"
