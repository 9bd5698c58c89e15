"""Curation of real clips with a real pack: each verdict is right for what the clip is known to show."""

from pathlib import Path

import pytest
import torch

from ipro_core.clips.curation import Candidate, CurationSettings, judge
from ipro_core.clips.measures import MeasureSettings, measure_video
from ipro_core.faces.packs import load_face_models

SHARED = Path(__file__).resolve().parents[2] / "shared"
PACK, MEDIA = SHARED / "weights" / "insightface" / "models" / "antelopev2", SHARED / "media"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(not PACK.is_dir(), reason="needs ../shared: real clips and networks"),
]
CLIPS = (
    *("clips/smallface_consisid", "clips/lowcoverage_vbench_walking", "clips/cartoon_wan_replace"),
    *("clips/decoded_taew2_1", "clips/multi_hamilton", "clips/smallface_roll_video1"),
    *("derived/i2v81_walk_lp_s18", "derived/i2v81_small_s18", "derived/two_person_s18_left_s32_right"),
)


@pytest.fixture(scope="module")
def shots():
    """By name; a look a second where that is enough, because a test is to be short."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models, found = load_face_models(PACK), {}
    for name in CLIPS:
        how = MeasureSettings(looks=4 if "coverage" in name else 1)
        measured = measure_video(MEDIA / f"{name}.mp4", *models, how, made_by="test")
        found |= {shot.name: shot for shot, _ in measured}
    torch.set_num_threads(threads)
    return found


def reasons(shots, **limits):
    verdicts = judge([Candidate(shot) for shot in shots.values()], CurationSettings(**limits))
    return {verdict.candidate.shot.name: verdict.reason for verdict in verdicts}


def test_by_the_papers_limits_only_a_small_face_may_stay(shots):
    told = reasons(shots)
    assert told["lowcoverage_vbench_walking"] == ""  # half of its frames show a face: 0.4 are wanted
    assert told["decoded_taew2_1"] == "coverage"
    assert told["i2v81_walk_lp_s18"] == told["cartoon_wan_replace"] == "largest face"
    # 91 px of 720 are small to the eye, but 121 where the shorter side has 960: a limit of 150 keeps it.
    assert told["smallface_consisid"] == "largest face"
    assert reasons(shots, largest_face=150)["smallface_consisid"] == ""
    assert reasons(shots, largest_face=150)["i2v81_walk_lp_s18"] == "largest face"


def test_with_faces_of_any_size_each_clip_is_kept_or_dropped_for_what_it_is_named_after(shots):
    told = reasons(shots, largest_face=0)
    kept = {"lowcoverage_vbench_walking", "smallface_consisid", "smallface_roll_video1", "i2v81_small_s18"}
    assert {name for name, reason in told.items() if not reason} >= kept | {"i2v81_walk_lp_s18"}
    assert told["two_person_s18_left_s32_right"] == "people" and told["decoded_taew2_1"] == "coverage"
    assert told["multi_hamilton 1"] == "length"  # 20 frames before the first cut
    assert {told[f"multi_hamilton {n}"] for n in (2, 4)} == {"people"}
    assert reasons(shots, largest_face=0, least_coverage=0.8)["lowcoverage_vbench_walking"] == "coverage"


def test_sizes_are_those_the_clips_were_made_with(shots):
    (person,) = shots["i2v81_small_s18"].people
    assert person.face_px == pytest.approx(68, abs=3)
    assert [shot.first_frame for name, shot in shots.items() if "hamilton" in name] == [0, 20, 82, 211]


def test_one_person_at_two_sizes_and_beside_another_is_one_person_on_one_side(shots):
    some = ("i2v81_walk_lp_s18", "i2v81_small_s18", "two_person_s18_left_s32_right", "smallface_consisid")
    settings = CurationSettings(largest_face=0, most_people=2, evaluation_share=0.25, least_distance=0)
    verdicts = judge([Candidate(shots[name]) for name in some], settings)
    s18, small, both, other = (verdict.people for verdict in verdicts)
    assert s18 == small and set(s18) < set(both) and len(both) == 2 and not set(other) & set(both)
    assert [verdict.split for verdict in verdicts] == ["tuning"] * 3 + ["evaluation"]
