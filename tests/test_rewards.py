"""Eq. 5 and 6, the rewards they are compared with, and what a lost face may never do."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipro_core.rewards.aligned import AlignedReward
from ipro_core.rewards.base import reward_catalogue
from ipro_core.rewards.face_pool import FacePoolReward, pool_similarity
from ipro_core.rewards.identity_scorer import IdentityScorerReward
from ipro_core.rewards.people import PeopleReward
from ipro_core.rewards.preference import PreferenceReward
from ipro_core.rewards.reference import ReferenceReward
from ipro_core.rewards.weighted_sum import Part, WeightedSum, reward_config, reward_of
from ipro_core.types import FacePool, GeneratedVideo, PersonFaces


def angles(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane, so that every cosine is that of a difference of angles."""
    radians = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


def pool_of(embeddings_PD: torch.Tensor, frames: tuple[int, ...], length: int) -> FacePool:
    frames_P = torch.tensor(frames)
    seen_T = torch.zeros(length, dtype=torch.bool).index_fill(0, frames_P, True)
    return FacePool(embeddings_PD, frames_P, seen_T, torch.zeros(len(frames), 4), "toy")


def video_of(embeddings_TD: torch.Tensor, seen: tuple[bool, ...], **person) -> GeneratedVideo:
    return GeneratedVideo(people=(PersonFaces(embeddings_TD, torch.tensor(seen), **person),))


def test_pool_similarity_is_equations_5_and_6():
    # Frames at 0° and 60°, pool at 0° and 90°:
    #   s_1 = (cos 0° + cos 90°) / 2 = 1/2,  s_2 = (cos 60° + cos 30°) / 2 = (1/2 + √3/2) / 2 = (1 + √3) / 4
    #   R   = (s_1 + s_2) / 2
    value, s_T = pool_similarity(angles(0, 60), angles(0, 90))
    s_2 = (1 + math.sqrt(3)) / 4
    torch.testing.assert_close(s_T, torch.tensor([0.5, s_2], dtype=torch.float64))
    assert value.item() == pytest.approx((0.5 + s_2) / 2, abs=1e-15)


def test_similarity_compares_angles_not_lengths():
    value, _ = pool_similarity(3 * angles(0, 60), 5 * angles(0, 90))
    assert value.item() == pytest.approx(pool_similarity(angles(0, 60), angles(0, 90))[0].item(), abs=1e-15)


def test_gradient_turns_a_face_towards_the_pools_mean_direction():
    # d/d angle of (cos(a) + cos(90° − a)) / 2 at a = 0 is (−sin 0° + sin 90°) / 2 = 1/2; moving along +y is
    # moving along the angle, and moving along the face's own direction changes no angle.
    face_TD = angles(0).requires_grad_()
    pool_similarity(face_TD, angles(0, 90))[0].backward()
    assert face_TD.grad is not None
    torch.testing.assert_close(face_TD.grad, torch.tensor([[0.0, 0.5]], dtype=torch.float64))


def test_a_frame_without_a_face_counts_as_a_stranger():
    # Frames at 0° and 60°, pool at 0°: 1 and 1/2. The second is lost: min(1/2, 0) = 0, mean (1 + 0) / 2.
    value, counted_T = pool_similarity(angles(0, 60), angles(0), torch.tensor([True, False]))
    assert value.item() == pytest.approx(0.5)
    assert counted_T.tolist() == [pytest.approx(1.0), 0.0]


def test_skipping_lost_frames_is_the_authors_rule_and_pays():
    seen_T = torch.tensor([True, False])
    assert pool_similarity(angles(0, 60), angles(0), seen_T, missing="skip")[0].item() == pytest.approx(1.0)
    assert pool_similarity(angles(0, 60), angles(0))[0].item() == pytest.approx(0.75)


@given(st.data())
def test_losing_sight_of_a_face_never_raises_the_score(data):
    degrees = data.draw(st.lists(st.floats(-180, 180), min_size=1, max_size=8))
    seen = data.draw(st.lists(st.booleans(), min_size=len(degrees), max_size=len(degrees)))
    pool_PD = angles(*data.draw(st.lists(st.floats(-180, 180), min_size=1, max_size=5)))
    everywhere, _ = pool_similarity(angles(*degrees), pool_PD)
    with_gaps, _ = pool_similarity(angles(*degrees), pool_PD, torch.tensor(seen))
    assert with_gaps <= everywhere + 1e-12


