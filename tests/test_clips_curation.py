"""Verdicts from measurements: every rule with its value and limit, copies, people on one side only."""

import itertools
from base64 import b64encode
from dataclasses import fields, replace

import numpy as np
import pytest

from ipro_core.clips.curation import (
    RULES,
    Answers,
    Candidate,
    CurationSettings,
    counted_people,
    judge,
)
from ipro_core.clips.manifest import Source
from ipro_core.clips.measures import PersonMeasures, ShotMeasures
from ipro_core.clips.shots import hash_bits, hash_distance


def person(identity: int = 0, **changed) -> PersonMeasures:
    """One whose embedding is the unit vector of a number: cosine 1 to the same, 0 to others."""
    embedding = b64encode(np.eye(32, dtype=np.float16)[identity].tobytes()).decode()
    known = PersonMeasures(1.0, 80.0, 0.9, 0.8, 0.5, 0.4, 0.0, 0.2, embedding)
    return replace(known, **changed)


def shot(number: int = 0, people: tuple[PersonMeasures, ...] | None = None, **changed) -> ShotMeasures:
    """A shot that every rule lets pass; its frames look like those of no other number."""
    hashes = tuple(f"{(0x9E3779B97F4A7C15 * (8 * number + k + 1)) % 2**64:016x}" for k in range(8))
    known = ShotMeasures(
        f"clips/{number}.mp4", f"{number:064x}", "packs", frames=100, end=5.0, width=1280, height=960,
        fps=24.0, hashes=hashes, looks=20, coverage=1.0, largest_face=0.1,
        people=(person(number),) if people is None else people,
    )  # fmt: skip
    return replace(known, **changed)


def verdicts(*shots: ShotMeasures, **limits):
    return judge([Candidate(one) for one in shots], CurationSettings(**limits))


BROKEN = {
    "resolution": ({"width": 400, "height": 300}, {"least_side": 300}),
    "frame rate": ({"fps": 12.0}, {"least_fps": 12.0}),
    "length": ({"end": 1.5}, {"least_seconds": 1.5}),
    "coverage": ({"coverage": 0.39}, {"least_coverage": 0.39}),
    "largest face": ({"largest_face": 0.11}, {"largest_face": 106}),
    "smallest face": ({"people": (person(face_px=20.0),)}, {"smallest_face": 20}),
    "people": ({"people": (person(0), person(1))}, {"most_people": 2}),
    "identity": ({"people": (person(alike=0.3),)}, {"least_alike": 0.3}),
    "sharpness": ({"people": (person(sharpness=0.2),)}, {"least_sharpness": 0.2}),
    "dark": ({"people": (person(light=0.05),)}, {"least_light": 0.05}),
    "bright": ({"people": (person(light=0.95),)}, {"most_light": 0.95}),
    "clipped": ({"people": (person(clipped=0.3),)}, {"most_clipped": 0.3}),
}


def test_a_shot_that_is_as_it_should_be_is_kept_and_every_measured_rule_says_what_it_saw():
    (verdict,) = verdicts(shot())
    assert verdict.kept and verdict.reason == "" and verdict.split == "tuning"
    told = {ruling.rule: (ruling.value, ruling.limit) for ruling in verdict.rulings}
    assert {rule.name for rule in RULES} | {"copy"} == set(told)
    # 0.1 of the shorter side is 96 px where that side has 960.
    assert told["largest face"] == (96.0, 100.0) and told["coverage"] == (1.0, 0.4)


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_drops_what_breaks_it_alone_and_its_limit_is_still_allowed(rule):
    broken, allowed = BROKEN[rule]
    (verdict,) = verdicts(shot(**broken))
    assert [ruling.rule for ruling in verdict.rulings if not ruling.passed] == [rule]
    assert (verdict.kept, verdict.reason, verdict.split) == (False, rule, None)
    assert verdicts(shot(**broken), **allowed)[0].kept


def test_a_limit_of_nought_asks_for_nothing():
    off = {
        knob.name: 0 for knob in fields(CurationSettings) if knob.name not in ("same_person", "person_share")
    }
    awful = person(face_px=1.0, alike=-0.5, sharpness=0.0, light=1.0, clipped=1.0, turns=0.0)
    all_broken = shot(
        width=10, height=10, fps=1.0, end=0.1, coverage=0.01, largest_face=1.0,
        people=tuple(replace(awful, coverage=k / 2) for k in (1, 2)),
    )  # fmt: skip
    assert all(verdict.kept for verdict in verdicts(all_broken, replace(all_broken, video="b.mp4"), **off))


def test_a_faceless_shot_is_dropped_for_coverage_with_its_value():
    (verdict,) = verdicts(shot(coverage=0.0, largest_face=None, people=()))
    (failed,) = [ruling for ruling in verdict.rulings if not ruling.passed]
    assert (failed.rule, failed.value, failed.limit) == ("coverage", 0.0, 0.4)
    # Of faces that are not there nothing is known, and nothing is claimed.
    assert {ruling.value for ruling in verdict.rulings if ruling.rule in ("largest face", "sharpness")} == {
        None
    }


