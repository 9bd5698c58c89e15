"""Tables out of the runs' outcomes: values with intervals, and what they say to the paper's directions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.bands import Band, band_of
from ..evaluation.facesim import jsonable
from ..evaluation.statistics import Gain, bootstrap_interval, paired_gain, scene_means
from .plan import CLAIMS, ROWS, SEEDS, TABLES, Claim, Table
from .work import OUTCOME

HACKS = ("stiffness", "pasted face", "frontal")
"""The kinds of suspicion that are the paper's reward hacking: a face that adheres to the input image, stiff
and without expression (5.3)."""
MEASURES = {
    "facesim": "FaceSim",
    "judge": "FaceSim by the judge",
    "motion": "head motion",
    "turn": "head turn",
    "sharpness": "sharpness",
    "coverage": "face found",
    "hacked": "suspected hacks",
}


SHARES = (0.05, 0.25, 0.5, 0.75, 1.0)
"""Of a run's length."""


@dataclass(frozen=True)
class Outcome:
    """One run's, as `work.run_row` left it."""

    row: str
    seed: int
    told: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Results:
    """All runs' videos, one value for each: rows by name, the untuned model as "base", clips as "real"."""

    outcomes: tuple[Outcome, ...]
    band: Band

    def values(self, row: str, measure: str) -> tuple[list[str], list[float]]:
        """Scenes and values of a row's videos, tuning seeds one after the other."""
        which = row if row in ("base", "real") else "tuned"
        scenes, values = [], []
        for outcome in self.outcomes:
            if which == "tuned" and outcome.row != row:
                continue
            if measure == "hacked":
                for clip in outcome.told["signs"]:
                    if which in clip["signs"]:
                        scenes.append(clip["scene"])
                        values.append(float(self._hacked(clip["signs"][which])))
            else:
                for pair in outcome.told["pairs"]:
                    value = pair[which][measure]
                    scenes.append(pair["scene"])
                    values.append(math.nan if value is None else value)
        return scenes, values

    def _hacked(self, signs: Mapping[str, float | None]) -> bool:
        known = {name: math.nan if value is None else value for name, value in signs.items()}
        return any(kind in HACKS for kind in self.band.suspicions(known))

    def mean(self, row: str, measure: str) -> tuple[float, tuple[float, float]]:
        """Over scenes, with the 95 % interval of drawing others."""
        scenes, values = self.values(row, measure)
        known = [(scene, value) for scene, value in zip(scenes, values, strict=True) if math.isfinite(value)]
        if not known:
            return math.nan, (math.nan, math.nan)
        means_S = scene_means(np.array([value for _, value in known]), [scene for scene, _ in known])
        low, high = bootstrap_interval(means_S)
        return float(means_S.mean()), (float(low), float(high))

    def by_seed(self, row: str, measure: str) -> list[float]:
        """The mean of each tuning seed."""
        return [Results((one,), self.band).mean(row, measure)[0] for one in self.outcomes if one.row == row]

    def difference(self, more: str, less: str, measure: str) -> Gain:
        """Of two rows, on the same scenes, noise and tuning seeds."""
        scenes, higher = self.values(more, measure)
        if less in ("base", "real"):  # those of the same runs
            runs = tuple(one for one in self.outcomes if one.row == more)
            _, lower = Results(runs, self.band).values(less, measure)
        else:
            _, lower = self.values(less, measure)
        rows = [row for row in zip(scenes, lower, higher, strict=True) if all(map(math.isfinite, row[1:]))]
        scenes, lower, higher = zip(*rows, strict=True)
        return paired_gain(lower, higher, scenes)


def read_results(folder: Path) -> Results:
    """All finished runs of a folder.

    Raises:
        ValueError: there is none.
    """
    outcomes = []
    for row in ROWS:
        for seed in SEEDS:
            path = folder / f"{row.name}-{seed}" / OUTCOME
            if path.exists():
                outcomes.append(Outcome(row.name, seed, json.loads(path.read_bytes())))
    if not outcomes:
        raise ValueError(f"No run in {folder} is finished: let `ipro paper-tables` work there first.")
    real = {
        clip["scene"]: {n: math.nan if v is None else v for n, v in clip["signs"]["real"].items()}
        for clip in outcomes[0].told["signs"]
        if "real" in clip["signs"]
    }
    return Results(tuple(outcomes), band_of(list(real.values())))


def verdict(gain: Gain) -> str:
    """Whether a difference has the paper's direction."""
    low, high = gain.ci95
    if low > 0:
        return "agrees"
    return "disagrees" if high < 0 else "not shown"


