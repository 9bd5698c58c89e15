"""Several people: every fault by construction, with its number derived; and the two-person clips."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from ipro_core.clips.video import read_frames
from ipro_core.evaluation.corruptions import swapped_faces
from ipro_core.evaluation.people import Swap, judge_people
from ipro_core.faces.places import follow_places
from ipro_core.faces.tracks import SeenFaces, see_faces, track_of
from ipro_core.types import Face

SHARED = Path(__file__).resolve().parents[2] / "shared"
A, B, STRANGER, OTHER = torch.eye(6)[:4]
POOLS = {"Ada": A[None], "Bo": B[None]}
LEFT, RIGHT, MIDDLE = 20.0, 200.0, 110.0


def video(*frames):
    """A video of faces, each as (place, embedding); frame by frame."""
    detections = [
        [Face(torch.tensor([x, 50.0, x + 60, 110.0]), torch.zeros(5, 2), 0.9) for x, _ in faces]
        for faces in frames
    ]
    embeddings = [
        torch.stack([normalize(face, dim=0) for _, face in faces]) if faces else torch.zeros(0, 6)
        for faces in frames
    ]
    return SeenFaces(detections, embeddings)


def judge(*frames, given=0, **more):
    return judge_people(video(*frames), more.pop("pools", POOLS), "toy", given=given, **more)


def test_people_who_stay_are_kept_whole_whoever_is_listed_first():
    result = judge(*[[(LEFT, A), (RIGHT, B)], [(RIGHT, B), (LEFT, A)]] * 10)
    for person in result.people:
        assert (person.facesim.all, person.anchored, person.facesim.coverage) == (1, 1, 1)
        assert (person.margin, person.cloned, person.blended, person.missing) == (1, 0, 0, False)
    assert (result.swaps, result.swapped, result.identity_f1, result.extra) == ((), 0, 1, 0)


def test_a_swap_is_told_with_its_frame_and_costs_both_half():
    before, after = [(LEFT, A), (RIGHT, B)], [(LEFT, B), (RIGHT, A)]
    result = judge(*[before] * 12, *[after] * 8)
    assert result.swaps == (Swap(12, "Ada", "Bo"), Swap(12, "Bo", "Ada"))
    assert result.swapped == pytest.approx(8 / 20)
    # Each stays on the first place: 12 of 20 frames right, of 20 due and 20 shown.
    assert [person.facesim.all for person in result.people] == pytest.approx([12 / 20, 12 / 20])
    assert result.identity_f1 == pytest.approx(12 / 20)
    later = judge(*[before] * 8, *[after] * 12)
    # The better place is now the other one; the anchored figure tells.
    assert [person.facesim.all for person in later.people] == pytest.approx([12 / 20, 12 / 20])
    assert [person.anchored for person in later.people] == pytest.approx([8 / 20, 8 / 20])


def test_one_mistaken_frame_is_no_swap():
    stay, odd = [(LEFT, A), (RIGHT, B)], [(LEFT, B), (RIGHT, A)]
    assert judge(*[stay] * 6, odd, *[stay] * 6).swaps == ()


def test_people_who_walk_past_each_other_are_not_swapped():
    frames = [[(LEFT + 10 * t, A), (RIGHT - 10 * t, B)] for t in range(19)]
    result = judge(*frames)
    assert result.swaps == () and result.identity_f1 == 1


def test_who_is_gone_is_missing_and_a_stranger_takes_no_place():
    result = judge(*[[(LEFT, A), (RIGHT, STRANGER)]] * 10)
    ada, bo = result.people
    assert ada.facesim.all == 1 and bo.missing
    assert (bo.facesim.all, bo.facesim.coverage, result.worst.name, result.extra) == (0, 0, "Bo", 1)
    # 10 right, of 20 due and 10 shown: a stranger is no mistaken identity.
    assert result.identity_f1 == pytest.approx(2 * 10 / 30)
    assert judge([], [], []).worst.facesim.all == 0


def test_a_clone_is_counted_in_its_frames():
    single, double = [(LEFT, A), (RIGHT, B)], [(LEFT, A), (RIGHT, B), (MIDDLE, A + 0.3 * OTHER)]
    ada, bo = judge(*[single] * 6, *[double] * 4).people
    assert (ada.cloned, bo.cloned) == (pytest.approx(0.4), 0)
    # The six frames' 12 and the four frames' 12 faces are shown; 20 right of 20 due.
    assert judge(*[single] * 6, *[double] * 4).identity_f1 == pytest.approx(2 * 20 / (20 + 24))


def test_a_face_between_two_people_is_a_blend_and_a_swap_is_none():
    blend = A + B  # cosine 0.71 to both
    result = judge(
        *[[(LEFT, A + 0.01 * OTHER), (RIGHT, B)]] * 5, *[[(LEFT, blend + 0.01 * A), (RIGHT, B)]] * 5
    )
    ada, bo = result.people
    assert (ada.blended, bo.blended) == (pytest.approx(0.5), 0)
    assert ada.margin == pytest.approx((5 * 1 + 5 * 0.007) / 10, abs=0.01)
    swapped = judge(*[[(LEFT, A), (RIGHT, B)]] * 5, *[[(LEFT, B), (RIGHT, A)]] * 5)
    assert not any(person.blended for person in swapped.people)


def test_a_face_that_is_lost_for_a_while_goes_on_at_its_place():
    both, alone = [(LEFT, A), (RIGHT, B)], [(RIGHT, B)]
    ada, _ = judge(*[both] * 4, *[alone] * 4, *[both] * 4).people
    assert ada.facesim.coverage == pytest.approx(8 / 12)
    assert len(follow_places(video(*[both] * 4, *[alone] * 4, *[both] * 4))) == 2


def test_the_input_frames_do_not_count():
    result = judge([(LEFT, A), (RIGHT, B)], *[[(LEFT, A)]] * 4, given=1)
    assert result.people[1].facesim.all == 0
    assert result.identity_f1 == pytest.approx(2 * 4 / (8 + 4))


def test_a_lone_person_and_one_frame_are_results():
    (ada,) = judge([(LEFT, A)], pools={"Ada": A[None]}).people
    assert ada.facesim.all == 1 and ada.margin != ada.margin
    assert judge([(LEFT, A)], given=1).identity_f1 != judge([(LEFT, A)], given=1).identity_f1, "NaN: no frame"


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ({}, "nobody to look for"),
        ({"Ada": A[None], "Bo": torch.zeros(0, 6)}, "pool of Bo holds no face"),
        (
            {"Ada": A[None], "Also Ada": normalize(A + 0.5 * B, dim=0)[None]},
            "Ada and Also Ada show one person",
        ),
    ],
)
def test_pools_that_tell_nobody_apart_are_refused(pools, words):
    with pytest.raises(ValueError, match=words):
        judge([(LEFT, A)], pools=pools)


def test_the_figures_are_json_without_nan():
    import json

    figures = judge([(LEFT, A)], pools={"Ada": A[None]}).figures()
    told = json.loads(json.dumps(figures, allow_nan=False))
    assert told["people"]["Ada"]["margin"] is None
    assert told["people"]["Ada"]["recognizer"] == "toy"
    assert told["swaps"] == []


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: real clips and networks")


@pytest.fixture(scope="module")
def networks():
    from ipro_core.faces.packs import load_face_models

    return load_face_models(SHARED / "weights/insightface/models/antelopev2")


@pytest.fixture(scope="module")
def two_people(networks):
    """Two clips that show the same two people, sides swapped; and their pools from other pictures of them."""
    from ipro_core.faces.pool import build_pool

    def clip(name):
        return read_frames(SHARED / "media/derived" / f"{name}.mp4", 0, 24)[::3]

    one, other = clip("two_person_s18_left_s32_right"), clip("two_person_s32_left_s18_right")
    half = other.shape[3] // 2
    pools = {
        "s18": build_pool(clip("i2v81_walk_lp_s18"), *networks).embeddings_PD,
        "s32": build_pool(other[:, :, :, :half], *networks).embeddings_PD,
    }
    return one, see_faces(one, *networks), see_faces(other, *networks), pools, networks[1].name


@needs_shared
@pytest.mark.shared
def test_on_real_clips_both_people_are_kept_on_whatever_side(two_people):
    _, one, other, pools, name = two_people
    for seen in (one, other):
        result = judge_people(seen, pools, name, given=0)
        assert result.identity_f1 == 1 and not result.swaps and result.extra == 0
        for person in result.people:
            assert person.facesim.coverage == 1
            assert person.facesim.all > 0.8 and person.margin > 0.6  # strangers' clips stay below 0.23


@needs_shared
@pytest.mark.shared
def test_on_real_clips_a_swap_and_a_missing_person_are_told(two_people):
    _, one, other, pools, name = two_people
    # From frame 5 on each stands where the other stood.
    exchanged = SeenFaces(one.detections, one.embeddings[:5] + [two.flip(0) for two in one.embeddings[5:]])
    swapped = judge_people(exchanged, pools, name, given=0)
    assert swapped.swaps == (Swap(5, "s18", "s32"), Swap(5, "s32", "s18"))
    assert swapped.identity_f1 == pytest.approx(5 / 8)
    # A film that cuts to the same people on other sides swaps nobody.
    cut = SeenFaces(one.detections[:5] + other.detections[5:], one.embeddings[:5] + other.embeddings[5:])
    assert judge_people(cut, pools, name, given=0).swaps == ()
    left = SeenFaces(
        [[face for face in faces if face.box_4[0] < 300] for faces in one.detections],
        [
            faces_FD[[face.box_4[0].item() < 300 for face in faces]]
            for faces, faces_FD in zip(one.detections, one.embeddings, strict=True)
        ],
    )
    alone = judge_people(left, pools, name, given=0)
    assert [person.missing for person in alone.people] == [False, True]
    assert alone.worst.name == "s32" and alone.worst.facesim.all == 0


@needs_shared
@pytest.mark.shared
@pytest.mark.parametrize("start", [3, 5])
def test_on_real_clips_a_swap_that_was_made_of_pixels_is_told_at_its_frame(two_people, networks, start):
    frames, seen, _, pools, name = two_people
    people = judge_people(seen, pools, name, given=0).people
    tracks = [
        track_of({t: seen.detections[t][face] for t, face in person.faces.items()}, len(frames))
        for person in people
    ]
    swapped = swapped_faces(frames, *tracks, start=start)
    assert torch.equal(swapped[:start], frames[:start])
    result = judge_people(see_faces(swapped, *networks), pools, name, given=0)
    assert result.swaps == (Swap(start, "s18", "s32"), Swap(start, "s32", "s18"))
    # Each keeps to the place that shows them longer.
    assert result.identity_f1 == pytest.approx(max(start, 8 - start) / 8)
    assert all(person.facesim.coverage == 1 and not person.missing for person in result.people)
