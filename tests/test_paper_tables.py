"""Tables in miniature: fair settings, values and verdicts by hand, one row run for real."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ipro_core.paper_tables import page, plan, work
from ipro_core.paper_tables.page import HACKS, MEASURES, Outcome, Results, markdown, read_results, verdict
from ipro_core.paper_tables.plan import BATCH, CLAIMS, LOOK, PASSES, ROWS, TABLES, passes_of

SIGNS = ("face_change", "expression", "turn", "diversity", "likeness", "copy_index", "frontal", "coverage")


def test_every_row_takes_the_same_passes_and_differs_by_what_its_name_says():
    ipro = ROWS[0].plan(0)
    # Four frozen steps, four tuned ones kept for the gradient, one compared; 4 backward, and the anchor's own
    # at three of four steps.
    assert passes_of(ipro.method) == 4 + 5 + 2 * (4 + 0.75) + LOOK and ipro.loop.updates == 120
    for row in ROWS:
        tuned = row.plan(0)
        taken = tuned.loop.updates * tuned.loop.batch_size * passes_of(tuned.method)
        assert taken == pytest.approx(PASSES, rel=0.02), row.name
        assert tuned.rank == ipro.rank
        assert row.plan(1).loop.seed == 1
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_workflow_of_the_baselines_gives_every_method_as_many_passes():
    workflow = json.loads((Path(__file__).parents[1] / "workflows" / "8_baselines.json").read_text())
    titles = {node["title"]: node["widgets_values"] for node in workflow["nodes"] if "title" in node}
    for row in ROWS:
        if f"Train ({row.name.upper()})" in titles:
            name, rank, updates, batch, *_ = titles.pop(f"Train ({row.name.upper()})")
            tuned = row.plan(0)
            each = tuned.loop.batch_size * passes_of(tuned.method)
            assert (name, rank, batch) == (row.name, tuned.rank, tuned.loop.batch_size)
            # Of 30 updates of IPRO, to the nearest update.
            assert abs(updates * each - 30 * BATCH * passes_of(ROWS[0].plan(0).method)) <= each / 2
    assert not [title for title in titles if title.startswith("Train")]


def test_tables_and_claims_name_rows_and_measures_that_are_there():
    names = {"base", "real", *(row.name for row in ROWS)}
    for table in TABLES:
        assert set(table.rows) <= names and set(table.measures) <= set(MEASURES)
        assert all(set(values) <= set(table.rows) for values in table.paper.values())
    for claim in CLAIMS:
        assert {claim.more, claim.less} <= names and claim.measure in MEASURES
        assert claim.paper[0] > claim.paper[1]


def outcome(row: str, seed: int, gain: float, scenes: int = 24) -> Outcome:
    """Base 0.5 in every scene but for a wave, tuned `gain` above it."""
    pairs = []
    for n in range(scenes):
        base = 0.5 + 0.05 * math.sin(n)
        values = {"judge": 0.4, "coverage": 1.0, "motion": 0.7, "turn": 0.1, "sharpness": None}
        pairs.append(
            {
                "scene": f"s{n}",
                "base": {"facesim": base, **values},
                "tuned": {"facesim": base + gain + 0.01 * (n % 2), **values},
                "real": {"facesim": 0.95, **values},
            }
        )
    kl = [0.001 * step for step in range(40)]
    told = {"pairs": pairs, "signs": [], "kl": kl, "seconds_of_tuning": 1, "seconds_of_judging": 1}
    return Outcome(row, seed, told)


def results(*outcomes: Outcome) -> Results:
    return Results(outcomes, band=None)  # type: ignore[arg-type]  # no measure of hacks is asked for


def test_values_are_means_over_scenes_and_differences_are_paired():
    of = results(
        outcome("ipro", 0, 0.1), outcome("ipro", 1, 0.2), outcome("dpo", 0, 0.05), outcome("dpo", 1, 0.05)
    )
    base, tuned = of.mean("base", "facesim")[0], of.mean("ipro", "facesim")[0]
    assert tuned - base == pytest.approx(0.15 + 0.005)  # half the scenes have 0.01 more
    assert of.by_seed("ipro", "facesim") == pytest.approx([base + 0.105, base + 0.205])
    gain = of.difference("ipro", "dpo", "facesim")
    assert gain.mean == pytest.approx(0.1) and gain.scenes == 24 and gain.pairs == 48
    assert verdict(gain) == "agrees"
    assert verdict(of.difference("dpo", "ipro", "facesim")) == "disagrees"
    assert verdict(of.difference("ipro", "base", "motion")) == "not shown"
    assert math.isnan(of.mean("ipro", "sharpness")[0])


def test_the_page_tells_what_is_there_beside_the_papers_numbers(monkeypatch):
    claims = [claim for claim in CLAIMS if claim.measure != "hacked"]
    tables = [replace(table, measures=("facesim", "motion")) for table in TABLES]
    monkeypatch.setattr(page, "CLAIMS", claims)
    monkeypatch.setattr(page, "TABLES", tables)
    told = markdown(results(outcome("ipro", 0, 0.1), outcome("no-kl", 0, 0.2)))
    assert "| untuned | 0.50" in told and "| 0.5780 |" in told
    assert "| 6 | without KL FaceSim rises further | +0.060 | +0.100 |" in told
    assert "DPO helps" not in told  # that row was not run
    assert "| IPRO | 0.0" in told and "## Figure 3" in told


def test_a_row_is_tuned_judged_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "SCENES", 3)
    monkeypatch.setattr(work, "HELD_OUT", 4)
    monkeypatch.setattr(plan, "PASSES", 40)
    monkeypatch.setattr(plan, "BATCH", 2)
    (row,) = [row for row in ROWS if row.name == "no-kl"]
    seen = []
    work.run_row(row, 0, tmp_path / "no-kl-0", lambda *what: seen.append(what))
    assert [step for _, step, _ in seen] == list(range(1, row.plan(0).loop.updates + 1))
    told = json.loads((tmp_path / "no-kl-0" / work.OUTCOME).read_text())
    assert len(told["pairs"]) == 4 and len(told["kl"]) == len(seen) and told["kl"][-1] >= 0
    assert set(SIGNS) <= set(told["signs"][0]["signs"]["tuned"])
    read = read_results(tmp_path)
    assert 0.3 < read.mean("base", "facesim")[0] < read.mean("real", "facesim")[0] < 1
    assert 0 <= read.mean("no-kl", "hacked")[0] <= 1 and set(HACKS) <= set(read.band.limits)


def test_a_folder_without_a_finished_run_says_so(tmp_path):
    with pytest.raises(ValueError, match="is finished: let"):
        read_results(tmp_path)
