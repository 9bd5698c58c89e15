"""What votes say: rates, intervals by voter and scene, Bradley–Terry against its closed forms, controls."""

import math
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from small_study import COLOURS, small_study, vote_for

from ipro_core.evaluation.ballots import Vote
from ipro_core.evaluation.preferences import Draws, bradley_terry, failed_controls, study_results
from ipro_core.evaluation.preferred import preferred_videos, voted_place, voted_scenes
from ipro_core.evaluation.statistics import bootstrap_interval
from ipro_core.evaluation.study_design import Trial
from ipro_core.evaluation.study_words import results_in_words
from ipro_core.types import Framing


def cast(study, prefer, voters=4):
    """prefer(voter's number, scene's number, trial) names the method that wins; controls are passed."""
    for number in range(voters):
        voter = study.ballots.join()
        for showing in study.showings(voter):
            trial = showing.trial
            method = trial.methods[0] if trial.kind == "spoilt" else ""
            if trial.kind == "pair":
                method = prefer(number, int(trial.scene.split()[1]), trial)
            study.ballots.cast(vote_for(study, voter, showing, method))


def test_bradley_terry_of_two_is_the_logarithm_of_their_wins():
    # The maximum of 30 log p/(p+q) + 10 log q/(p+q) lies at p/q = 3: ± log 3 / 2 around a mean of 0.
    assert bradley_terry(np.array([[0, 30], [10, 0.0]])) == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    # One tie more is half a win for both: 30.5 to 10.5.
    assert bradley_terry(np.array([[0, 30], [10, 0.0]]), ties=1)[0] == pytest.approx(
        math.log(30.5 / 10.5) / 2
    )


def test_bradley_terry_finds_the_strengths_that_expected_wins_were_made_of():
    true = np.array([0.9, 0.1, -0.3, -0.7])
    wins = 20 / (1 + np.exp(true[None, :] - true[:, None]))
    np.fill_diagonal(wins, 0)
    assert bradley_terry(wins) == pytest.approx(true, abs=1e-8)
    # Not all need to meet: a chain tells as much.
    chain = wins * (abs(np.arange(4)[:, None] - np.arange(4)) == 1)
    assert bradley_terry(chain) == pytest.approx(true, abs=1e-6)
    # Several at once, as in resamples.
    assert bradley_terry(np.stack([wins, chain]))[1] == pytest.approx(true, abs=1e-6)


def test_strengths_without_a_bound_are_refused_and_ties_bound_them():
    never = np.array([[0, 5.0], [0, 0]])
    with pytest.raises(ValueError, match="never won"):
        bradley_terry(never)
    assert bradley_terry(never, ties=1)[0] == pytest.approx(math.log(5.5 / 0.5) / 2)


def test_pairs_to_learn_from_are_those_that_votes_decide(tmp_path):
    study = small_study(tmp_path, scenes=4, controls=1)
    # Scene 0: all four for tuned. 1: three of four for base. 2: nobody prefers one. 3: two against two.
    wanted = [["tuned"] * 4, ["base"] * 3 + ["tuned"], [""] * 4, ["tuned", "base"] * 2]
    cast(study, lambda number, scene, _: wanted[scene][number])
    decided = preferred_videos(study, "quality")
    assert [(one.trial.scene, one.share) for one in decided] == [("scene 0", 1.0), ("scene 1", 0.75)]
    for one, winner in zip(decided, ("tuned", "base"), strict=True):
        files = dict(zip(one.trial.methods, one.trial.videos, strict=True))
        assert files.pop(winner) == one.winner and files.popitem()[1] == one.loser
    with pytest.raises(ValueError, match="asks identity, quality, not motion"):
        preferred_videos(study, "motion")
    with pytest.raises(ValueError, match=r"No pair of .* is decided on identity"):
        preferred_videos(small_study(tmp_path / "unseen"), "identity")
    shown = voted_scenes(voted_place(tmp_path, "quality"), Framing(48, 32, 5, 12.0))[1]
    assert (shown.name, shown.prompt) == ("scene 1", "a bar wanders, 1")
    for frames, method in ((shown.frames(), "base"), (shown.rejected.frames(), "tuned")):
        torch.testing.assert_close(
            frames[:, :, -1, -1].mean(0), torch.tensor(COLOURS[method]), rtol=0, atol=0.05
        )


