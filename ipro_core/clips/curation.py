"""Which shots are kept, and why not: a pure function of what was measured and of thresholds (Section 5.1).

Every rule gives its measured value and its limit, kept or dropped; other limits need no other measurement.
People are dealt to tuning and evaluation whole: whoever is in a kept shot of one is in none of the other.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..types import knob
from .manifest import UNKNOWN, Source, Split
from .measures import PersonMeasures, ShotMeasures
from .shots import hash_bits, hash_distance


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
    bits = {n: hash_bits(shot.hashes) for n, shot in enumerate(shots) if shot.hashes}
    rulings: list[Ruling | None] = [None] * len(shots)
    ahead: list[int] = []
    for n in sorted(bits, key=lambda n: (not verdicts[n].kept, -shots[n].short_side, -shots[n].frames, n)):
        value, nearest = None, None
        others = [other for other in ahead if shots[other].video != shots[n].video]
        if others:
            distance_N = hash_distance(bits[n], torch.stack([bits[other] for other in others]))
            value, nearest = round(distance_N.min().item(), 3), shots[others[int(distance_N.argmin())]]
        passed = value is None or value >= settings.least_distance
        note = f"copy of {nearest.name}" if nearest and not passed else ""
        rulings[n] = Ruling("copy", value, settings.least_distance or None, passed, note)
        if passed:
            ahead.append(n)
    return rulings


def _dealt(verdicts: Sequence[Verdict], settings: CurationSettings) -> list[Verdict]:
    """Number the people of the kept shots, and deal the shots out so that nobody is on both sides."""
    kept = [n for n, verdict in enumerate(verdicts) if verdict.kept]
    faces = [
        (n, person.embedding_D)
        for n in kept
        for person in verdicts[n].candidate.shot.people
        if person.face_px >= settings.smallest_face  # below it all faces look alike
    ]
    person_F = _groups(_links([face for _, face in faces], settings.same_person), len(faces))
    people: dict[int, set[int]] = {n: set() for n in kept}
    for (n, _), person in zip(faces, person_F, strict=True):
        people[n].add(person)
    # Shots that share a person belong together, and so do those of one file: a person may be missed in one.
    first: dict[int | str, int] = {}
    links = [
        (k, first.setdefault(told, k))
        for k, n in enumerate(kept)
        for told in (*people[n], verdicts[n].candidate.shot.sha256)
    ]
    group_K = _groups(links, len(kept))
    shots = {group: [n for n, g in zip(kept, group_K, strict=True) if g == group] for group in group_K}
    # By content, so that neither order nor names of files decide who is judged on.
    contents = {g: min(verdicts[n].candidate.shot.sha256 for n in members) for g, members in shots.items()}
    order = sorted(shots, key=lambda group: hashlib.sha256(contents[group].encode()).digest())
    split: dict[int, Split] = dict.fromkeys(kept, "tuning")
    set_apart, wanted = 0, round(settings.evaluation_share * len(kept))
    for group in order:
        if set_apart + len(shots[group]) <= wanted:
            set_apart += len(shots[group])
            split |= dict.fromkeys(shots[group], "evaluation")
    return [
        Verdict(verdict.candidate, verdict.rulings, tuple(sorted(people[n])), split[n])
        if n in people
        else verdict
        for n, verdict in enumerate(verdicts)
    ]


def _links(embeddings: Sequence[torch.Tensor], least: float) -> list[tuple[int, int]]:
    """Pairs of faces that are one person's."""
    if not embeddings:
        return []
    faces_FD = torch.nn.functional.normalize(torch.stack(list(embeddings)), dim=1)
    return [(i, j) for i, j in (faces_FD @ faces_FD.T >= least).nonzero().tolist() if i > j]


def _groups(links: Sequence[tuple[int, int]], count: int) -> list[int]:
    """The group of each of `count` things when linked ones are in one; groups are numbered as they appear."""
    leader = list(range(count))

    def find(thing: int) -> int:
        while leader[thing] != thing:
            leader[thing] = leader[leader[thing]]
            thing = leader[thing]
        return thing

    for one, other in links:
        low, high = sorted((find(one), find(other)))
        leader[high] = low
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(thing), len(numbers)) for thing in range(count)]
