"""What is asked; which trials a voter meets, in which order, what lies left: seeded, even, told to nobody."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from random import Random
from typing import Literal

from ..types import check_knobs, knob

Kind = Literal["pair", "same", "spoilt"]


@dataclass(frozen=True)
class Question:
    name: str
    title: str
    words: str


QUESTIONS = {
    question.name: question
    for question in (
        Question(
            "identity",
            "Identity",
            "In which video does the person's face stay more like it was at the start?",
        ),
        Question(
            "quality", "Visual quality", "Which video looks better: sharper, steadier, with fewer faults?"
        ),
        Question("text", "Text alignment", "Which video does more of what the text says?"),
        Question("motion", "Motion", "In which video do people and things move more?"),
    )
}
"""The paper's four."""


@dataclass(frozen=True)
class StudySettings:
    controls: int = knob(
        2,
        "Controls of each kind that every voter meets: one video twice, and one beside itself spoilt.",
        min=0,
        max=20,
    )
    pairs: int = knob(0, "Pairs that one voter judges, dealt evenly among voters; 0: all.", min=0)
    max_side: int = knob(960, "Larger videos are shrunk until the longer side has this many pixels.", min=64)
    seed: int = knob(0, "Of sides and order; 0: drawn, so that nobody can work them out.", min=0)

    def __post_init__(self) -> None:
        check_knobs(self)


@dataclass(frozen=True)
class Trial:
    """Two videos of one scene, to be judged beside each other."""

    id: str
    """Drawn at random: it tells nothing, and cannot be guessed."""
    kind: Kind
    """Two methods; or a control: one video twice, or a video and the same one spoilt."""
    scene: str
    """The unit of the statistics, with the voter."""
    methods: tuple[str, str]
    """Of a spoilt control, the clean one's first."""
    videos: tuple[str, str]
    """File names in the study's media."""
    image: str
    """The input image, a file name; "" where there is none."""
    prompt: str
    fps: float


@dataclass(frozen=True)
class Showing:
    """A trial as one voter meets it."""

    trial: Trial
    swapped: bool
    """The first video lies right."""

    @property
    def sides(self) -> tuple[int, int]:
        """Which of the trial's videos lies left, and which right."""
        return (1, 0) if self.swapped else (0, 1)


def ballot(trials: Sequence[Trial], number: int, *, seed: int, pairs: int = 0) -> tuple[Showing, ...]:
    """All that the voter of this number (0, 1, …) meets, in order.

    Over the voters every pair is shown equally often, and equally often either way round, give or take one;
    so is, to one voter, each two methods' pairs. Controls are spread over the whole, so that who stops early
    has met some.

    Args:
        pairs: shown to one voter; 0: all.
    """
    queue = _evenly([trial for trial in trials if trial.kind == "pair"], seed)
    count = min(pairs or len(queue), len(queue))
    drawn = [divmod(place, len(queue)) for place in range(number * count, (number + 1) * count)]
    ranks, seen = [], Counter[tuple[str, str]]()
    for trial in queue:
        ranks.append(seen[trial.methods])
        seen[trial.methods] += 1
    # A pair that has been round once more lies the other way, and so does the next of the same two methods.
    coins = {methods: Random(f"{seed} side {methods}").randrange(2) for methods in seen}
    shown = [
        Showing(queue[index], bool((ranks[index] + turn + coins[queue[index].methods]) % 2))
        for turn, index in drawn
    ]
    order = Random(f"{seed} order {number}")
    order.shuffle(shown)
    controls = [
        Showing(trial, bool((index + number) % 2))
        for index, trial in enumerate(trial for trial in trials if trial.kind != "pair")
    ]
    order.shuffle(controls)
    # From the last to the first, each into its own stretch: what comes before does not move.
    for index in reversed(range(len(controls))):
        start, end = (count * edge // len(controls) for edge in (index, index + 1))
        shown.insert(order.randint(start, end), controls[index])
    return tuple(shown)


def _evenly(trials: Sequence[Trial], seed: int) -> list[Trial]:
    """Shuffled, each two methods' pairs in turn."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.methods, []).append(trial)
    for methods, group in groups.items():
        Random(f"{seed} trials {methods}").shuffle(group)
    return [trial for trial in chain.from_iterable(zip_longest(*groups.values())) if trial]
