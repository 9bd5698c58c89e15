"""The report's pictures: the worst pairs as strips, each cosine under its crop; and the people."""

import math
from html import escape

import numpy as np

from .film import picture_address
from .page import counted, number, section, signed, table
from .verdict import Comparison, PairResult, VideoResult

MOST_PAIRS = 10
"""Film strips shown, the worst."""
MARGIN = 0.05
"""A person less than this above the next most like one is marked."""


def film(comparison: Comparison) -> str:
    worst = sorted(comparison.pairs, key=lambda pair: pair.gain)[:MOST_PAIRS]
    total = counted(len(comparison.pairs), "pair")
    words = (
        f"The {len(worst)} of {total} that changed worst, worst first."
        if len(worst) < len(comparison.pairs)
        else "All pairs, the one that changed worst first."
    )
    note = (
        f'<p class="note">{words} Under each frame its cosine to the face of the input; each video\'s worst '
        "shown frame is marked.</p>"
    )
    return section("Frames", note + "".join(map(_strips, worst)))


def _strips(pair: PairResult) -> str:
    rows = "".join(_strip(name, video, pair.strip_frames) for name, video in pair.videos.items())
    prompt = f" — {escape(pair.prompt)}" if pair.prompt else ""
    return (
        f"<article><h3>{escape(pair.scene)}<span>{prompt}</span></h3><p class='note'>seed {pair.seed}, "
        f'change {signed(pair.gain)}</p><div class="wide">{rows}</div></article>'
    )


def _strip(name: str, video: VideoResult, frames: tuple[int, ...]) -> str:
    cosines = [video.facesim.cosine_T[frame].item() for frame in frames]
    standing = [
        (-2.0 if math.isnan(cosine) else cosine) if frame >= video.facesim.given else 2.0
        for frame, cosine in zip(frames, cosines, strict=True)
    ]
    cells = []
    for index, (frame, cosine) in enumerate(zip(frames, cosines, strict=True)):
        label = "no face" if math.isnan(cosine) else number(cosine, ".2f")
        mark = ' class="worst"' if index == int(np.argmin(standing)) else ""
        picture = picture_address(video.strip_SCHW[index])
        cells.append(
            f'<figure{mark}><img src="{picture}" alt="{name}, frame {frame}" '
            f'loading="lazy"><figcaption>{label}</figcaption></figure>'
        )
    return (
        f'<div class="row"><div class="who"><i class="{name}"></i>{name}<small>'
        f"{video.facesim.all:.3f}</small></div>{''.join(cells)}</div>"
    )


PEOPLE_NOTE = (
    '<p class="note">Each person along the one track that shows them best; the headline is whoever is kept '
    "worst. Identity F1 counts a frame as right where a person is recognised on their own track. A clone is "
    "a second face of the same person in one frame, a blend a face as like somebody else.</p>"
)


def people(comparison: Comparison) -> str:
    """Everybody in every video with several people; nothing where there is none."""
    rows = "".join(
        _people_of(pair, which, video)
        for pair in comparison.pairs
        for which, video in pair.videos.items()
        if video.people
    )
    names = ("", "", "FaceSim", "found", "margin", "cloned", "blended", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    return section("People", PEOPLE_NOTE + table(head, rows)) if rows else ""


def _people_of(pair: PairResult, which: str, video: VideoResult) -> str:
    assert video.people is not None
    kept, rows = video.people, []
    swaps = "; ".join(f"{escape(s.before)} → {escape(s.after)} at frame {s.frame}" for s in kept.swaps)
    told = f"identity F1 {number(kept.identity_f1)}" + (
        f' <span class="mark">{swaps}</span>' if swaps else ""
    )
    for person in kept.people:
        cells = [
            '<span class="mark">missing</span>' if person.missing else number(person.facesim.all),
            f"{person.facesim.coverage:.0%}",
            _marked(signed(person.margin), person.margin < MARGIN),
            _marked(f"{person.cloned:.0%}", person.cloned > 0),
            _marked(f"{person.blended:.0%}", person.blended > 0),
            told if person is kept.people[0] else "",
        ]
        title = f"{escape(pair.scene)}, seed {pair.seed}" if person is kept.people[0] else ""
        rows.append(
            f"<tr><th>{escape(person.name)}<small>{title}</small></th><td>{which}</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return "".join(rows)


def _marked(text: str, mark: bool) -> str:
    return f'<span class="mark">{text}</span>' if mark else text
