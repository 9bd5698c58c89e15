"""What a study's votes say: win rates, strengths by Bradley and Terry, and whose votes count (Fig. 9).

Voter and scene are both units: the votes of one person are not independent, nor are those on one scene. Both
are drawn anew, each with all its votes, in every resample (Owen 2007, "The pigeonhole bootstrap"), which errs
on the wide side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .ballots import Vote
from .statistics import draw_counts, quantiles_95
from .study import Study
from .study_design import Trial

RESAMPLES = 4_000
TOO_FEW = 2
"""Units that an interval needs."""


@dataclass(frozen=True)
class PairPreference:
    """One question, two methods."""

    first: str
    second: str
    wins: int
    """Votes for the first."""
    ties: int
    losses: int
    rate: float
    """The first's share, no preference counting half to each."""
    ci95: tuple[float, float]
    """NaN where one voter saw one scene."""


@dataclass(frozen=True)
class Strength:
    """How strong one method of several is, by Bradley and Terry."""

    method: str
    strength: float
    """Logarithm; the mean of all methods is 0. a beats b with probability 1 / (1 + exp(b − a))."""
    ci95: tuple[float, float]


@dataclass(frozen=True)
class QuestionPreference:
    question: str
    pairs: tuple[PairPreference, ...]
    strengths: tuple[Strength, ...]
    """The strongest first; none for two methods, of whom the rate says all."""


@dataclass(frozen=True)
class StudyResults:
    """All that a study says."""

    methods: tuple[str, ...]
    questions: tuple[QuestionPreference, ...]
    voters: int
    """Who voted on a pair and is counted."""
    votes: int
    """Pairs voted on, by these."""
    scenes: int
    left_out: dict[str, str]
    """Voter → which controls were failed."""
    unchecked: int
    """Counted voters who stopped before they met a control."""
    left_share: float
    """Of all preferences, those for the left video; far from one half, sides were chosen and not videos."""
    damaged: int
    """Lines of the files that were cut short."""


def study_results(study: Study, *, seed: int = 0) -> StudyResults:
    """Count the votes, without those of voters who fail the controls."""
    trials, votes = votes_by_voter(study)
    left_out = {voter: reason for voter, cast in votes.items() if (reason := failed_controls(cast, trials))}
    counted = {voter: cast for voter, cast in votes.items() if voter not in left_out}
    pairs = {
        voter: on_pairs
        for voter, cast in counted.items()
        if (on_pairs := [vote for vote in cast if trials[vote.trial].kind == "pair"])
    }
    cast = [vote for on_pairs in pairs.values() for vote in on_pairs]
    sides = [side for vote in cast for side in vote.answers.values() if side != "none"]
    asked = study.plan.questions if cast else ()
    methods = study.plan.methods[::-1]  # the baseline is named first, and told last
    return StudyResults(
        methods=tuple(methods),
        questions=tuple(_question(name, cast, trials, methods, seed) for name in asked),
        voters=len(pairs),
        votes=len(cast),
        scenes=len({trials[vote.trial].scene for vote in cast}),
        left_out=left_out,
        unchecked=sum(all(trials[vote.trial].kind == "pair" for vote in counted[voter]) for voter in pairs),
        left_share=sides.count("left") / len(sides) if sides else float("nan"),
        damaged=study.ballots.damaged,
    )


def failed_controls(votes: Sequence[Vote], trials: dict[str, Trial]) -> str:
    """Which controls a voter failed, in words, if enough for all the votes to be left out; else "".

    Beside its spoilt self the clean video must win more questions than it loses, every time. Of one video
    shown twice, most questions must be answered by no preference, most times.
    """
    spoilt = same = wrong_spoilt = wrong_same = 0
    for vote in votes:
        trial = trials[vote.trial]
        if trial.kind == "spoilt":
            spoilt += 1
            wrong_spoilt += sum(for_first(vote, trial, name) - 0.5 for name in vote.answers) <= 0
        elif trial.kind == "same":
            same += 1
            preferred = sum(side != "none" for side in vote.answers.values())
            wrong_same += 2 * preferred > len(vote.answers)
    reasons = []
    if wrong_spoilt:
        reasons.append(f"did not prefer the clean video to its spoilt self in {wrong_spoilt} of {spoilt}")
    if 2 * wrong_same > same:
        reasons.append(f"preferred one of two identical videos in {wrong_same} of {same}")
    return " and ".join(reasons)


def votes_by_voter(study: Study) -> tuple[dict[str, Trial], dict[str, list[Vote]]]:
    """The study's trials by id, and every voter's votes on them."""
    trials = {trial.id: trial for trial in study.plan.trials}
    votes: dict[str, list[Vote]] = {}
    for vote in study.ballots.votes():
        if vote.trial in trials:
            votes.setdefault(vote.voter, []).append(vote)
    return trials, votes