def test_win_rates_count_no_preference_half(tmp_path):
    study = small_study(tmp_path, scenes=8, controls=1)
    cast(study, lambda _, scene, __: (["tuned"] * 5 + ["base"] + [""] * 2)[scene])
    told = study_results(study)
    (identity, quality) = told.questions
    (pair,) = identity.pairs
    # Of 8 scenes, seen by 4 voters each, tuned wins 5, base 1, and 2 are ties: 5/8 + 2/16 = .75.
    assert (pair.first, pair.second) == ("tuned", "base") and told.methods == ("tuned", "base")
    assert (pair.wins, pair.ties, pair.losses, pair.rate) == (20, 8, 4, 0.75)
    assert quality.pairs == identity.pairs and identity.strengths == ()
    assert (told.voters, told.votes, told.scenes, told.left_out, told.unchecked) == (4, 32, 8, {}, 0)


def test_the_interval_is_as_wide_as_that_of_the_unit_that_differs(tmp_path):
    # All voters agree on every scene: eight values, no more, however many voters saw them.
    wins = [1.0] * 5 + [0.0] + [0.5] * 2
    names = {1.0: "tuned", 0.0: "base", 0.5: ""}
    by_scene = small_study(tmp_path / "scenes", scenes=8, controls=0)
    cast(by_scene, lambda _, scene, __: names[wins[scene]], voters=12)
    # And each voter says the same of every scene: eight values, however many scenes.
    by_voter = small_study(tmp_path / "voters", scenes=12, controls=0)
    cast(by_voter, lambda number, _, __: names[wins[number]], voters=8)
    want = bootstrap_interval(np.array(wins))
    for study in (by_scene, by_voter):
        (pair,) = study_results(study).questions[0].pairs
        # Means of eight such values lie on a grid of sixteenths.
        assert pair.rate == 0.75 and pair.ci95 == pytest.approx(want, abs=0.07)


def test_one_voter_on_one_scene_has_no_interval_and_one_voter_on_many_has_that_of_the_scenes(tmp_path):
    for scenes, known in ((1, False), (6, True)):
        study = small_study(tmp_path / str(scenes), scenes=scenes, controls=0)
        cast(study, lambda _, scene, __: "tuned" if scene % 2 else "base", voters=1)
        told = study_results(study)
        low, high = told.questions[0].pairs[0].ci95
        assert (low < 0.5 < high) == known == math.isfinite(low)
        assert ("not known from so few" in results_in_words(told)) != known


def test_intervals_hold_the_truth_where_votes_counted_singly_do_not():
    """Votes of 12 voters on 12 scenes whose tastes and difficulties differ: the true rate is one half."""
    generator, held, singly = np.random.default_rng(1), 0, 0
    for trial in range(100):
        leaning = generator.normal(0, 1, (12, 1)) + generator.normal(0, 1, (1, 12))
        votes_VS = (leaning + generator.logistic(0, 1, (12, 12)) > 0).astype(float)
        drawn = Draws(12, 12, seed=trial)
        low, high = drawn.interval(drawn.sums(votes_VS) / drawn.sums(np.ones((12, 12))))
        held += low <= 0.5 <= high
        rate = votes_VS.mean()
        singly += abs(rate - 0.5) <= 1.96 * math.sqrt(rate * (1 - rate) / votes_VS.size)
    assert held >= 93 and singly <= 75, (held, singly)