def test_a_video_without_any_face_scores_zero_and_says_so():
    for missing in ("count", "skip"):
        score = FacePoolReward(missing)(
            video_of(torch.zeros(3, 2), (False,) * 3, pool=pool_of(angles(0).float(), (0,), 1))
        )
        assert score.value.item() == 0.0
        assert not score.seen_T.any()


def test_an_empty_pool_is_refused_in_plain_words():
    with pytest.raises(ValueError, match="no face to compare with"):
        pool_similarity(angles(0), torch.zeros(0, 2, dtype=torch.float64))


def test_reference_reward_is_a_pool_of_one():
    score = ReferenceReward()(video_of(angles(0, 60), (True, True), reference_D=angles(60)[0]))
    torch.testing.assert_close(score.per_frame_T, torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_aligned_reward_compares_equal_times_only():
    # Real faces in frames 0 (0°) and 2 (90°); generated frames at 60°, 10°, 90°: cos 60° = 1/2 and
    # cos 0° = 1; frame 1 has no real face and is left out.
    pool = pool_of(angles(0, 90), (0, 2), 3)
    score = AlignedReward()(video_of(angles(60, 10, 90), (True, True, True), pool=pool))
    assert score.value.item() == pytest.approx(0.75)
    assert score.per_frame_T[[0, 2]].tolist() == [pytest.approx(0.5), pytest.approx(1.0)]
    assert score.per_frame_T[1].isnan()


def test_aligned_reward_refuses_a_shorter_clip():
    with pytest.raises(ValueError, match="at least as long"):
        AlignedReward()(video_of(angles(0, 0), (True, True), pool=pool_of(angles(0), (0,), 1)))


def test_several_people_are_averaged_and_all_must_be_seen():
    people = tuple(
        PersonFaces(angles(0, degrees), torch.tensor(seen), pool=pool_of(angles(0), (0,), 1))
        for degrees, seen in ((0, [True, True]), (60, [True, False]))
    )
    score = FacePoolReward()(GeneratedVideo(people=people))
    assert score.value.item() == pytest.approx((1 + 0.5) / 2)  # the second person: (1 + min(1/2, 0)) / 2
    assert score.seen_T.tolist() == [True, False]


def test_every_reward_of_the_folder_is_in_the_catalogue():
    assert reward_catalogue() == {
        "aligned": AlignedReward,
        "face-pool": FacePoolReward,
        "identity-scorer": IdentityScorerReward,
        "people": PeopleReward,
        "preference": PreferenceReward,
        "reference": ReferenceReward,
    }


def test_a_sum_of_rewards_is_each_times_its_weight_and_so_is_its_gradient():
    # One frame at a, reference at 0°, pool at 90°: 2 cos a − 0.5 cos(90° − a). At a = 60° that is
    # 2 · 1/2 − 0.5 · √3/2, and its slope along the angle −2 sin a − 0.5 cos a = −√3 − 1/4.
    both = WeightedSum((Part(2.0, ReferenceReward()), Part(-0.5, FacePoolReward())))
    face_TD = angles(60).requires_grad_()
    pool = pool_of(angles(90), (0,), 1)
    score = both(video_of(face_TD, (True,), pool=pool, reference_D=angles(0)[0]))
    assert score.value.item() == pytest.approx(1 - 0.25 * math.sqrt(3), abs=1e-15)
    assert score.per_frame_T.tolist() == pytest.approx([score.value.item()]) and score.seen_T.tolist() == [
        True
    ]
    score.value.backward()
    assert face_TD.grad is not None
    along_D = angles(150)[0]
    assert (face_TD.grad[0] @ along_D).item() == pytest.approx(-math.sqrt(3) - 0.25, abs=1e-12)


def test_a_frame_that_one_reward_says_nothing_of_is_told_by_the_other():
    # The real clip shows the face in its first frame alone: the second is the pool's to tell.
    both = WeightedSum((Part(1.0, AlignedReward()), Part(1.0, FacePoolReward())))
    pool = pool_of(angles(0), (0,), 2)
    score = both(video_of(angles(0, 60), (True, True), pool=pool))
    assert score.per_frame_T.tolist() == pytest.approx([2.0, 0.5])


def test_a_sum_of_rewards_is_the_same_after_it_was_written_down():
    inner = WeightedSum((Part(0.25, AlignedReward("skip")),))
    both = WeightedSum((Part(2.0, ReferenceReward()), Part(1.0, inner)))
    assert reward_of(json.loads(json.dumps(reward_config(both)))) == both
    assert reward_config(FacePoolReward("skip")) == {"name": "face-pool", "missing": "skip"}


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one whose weight is not 0"):
        WeightedSum((Part(0.0, FacePoolReward()),))