def bradley_terry(wins_MM: np.ndarray, *, ties: float = 0.0) -> np.ndarray:
    """Each method's strength, a logarithm with mean 0: (…, M).

    wins[…, i, j] says how often i beat j, a tie counting half to both. By minorising and maximising (Hunter
    2004, "MM algorithms for generalized Bradley-Terry models", Eq. 3).

    Args:
        ties: are added to every two that met; without any, who never won has no finite strength.

    Returns:
        NaN for who met nobody.
    """
    met_MM = wins_MM + np.swapaxes(wins_MM, -1, -2)
    wins_MM = wins_MM + ties / 2 * (met_MM > 0)
    met_MM = met_MM + ties * (met_MM > 0)
    won_M, here_M = wins_MM.sum(-1), met_MM.sum(-1) > 0
    if (won_M[here_M] <= 0).any():
        raise ValueError("A method never won, so its strength has no bound: add ties.")
    strength_M = np.zeros(won_M.shape)
    for _ in range(10_000):
        power_M = np.exp(strength_M)
        faced_M = (met_MM / (power_M[..., :, None] + power_M[..., None, :])).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            better_M = np.where(here_M, np.log(won_M / faced_M), 0.0)
        better_M -= here_M * better_M.sum(-1, keepdims=True) / here_M.sum(-1, keepdims=True)
        change, strength_M = abs(better_M - strength_M).max(), better_M
        if change < 1e-10:
            break
    return np.where(here_M, strength_M, np.nan)


def for_first(vote: Vote, trial: Trial, question: str) -> float:
    """1 for the trial's first video, 0 for its second, ½ for neither."""
    side = vote.answers[question]
    if side == "none":
        return 0.5
    chosen = vote.left if side == "left" else vote.right
    return float(chosen == trial.methods[0])


def _question(
    name: str, votes: Sequence[Vote], trials: dict[str, Trial], methods: Sequence[str], seed: int
) -> QuestionPreference:
    voters = {voter: index for index, voter in enumerate(dict.fromkeys(vote.voter for vote in votes))}
    scenes = {
        scene: index for index, scene in enumerate(dict.fromkeys(trials[vote.trial].scene for vote in votes))
    }
    drawn = Draws(len(voters), len(scenes), seed)
    wins_RMM = np.zeros((RESAMPLES, len(methods), len(methods)))
    wins_MM = np.zeros((len(methods), len(methods)))
    pairs = []
    for i, j in combinations(range(len(methods)), 2):
        of_pair = [vote for vote in votes if set(trials[vote.trial].methods) == {methods[i], methods[j]}]
        if not of_pair:
            continue
        shares, counts = np.zeros((2, len(voters), len(scenes)))
        firsts = []
        for vote in of_pair:
            trial = trials[vote.trial]
            first = for_first(vote, trial, name)
            first = first if trial.methods[0] == methods[i] else 1 - first
            firsts.append(first)
            place = voters[vote.voter], scenes[trial.scene]
            shares[place] += first
            counts[place] += 1
        wins_MM[i, j], wins_MM[j, i] = shares.sum(), counts.sum() - shares.sum()
        wins_RMM[:, i, j] = drawn.sums(shares)
        wins_RMM[:, j, i] = drawn.sums(counts) - wins_RMM[:, i, j]
        met_R = wins_RMM[:, i, j] + wins_RMM[:, j, i]
        rates_R = np.divide(wins_RMM[:, i, j], met_R, out=np.full(RESAMPLES, np.nan), where=met_R > 0)
        pairs.append(
            PairPreference(
                methods[i],
                methods[j],
                firsts.count(1.0),
                firsts.count(0.5),
                firsts.count(0.0),
                float(np.mean(firsts)),
                drawn.interval(rates_R),
            )
        )
    strengths: list[Strength] = []
    if len(methods) > 2 and len(pairs) == len(methods) * (len(methods) - 1) // 2:
        # One tie more for every two methods keeps who always wins finite, in resamples above all.
        resampled = bradley_terry(wins_RMM, ties=1.0)
        for index, strength in enumerate(bradley_terry(wins_MM, ties=1.0).tolist()):
            strengths.append(Strength(methods[index], strength, drawn.interval(resampled[:, index])))
        strengths.sort(key=lambda one: -one.strength)
    return QuestionPreference(name, tuple(pairs), tuple(strengths))


class Draws:
    """Voters and scenes drawn anew; one of a kind, of whom there is no telling how others would be, stays."""

    def __init__(self, voters: int, scenes: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.voters_RV = draw_counts(voters, generator, RESAMPLES)
        self.scenes_RS = draw_counts(scenes, generator, RESAMPLES)
        self.count = min((count for count in (voters, scenes) if count >= TOO_FEW), default=0)

    def sums(self, values_VS: np.ndarray) -> np.ndarray:
        """Over all votes, each as often as its voter times as often as its scene is drawn: (R,)."""
        return ((self.voters_RV @ values_VS) * self.scenes_RS).sum(-1)

    def interval(self, resampled_R: np.ndarray) -> tuple[float, float]:
        if not self.count:
            return float("nan"), float("nan")
        low, high = quantiles_95(resampled_R, self.count)
        return float(low), float(high)