def markdown(results: Results) -> str:
    """The tables beside the paper's, then every direction with what was found of it."""
    done = {outcome.row for outcome in results.outcomes}
    parts = [_table(results, table, done) for table in TABLES]
    parts += [_curves(results), _claims(results, done), _times(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def figures(results: Results) -> dict[str, Any]:
    """The same for a program."""
    done = [name for name in ("base", *(row.name for row in ROWS)) if name in _known(results)]
    claims = []
    for claim in CLAIMS:
        if {claim.more, claim.less} <= set(done):
            gain = results.difference(claim.more, claim.less, claim.measure)
            claims.append({**vars(claim), "found": gain.mean, "ci95": gain.ci95, "verdict": verdict(gain)})
    values = {
        name: {measure: results.mean(name, measure) for measure in MEASURES} for name in (*done, "real")
    }
    return jsonable({"values": values, "claims": claims, "runs": len(results.outcomes)})


def _known(results: Results) -> set[str]:
    return {"base", *(outcome.row for outcome in results.outcomes)}


def _table(results: Results, table: Table, done: set[str]) -> str:
    names = [name for name in table.rows if name in done | {"base", "real"}]
    head = ["", *(MEASURES[measure] for measure in table.measures), *(f"paper: {one}" for one in table.paper)]
    lines = [f"## {table.title}", "", _line(head), _line(["---"] * len(head))]
    told = {"base": "untuned", "real": "real clips"} | {row.name: row.told for row in ROWS}
    for name in names:
        cells = [_value(results, name, measure) for measure in table.measures]
        lines.append(_line([told[name], *cells, *(one.get(name, "") for one in table.paper.values())]))
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def _value(results: Results, row: str, measure: str) -> str:
    mean, (low, high) = results.mean(row, measure)
    if not math.isfinite(mean):
        return "not measured"
    text = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    seeds = results.by_seed(row, measure)
    return text + (f" ({' '.join(f'{one:.3f}' for one in seeds)})" if len(seeds) > 1 else "")


def _curves(results: Results) -> str:
    """Figure 3: KL over tuning, with its regularisation and without."""
    lines = ["## Figure 3: KL over tuning", "", _line(["", *(f"{share:.0%}" for share in SHARES)])]
    lines.append(_line(["---"] * (1 + len(SHARES))))
    for row in ROWS:
        curves = [outcome.told["kl"] for outcome in results.outcomes if outcome.row == row.name]
        if row.name in ("ipro", "no-kl") and curves:
            means = [np.nanmean([_near(curve, share) for curve in curves]) for share in SHARES]
            lines.append(_line([row.told, *(f"{mean:.4f}" for mean in means)]))
    return "\n".join(lines) if len(lines) > 4 else ""


def _near(curve: Sequence[float | None], share: float) -> float:
    """The mean of the tenth of a curve around a share of its length."""
    known = [math.nan if value is None else value for value in curve]
    half, middle = max(1, len(known) // 20), round(share * (len(known) - 1))
    return float(np.nanmean(known[max(0, middle - half) : middle + half + 1]))


def _claims(results: Results, done: set[str]) -> str:
    head = ["table", "direction", "paper", "here", "95 %", ""]
    lines = ["## What agrees", "", _line(head), _line(["---"] * len(head))]
    for claim in CLAIMS:
        if {claim.more, claim.less} <= done | {"base"}:
            gain = results.difference(claim.more, claim.less, claim.measure)
            lines.append(_line([claim.table, claim.told, *_differences(claim, gain), verdict(gain)]))
    return "\n".join(lines)


def _differences(claim: Claim, gain: Gain) -> tuple[str, str, str]:
    paper = claim.paper[0] - claim.paper[1]
    return f"{paper:+.3f}", f"{gain.mean:+.3f}", f"{gain.ci95[0]:+.3f} to {gain.ci95[1]:+.3f}"


def _times(results: Results) -> str:
    lines = ["## What it took", "", _line(["", "updates", "seconds of tuning", "seconds of judging"])]
    lines.append(_line(["---"] * 4))
    for row in ROWS:
        of_row = [one.told for one in results.outcomes if one.row == row.name]
        if of_row:
            tuning, judging = (
                " ".join(f"{told[what]:.0f}" for told in of_row)
                for what in ("seconds_of_tuning", "seconds_of_judging")
            )
            lines.append(_line([row.told, str(len(of_row[0]["kl"])), tuning, judging]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
