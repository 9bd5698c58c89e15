"""The look of our pages: one calm column, light or dark as the reader's system, readable on a phone."""

import math
from collections.abc import Mapping
from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #ffffff; --ink: #22252a; --soft: #6b7077;
  --rule: #e4e2de; --base: #c9822b; --tuned: #2f6fd0; --real: #4f8a5b; --stranger: #9a9da3;
  --rise: #2b7a4b; --fall: #b3392f; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --card: #1d2025; --ink: #e6e6e3;
  --soft: #9aa0a8; --rule: #31353c; --base: #e0a458; --tuned: #79a9f5; --real: #86c294; --stranger: #777c85;
  --rise: #7ecb9a; --fall: #ef8b80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.1rem; font-weight: 600; color: var(--soft); margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 0 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h3 span { font-weight: 400; color: var(--soft); }
section { margin: 0 0 2.75rem; }
p { margin: 0 0 .9rem; max-width: 44rem; }
small, .note, .note p { color: var(--soft); font-size: .85rem; }
.verdict { font-size: 1.9rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em;
  margin-bottom: .6rem; }
.flags, .clear { border-left: 4px solid var(--rise); background: var(--card); padding: .8rem 1rem;
  border-radius: 0 8px 8px 0; margin: 1rem 0; max-width: 44rem; }
.flags { border-color: var(--fall); }
.flags strong { color: var(--fall); }
.flags ul { margin: .4rem 0 0; padding-left: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 9rem; }
tbody th small { display: block; font-weight: 400; max-width: 26rem; }
.numbers td { white-space: nowrap; }
table.facts { font-size: .85rem; }
table.facts td { overflow-wrap: anywhere; }
table.facts th { color: var(--soft); }
td.rise { color: var(--rise); font-weight: 600; } td.fall { color: var(--fall); font-weight: 600; }
td small { font-weight: 400; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 0; }
dl.facts div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; font-size: 1.15rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
figure { margin: 0; }
svg { display: block; width: 100%; min-width: 30rem; height: auto; font-size: 12px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
.charts figure { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .6rem; }
.charts svg { min-width: 0; }
.charts figcaption { font-size: .85rem; color: var(--soft); margin-bottom: .25rem; }
svg text { fill: var(--soft); }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.level { stroke-width: 1.5; stroke-dasharray: 5 5; } .join { stroke-width: 2; }
.band { opacity: .16; }
.line.base { stroke: var(--base); } .line.tuned { stroke: var(--tuned); } .line.real { stroke: var(--real); }
.line.plain { stroke: var(--tuned); } .level.stranger { stroke: var(--stranger); }
.level.real { stroke: var(--real); }
.band.base, .dot.base { fill: var(--base); } .band.tuned, .dot.tuned { fill: var(--tuned); }
.band.real, .dot.real { fill: var(--real); } .dot.plain { fill: var(--tuned); }
.join.rise { stroke: var(--tuned); opacity: .45; } .join.fall { stroke: var(--fall); opacity: .8; }
.bar.rise { fill: var(--rise); } .bar.fall { fill: var(--fall); } .level.limit { stroke: var(--ink); }
i.rise { background: var(--rise); } i.fall { background: var(--fall); }
.sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.sheets img { display: block; width: 100%; border-radius: 4px; margin-top: .5rem; }
.mark { color: var(--fall); font-weight: 600; }
.legend { color: var(--soft); font-size: .85rem; margin-top: .4rem; }
i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin: 0 .35rem 0 .6rem; }
.legend i:first-child, .who i { margin-left: 0; }
i.base { background: var(--base); } i.tuned { background: var(--tuned); } i.real { background: var(--real); }
i.stranger { background: var(--stranger); }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .9rem 1rem;
  margin: 0 0 1rem; }
.row { display: flex; gap: .4rem; align-items: flex-start; margin-top: .5rem; min-width: 40rem; }
.who { flex: 0 0 5rem; font-size: .85rem; padding-top: .3rem; }
.who small { display: block; }
.row figure { flex: 1 1 0; max-width: 9rem; border-radius: 6px; padding: 3px; }
.row img { display: block; width: 100%; border-radius: 4px; }
.row figcaption { text-align: center; font-size: .75rem; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.row .worst { background: color-mix(in srgb, var(--fall) 22%, transparent); }
.row .worst figcaption { color: var(--fall); font-weight: 600; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 36rem) { main { padding: 1.5rem 1rem 3rem; } .verdict { font-size: 1.5rem; }
  .who { flex-basis: 3.9rem; } td small { display: block; } tbody th { min-width: 7.5rem; } }
@media print { details > * { display: block; } article { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document; `body` is HTML already."""
    # The policy keeps the promise: nothing is loaded and no script runs, even if an escape were forgotten.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def figure(title: str, chart: str, caption: str) -> str:
    shown = f'<div class="wide">{chart}</div><figcaption class="legend">{caption}</figcaption>'
    return section(title, f"<figure>{shown}</figure>")


def table(head: str, rows: str) -> str:
    """Numbers under a row of names; both are HTML already."""
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table class="numbers">{body}</table></div>'


def facts(title: str, values: Mapping[str, object]) -> str:
    """Names and values of other people's, folded away; nothing for none."""
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


def number(value: float, form: str = ".3f") -> str:
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float) -> str:
    return number(value, "+.3f")


def interval(ci95: tuple[float, float], form: str = "+.3f") -> str:
    low, high = ci95
    return f"[{number(low, form)}, {number(high, form)}]" if math.isfinite(low) else "[no interval]"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