def test_somebody_who_passes_through_is_not_counted_and_the_worst_of_those_counted_decides():
    passer = person(1, coverage=0.1, sharpness=0.0)
    assert verdicts(shot(people=(person(0), passer)))[0].kept
    crowd = shot(people=(person(0), replace(passer, coverage=0.5)))
    (verdict,) = verdicts(crowd, most_people=2)
    assert verdict.reason == "sharpness"
    assert len(counted_people(crowd, CurationSettings(person_share=0.6))) == 1


def test_of_copies_the_larger_stays_whatever_the_order():
    small = shot(0, video="small.mp4", sha256="5" * 64, width=640, height=480)
    for one, other in itertools.permutations([shot(0), small]):
        kept = [verdict.candidate.shot.video for verdict in verdicts(one, other) if verdict.kept]
        assert kept == ["clips/0.mp4"]
    (_, copy) = verdicts(shot(0), small)
    assert copy.reason == "copy" and copy.rulings[-1].value == 0.0
    assert copy.rulings[-1].note == "copy of 0"
    # A copy that nothing is wrong with takes the place of a larger one that is dropped for something else.
    (original, copy) = verdicts(shot(0, coverage=0.1), small)
    assert original.reason == "coverage" and copy.kept


def test_shots_of_one_file_are_no_copies_of_each_other():
    one, two = (shot(0, shot=k, shots=2, first_frame=100 * k) for k in range(2))
    found = verdicts(shot(1), one, two)
    assert all(verdict.kept for verdict in found)
    # The nearest shot of another file is as far from both.
    assert found[1].rulings[-1].value == found[2].rulings[-1].value > 6


def test_the_distance_of_hashes_is_the_mean_number_of_differing_bits():
    same, other = ("0" * 16,) * 8, ("0" * 15 + "7",) * 4 + ("0" * 16,) * 4
    # Three bits in half of the frames.
    assert hash_distance(hash_bits(same), hash_bits(other)[None]).tolist() == [1.5]


def test_nobody_is_in_both_splits():
    # 0 and 1 share person 5, 1 and 2 share person 6: all three are one group; 3, 4, … are alone.
    linked = [(person(5),), (person(5), person(6)), (person(6),)]
    shots = [shot(k, linked[k] if k < 3 else (person(k + 10),)) for k in range(10)]
    dealt = verdicts(*shots, most_people=0, evaluation_share=0.3)
    sides = {
        side: {number for verdict in dealt if verdict.split == side for number in verdict.people}
        for side in ("tuning", "evaluation")
    }
    assert not sides["tuning"] & sides["evaluation"] and len(sides["tuning"] | sides["evaluation"]) == 9
    assert len({verdict.split for verdict in dealt[:3]}) == 1
    assert sum(verdict.split == "evaluation" for verdict in dealt) == 3
    # Neither order nor file names decide.
    renamed = [replace(one, video=f"{k}.mkv") for k, one in reversed(list(enumerate(shots)))]
    again = verdicts(*renamed, most_people=0, evaluation_share=0.3)
    assert [verdict.split for verdict in again] == [verdict.split for verdict in reversed(dealt)]


def test_all_shots_of_a_file_are_on_one_side_even_if_nobody_is_recognised_twice():
    shots = [shot(k // 2, (person(k),), shot=k % 2, shots=2, hashes=shot(k).hashes) for k in range(8)]
    # 3 of 8 are wanted for evaluation: one file's 2, and not the half of another.
    dealt = [verdict.split for verdict in verdicts(*shots, evaluation_share=0.375)]
    assert dealt[::2] == dealt[1::2] and dealt.count("evaluation") == 2


def test_faces_too_small_to_be_told_apart_link_nobody():
    # In the background of both: below the recogniser's floor all faces look alike.
    far = person(9, face_px=10.0, coverage=0.1)
    dealt = verdicts(shot(0, (person(0), far)), shot(1, (person(1), far)), evaluation_share=0.5)
    assert [verdict.people for verdict in dealt] == [(0,), (1,)]
    assert {verdict.split for verdict in dealt} == {"tuning", "evaluation"}


def test_what_the_vision_model_says_counts_only_if_it_says_so_twice():
    def answered(**answers):
        return judge([Candidate(shot(), answers=Answers(**answers))], CurationSettings())[0]

    covered = answered(occluded="yes", covered_by="a phone", depicted="person")
    assert covered.reason == "occlusion" and covered.rulings[-3].note == "a phone"
    assert answered(occluded="unsure", depicted="person").kept and answered(occluded="no").kept
    assert answered(occluded="no", depicted="drawing").reason == "depicted"
    assert answered().kept  # nobody was asked


def test_a_licence_is_wanted_only_where_the_user_says_so():
    known = Source("CC BY 4.0", "signed release", "the studio")
    for wanted, source, kept in ((False, Source(), True), (True, Source(), False), (True, known, True)):
        settings = CurationSettings(known_licence=wanted)
        assert judge([Candidate(shot(), source)], settings)[0].kept == kept


def test_an_unreadable_file_is_dropped_with_the_reason_it_gave():
    (verdict,) = verdicts(ShotMeasures("a.mp4", "0" * 64, "packs", problem="a.mp4 is damaged."))
    assert verdict.reason == "readable" and verdict.rulings[0].note == "a.mp4 is damaged."
