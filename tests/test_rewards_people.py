"""Rewards that ask who is who: every fault by construction, with the number it costs."""

import pytest
import torch
from torch.nn.functional import normalize

from ipro_core.rewards.people import PeopleReward
from ipro_core.types import Face, FacePool, GeneratedVideo, PersonFaces, SeenFaces

A, B, STRANGER, OTHER = torch.eye(6)[:4]
LEFT, RIGHT, MIDDLE = 20.0, 200.0, 110.0
STAY, SWAPPED = [(LEFT, A), (RIGHT, B)], [(LEFT, B), (RIGHT, A)]


def pool(face_D):
    ones = torch.ones(1, dtype=torch.bool)
    return FacePool(face_D[None], torch.zeros(1, dtype=torch.int64), ones, torch.zeros(1, 4), "toy")


def video(*frames, people=(A, B)):
    """A video of faces, each as (place, embedding), frame by frame; and whom it should show."""
    seen = SeenFaces(
        [
            [Face(torch.tensor([x, 50.0, x + 60, 110.0]), torch.zeros(5, 2), 0.9) for x, _ in faces]
            for faces in frames
        ],
        [
            torch.stack([normalize(face, dim=0) for _, face in faces]) if faces else torch.zeros(0, 6)
            for faces in frames
        ],
    )
    nobody = torch.zeros(len(frames), 6), torch.zeros(len(frames), dtype=torch.bool)
    return GeneratedVideo(tuple(PersonFaces(*nobody, pool=pool(face_D)) for face_D in people), seen=seen)


def test_everybody_kept_is_worth_one_and_losing_somebody_half():
    kept = PeopleReward()(video(*[STAY] * 6))
    assert kept.value.item() == 1 and kept.per_frame_T.tolist() == [1.0] * 6 and kept.seen_T.all()
    # Bo is missing in three of six frames: of twelve matches nine are there.
    lost = PeopleReward()(video(*[STAY] * 3, *[[(LEFT, A), (RIGHT, STRANGER)]] * 3))
    assert lost.value.item() == pytest.approx(9 / 12)
    assert (
        lost.per_frame_T.tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
        and lost.seen_T.tolist() == [True] * 3 + [False] * 3
    )


def test_a_swap_and_a_clone_cost_what_the_knobs_say():
    swapped = video(*[STAY] * 6, *[SWAPPED] * 4)
    # All are found: 1. Of 20 faces 8 stand where somebody else began.
    assert PeopleReward(swap_cost=0.0)(swapped).value.item() == pytest.approx(1)
    assert PeopleReward(swap_cost=0.5)(swapped).value.item() == pytest.approx(1 - 0.5 * 8 / 20)
    # Ada twice in 4 of 10 frames, Bo never: a mean of 0.2.
    cloned = video(*[STAY] * 6, *[[*STAY, (MIDDLE, A + 0.3 * OTHER)]] * 4)
    assert PeopleReward(clone_cost=0.5)(cloned).value.item() == pytest.approx(1 - 0.5 * 0.2)


def test_identity_f1_is_the_other_measure():
    swapped = video(*[STAY] * 6, *[SWAPPED] * 4)
    # Each on the place that is theirs longest: 12 of 20 right, 20 due, 20 shown.
    assert PeopleReward("identity-f1", swap_cost=0.0)(swapped).value.item() == pytest.approx(12 / 20)


def test_drifting_away_costs_what_the_cosine_falls():
    # At 45° between oneself and nobody the cosine is √½.
    drifted = video(*[STAY] * 2, *[[(LEFT, A + STRANGER), (RIGHT, B)]] * 2)
    assert PeopleReward()(drifted).value.item() == pytest.approx((6 + 2 * 0.5**0.5) / 8)


def test_a_reference_stands_in_for_a_pool_and_nobody_known_is_refused():
    seen = video(*[STAY] * 2)
    people = tuple(PersonFaces(one.embeddings_TD, one.seen_T, reference_D=B) for one in seen.people[:1])
    assert PeopleReward()(GeneratedVideo(people, seen=seen.seen)).value.item() == 1
    unknown = tuple(PersonFaces(one.embeddings_TD, one.seen_T) for one in seen.people)
    with pytest.raises(ValueError, match="give each person a pool"):
        PeopleReward()(GeneratedVideo(unknown, seen=seen.seen))
    with pytest.raises(ValueError, match="wants all faces"):
        PeopleReward()(GeneratedVideo(seen.people))
    with pytest.raises(ValueError, match="nobody to score"):
        PeopleReward()(GeneratedVideo((), seen=seen.seen))


def test_a_video_without_any_face_is_worth_nothing():
    empty = PeopleReward()(video([], [], []))
    assert empty.value.item() == 0 and not empty.seen_T.any()