def test_of_three_methods_the_strongest_comes_first_with_what_its_wins_say(tmp_path):
    study = small_study(tmp_path, scenes=6, methods=("base", "tuned", "other"), controls=0)
    order = ["tuned", "other", "base"]
    cast(
        study,
        lambda _, scene, trial: (
            min(trial.methods, key=order.index) if scene else max(trial.methods, key=order.index)
        ),
    )
    told = study_results(study).questions[0]
    assert [one.method for one in told.strengths] == order
    # Of 24 votes on each two, 20 went by the order and 4 against; one tie more for every two.
    wins = np.zeros((3, 3))
    for i, j in combinations(range(3), 2):
        wins[i, j], wins[j, i] = 20, 4
    assert [one.strength for one in told.strengths] == pytest.approx(bradley_terry(wins, ties=1).tolist())
    assert all(one.ci95[0] < one.strength < one.ci95[1] for one in told.strengths)
    assert {(pair.first, pair.second): pair.rate for pair in told.pairs} == {
        ("other", "tuned"): pytest.approx(1 / 6),
        ("other", "base"): pytest.approx(5 / 6),
        ("tuned", "base"): pytest.approx(5 / 6),
    }


def control(kind):
    methods = {"same": ("a", "a"), "spoilt": ("a", "a, spoilt"), "pair": ("a", "b")}[kind]
    return Trial(kind, kind, "scene", methods, ("x", "y"), "", "", 8.0)


@pytest.mark.parametrize(
    "given, words",
    [
        ([("spoilt", {"q": "left", "r": "none"}), ("same", {"q": "none", "r": "none"})], ""),
        (
            [("spoilt", {"q": "left", "r": "left"}), ("spoilt", {"q": "none", "r": "none"})],
            "clean video .* in 1 of 2",
        ),
        ([("spoilt", {"q": "left", "r": "right"})], "clean video .* in 1 of 1"),  # as often for as against
        (
            [("same", {"q": "left", "r": "right"}), ("same", {"q": "none", "r": "none"})],
            "",
        ),  # one of two is luck
        ([("same", {"q": "left", "r": "left"})] * 2, "identical videos in 2 of 2"),
        ([("same", {"q": "left", "r": "none"})], ""),  # half of the questions
        ([("pair", {"q": "left", "r": "left"})], ""),
    ],
)
def test_who_fails_controls_is_left_out_with_the_reason(given, words):
    trials = {kind: control(kind) for kind in ("same", "spoilt", "pair")}
    votes = [Vote("v", kind, *trials[kind].methods, answers) for kind, answers in given]
    assert re.search(words, failed_controls(votes, trials)) if words else failed_controls(votes, trials) == ""


def test_votes_of_who_fails_change_nothing_and_sides_chosen_blindly_show(tmp_path):
    study = small_study(tmp_path, scenes=6, controls=1)
    cast(study, lambda *_: "tuned", voters=3)
    honest = study_results(study)
    clicker = study.ballots.join()
    for showing in study.showings(clicker):
        left, right = (showing.trial.methods[side] for side in showing.sides)
        study.ballots.cast(
            Vote(clicker, showing.trial.id, left, right, {"identity": "left", "quality": "left"})
        )
    told = study_results(study)
    assert list(told.left_out) == [clicker] and "identical" in told.left_out[clicker]
    assert told.questions == honest.questions and told.voters == 3
    assert f"left out: voter {clicker[:6]}" in results_in_words(told)
    # Six scenes by three voters, sides dealt evenly: left in 9 of 18, and one more or less a voter.
    assert abs(honest.left_share - 0.5) <= 1 / 6


def test_who_stopped_before_a_control_is_counted_and_told(tmp_path):
    study = small_study(tmp_path, scenes=8, controls=1)
    voter = study.ballots.join()
    first = next(one for one in study.showings(voter) if one.trial.kind == "pair")
    study.ballots.cast(vote_for(study, voter, first, "tuned"))
    told = study_results(study)
    assert (told.voters, told.votes, told.unchecked) == (
        1,
        1,
        1,
    ) and "before they met a control, and are counted: 1" in results_in_words(told)
