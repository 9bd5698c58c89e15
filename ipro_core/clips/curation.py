"""Which shots are kept, and why not: a pure function of what was measured and of thresholds (Section 5.1).

Every rule gives its measured value and its limit, kept or dropped; other limits need no other measurement.
People are dealt to tuning and evaluation whole: whoever is in a kept shot of one is in none of the other.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..types import knob
from .manifest import UNKNOWN, Source
from .measures import PersonMeasures, ShotMeasures
from .shots import HASH_BITS, hash_bits, hash_distance
from .splits import Split, number_people, split


@dataclass(frozen=True)
class CurationSettings:
    """Limits; a limit of 0 asks for nothing."""

    least_side: int = knob(320, "Least shorter side of a video in pixels; the paper collects 960.", min=0)
    least_fps: float = knob(16.0, "Least frames a second.", min=0)
    least_seconds: float = knob(2.0, "Least length of a shot in seconds; 81 frames of Wan are 5.1.", min=0)
    least_coverage: float = knob(0.4, "Least share of frames that show a face (5.1).", min=0, max=1)
    largest_face: float = knob(
        100.0,
        "Largest face, longer side in pixels were the video's shorter side 960 (5.1: small faces); 0: any.",
        min=0,
    )
    smallest_face: float = knob(
        24.0, "Smallest face, shorter side in pixels of the file: below 24 a recogniser sees noise.", min=0
    )
    most_people: int = knob(1, "Most people in a shot; 0: any number.", min=0)
    person_share: float = knob(
        0.2, "Share of the frames from which somebody counts as one of the people.", min=0, max=1
    )
    least_alike: float = knob(
        0.45, "Least mean cosine between a person's faces: mixed people give 0.2 to 0.35.", min=0, max=1
    )
    least_sharpness: float = knob(0.25, "Least sharpness of the face; blurred ones lie at 0.2.", min=0)
    least_light: float = knob(0.1, "Least mean luma of the face.", min=0, max=1)
    most_light: float = knob(0.9, "Most mean luma of the face.", min=0, max=1)
    most_clipped: float = knob(0.25, "Largest share of the face that is black or white.", min=0, max=1)
    least_turns: float = knob(
        0.0,
        "Least travel of the nose to the side, in face sizes, so that a clip shows several views of a face.",
        min=0,
    )
    least_distance: float = knob(
        6.0, "Bits of 64 that a shot must differ by from every other file's (dHash); 0: copies stay.", min=0
    )
    known_licence: bool = knob(False, "Whether a clip's licence and consent must be known.")
    same_person: float = knob(0.35, "Cosine from which faces of two shots are one person's.", min=-1, max=1)
    evaluation_share: float = knob(
        0.2, "Share of the kept shots that is set apart for evaluation, person by person.", min=0, max=1
    )


@dataclass(frozen=True)
class Answers:
    """What a vision-language model said; None: it was not asked, or gave no valid answer."""

    occluded: str | None = None
    """Whether something covers the face: yes, no, or unsure, where it said once this and once that."""
    covered_by: str = ""
    depicted: str | None = None
    """person, or drawing for all that is drawn or animated."""
    caption: str | None = None
    model: str = ""


@dataclass(frozen=True)
class Candidate:
    """All that is known of a shot."""

    shot: ShotMeasures
    source: Source = Source()
    answers: Answers = Answers()
    words: str = ""
    """What the user wrote of the whole file."""

    @property
    def prompt(self) -> str:
        """The user's words, where the file is one shot; else what the model wrote."""
        return self.words if self.words and self.shot.shots == 1 else self.answers.caption or self.words


@dataclass(frozen=True)
class Ruling:
    """What one rule says of one shot."""

    rule: str
    value: float | str | None
    """As it was measured; None where there is nothing to measure, which is no reason to drop a shot."""
    limit: float | str | None
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    candidate: Candidate
    rulings: tuple[Ruling, ...]
    people: tuple[int, ...] = ()
    """Numbers of the people of a kept shot, the same in every shot that shows them."""
    split: Split | None = None
    """Of a kept shot."""

    @property
    def kept(self) -> bool:
        return all(ruling.passed for ruling in self.rulings)

    @property
    def reason(self) -> str:
        """The first rule that drops the shot; "" for a kept one."""
        return next((ruling.rule for ruling in self.rulings if not ruling.passed), "")


@dataclass(frozen=True)
class Rule:
    """A measured number and its limit."""

    name: str
    limit: str
    """The knob."""
    unit: str
    value: Callable[[ShotMeasures, CurationSettings], float | None]
    most: bool = False
    """Whether the limit is the most that is allowed, not the least."""

    def apply(self, shot: ShotMeasures, settings: CurationSettings) -> Ruling:
        value, limit = self.value(shot, settings), getattr(settings, self.limit)
        passed = value is None or limit == 0 or (value <= limit if self.most else value >= limit)
        return Ruling(self.name, value, limit or None, passed)


def counted_people(shot: ShotMeasures, settings: CurationSettings) -> list[PersonMeasures]:
    """Those who are seen often enough; if nobody is, whoever is seen most."""
    counted = [person for person in shot.people if person.coverage >= settings.person_share]
    return counted or list(shot.people[:1])


def _lowest(name: str) -> Callable[[ShotMeasures, CurationSettings], float | None]:
    """Of the counted people's numbers."""
    return lambda shot, settings: min(_numbers(shot, settings, name), default=None)


def _highest(name: str) -> Callable[[ShotMeasures, CurationSettings], float | None]:
    return lambda shot, settings: max(_numbers(shot, settings, name), default=None)


def _numbers(shot: ShotMeasures, settings: CurationSettings, name: str) -> list[float]:
    found = (getattr(person, name) for person in counted_people(shot, settings))
    return [number for number in found if number is not None]


RULES = (
    Rule("resolution", "least_side", "px, shorter side", lambda shot, _: shot.short_side),
    Rule("frame rate", "least_fps", "a second", lambda shot, _: shot.fps),
    Rule("length", "least_seconds", "s", lambda shot, _: round(shot.seconds, 4)),
    Rule("coverage", "least_coverage", "of the frames", lambda shot, _: shot.coverage),
    Rule("largest face", "largest_face", "px at 960p", lambda shot, _: shot.largest_at_960p, most=True),
    Rule("smallest face", "smallest_face", "px", _lowest("face_px")),
    Rule("people", "most_people", "", lambda shot, how: len(counted_people(shot, how)) or None, most=True),
    Rule("identity", "least_alike", "cosine", _lowest("alike")),
    Rule("sharpness", "least_sharpness", "", _lowest("sharpness")),
    Rule("dark", "least_light", "luma", _lowest("light")),
    Rule("bright", "most_light", "luma", _highest("light"), most=True),
    Rule("clipped", "most_clipped", "of the face", _highest("clipped"), most=True),
    Rule("pose", "least_turns", "face sizes", _lowest("turns")),
)


def judge(candidates: Sequence[Candidate], settings: CurationSettings) -> list[Verdict]:
    """Every shot's verdict, in their order."""
    verdicts = [Verdict(one, tuple(_rulings(one, settings))) for one in candidates]
    copies = _copies(verdicts, settings)
    verdicts = [
        replace(one, rulings=(*one.rulings, copy)) if copy else one
        for one, copy in zip(verdicts, copies, strict=True)
    ]
    return _dealt(verdicts, settings)


def _rulings(candidate: Candidate, settings: CurationSettings) -> list[Ruling]:
    shot, answers, source = candidate.shot, candidate.answers, candidate.source
    if shot.problem:
        return [Ruling("readable", None, None, False, shot.problem)]
    rulings = [rule.apply(shot, settings) for rule in RULES]
    if answers.occluded is not None:
        rulings.append(
            Ruling("occlusion", answers.occluded, "no", answers.occluded != "yes", answers.covered_by)
        )
    if answers.depicted is not None:
        rulings.append(Ruling("depicted", answers.depicted, "person", answers.depicted == "person"))
    known = UNKNOWN not in (source.licence, source.consent)
    told = f"licence {source.licence}, consent {source.consent}"
    if settings.known_licence:
        rulings.append(Ruling("licence", told, "known", known))
    return rulings


def _copies(verdicts: Sequence[Verdict], settings: CurationSettings) -> list[Ruling | None]:
    """Of shots that show the same, the one that may stay: what passes all else, then the larger, then the
    longer. Shots of one file are no copies of each other."""
    shots = [verdict.candidate.shot for verdict in verdicts]
    seen = [n for n, shot in enumerate(shots) if shot.hashes]
    seen.sort(key=lambda n: (not verdicts[n].kept, -shots[n].short_side, -shots[n].frames, n))
    rulings: list[Ruling | None] = [None] * len(shots)
    ahead: list[int] = []  # that may stay, so far
    ahead_NB, rows_of_file = torch.zeros(len(seen), HASH_BITS), defaultdict[str, list[int]](list)
    for n in seen:
        bits_B, own = hash_bits(shots[n].hashes), rows_of_file[shots[n].video]
        distance_N = hash_distance(bits_B, ahead_NB[: len(ahead)])
        distance_N[own] = torch.inf
        value, note, passed = None, "", True
        if len(own) < len(ahead):
            value, nearest = round(distance_N.min().item(), 3), shots[ahead[int(distance_N.argmin())]]
            passed = value >= settings.least_distance
            note = "" if passed else f"copy of {nearest.name}"
        rulings[n] = Ruling("copy", value, settings.least_distance or None, passed, note)
        if passed:
            ahead_NB[len(ahead)] = bits_B
            own.append(len(ahead))
            ahead.append(n)
    return rulings


def _dealt(verdicts: Sequence[Verdict], settings: CurationSettings) -> list[Verdict]:
    """Number the people of the kept shots, and deal the shots out so that nobody is on both sides."""
    kept = [n for n, verdict in enumerate(verdicts) if verdict.kept]
    shots = [verdicts[n].candidate.shot for n in kept]
    people = number_people(shots, smallest_face=settings.smallest_face, same_person=settings.same_person)
    dealt = list(verdicts)
    for n, numbers, side in zip(kept, people, split(shots, people, settings.evaluation_share), strict=True):
        dealt[n] = replace(verdicts[n], people=tuple(sorted(numbers)), split=side)
    return dealt
