"""Preferences: Bradley–Terry by hand, distortions that harm what they should, pairs told apart held out."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_rewards_people import MIDDLE, STAY, SWAPPED, A, B, video

from ipro_core.__main__ import main
from ipro_core.evaluation.ballots import Vote
from ipro_core.evaluation.distortions import DISTORTIONS
from ipro_core.evaluation.preference_pairs import clip_pairs, study_pairs
from ipro_core.evaluation.study import Study, VideoSet
from ipro_core.evaluation.study_videos import Take
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.sight import look
from ipro_core.faces.tracks import follow_people, see_faces, track_of
from ipro_core.rewards.identity_scorer import IdentityScorerReward, shrunk
from ipro_core.rewards.people import PeopleReward, sight_of
from ipro_core.rewards.preference import (
    NUM_FEATURES,
    SHIPPED,
    Preference,
    PreferenceReward,
    accuracy,
    bradley_terry_loss,
    features,
    load_head,
    train_head,
)
from ipro_core.tinyworld import FACE_PACK
from ipro_core.tinyworld.scenes import tiny_scenes
from ipro_core.types import GeneratedVideo


def test_the_loss_is_bradley_and_terrys():
    # Ahead by log 3 the better one wins with 3 / 4: −log 0.75; a tie there: −½ log 0.75 − ½ log 0.25.
    ahead = torch.tensor([math.log(3)])
    assert bradley_terry_loss(ahead, torch.tensor([1.0])).item() == pytest.approx(-math.log(0.75))
    tie = -(math.log(0.75) + math.log(0.25)) / 2
    assert bradley_terry_loss(ahead, torch.tensor([0.5])).item() == pytest.approx(tie)
    # Its slope is σ(d) − share: 1/4 less than nothing for a win, 1/4 more for a tie.
    for share, slope in ((1.0, -0.25), (0.5, 0.25), (0.0, 0.75)):
        at = ahead.clone().requires_grad_()
        bradley_terry_loss(at, torch.tensor([share])).backward()
        assert at.grad is not None and at.grad.item() == pytest.approx(slope)


def test_features_do_not_depend_on_the_order_of_people_or_on_length():
    frames = [*[STAY] * 6, *[SWAPPED] * 3]
    one, other = (features(sight_of(video(*frames, people=people))) for people in ((A, B), (B, A)))
    assert one.shape == (2, NUM_FEATURES)
    torch.testing.assert_close(one, other.flip(0))
    doubled = features(sight_of(video(*[frame for frame in frames for _ in (0, 1)])))
    torch.testing.assert_close(doubled, one, atol=0.1, rtol=0)
    head = train_head([Preference(one, one + 1)], updates=2)
    torch.testing.assert_close(head(one), head(other))


def test_a_swap_shows_at_the_place_and_nowhere_else():
    kept, swapped = (features(sight_of(video(*[STAY] * 3, *[late] * 3))) for late in (STAY, SWAPPED))
    # The means of kept, place, other, steady, double, found: only `place` falls to half.
    assert kept[0, :6].tolist() == pytest.approx([1, 1, 0, 1, 0, 1])
    assert swapped[0, :6].tolist() == pytest.approx([1, 0.5, 0, 1, 0, 1])
    clone = features(sight_of(video(*[[*STAY, (MIDDLE, A + 0.5 * torch.eye(6)[4])]] * 4)))
    assert clone[0, 4].item() == pytest.approx(1 / math.sqrt(1.25))  # a second Ada at tan 0.5


def test_a_head_learns_what_is_preferred_and_keeps_it_in_a_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 2, NUM_FEATURES, generator=generator)
    better = rows.clone()
    better[..., 3] += 1.5  # what counts in this toy
    pairs = [Preference(one, other) for one, other in zip(better, rows, strict=True)]
    head = train_head(pairs[:40])
    assert accuracy(head, pairs[40:]) > 0.9
    mirrored = [Preference(pair.second_NF, pair.first_NF, 0.0) for pair in pairs]
    torch.testing.assert_close(train_head(mirrored[:40]).out_H2, head.out_H2, rtol=1e-3, atol=1e-4)
    assert accuracy(head, [replace(pairs[0], share=0.5)]) != accuracy(head, [replace(pairs[0], share=0.5)])
    head.save(tmp_path / "head.safetensors", "toy")
    again, recognizer = load_head(tmp_path / "head.safetensors")
    assert recognizer == "toy" and torch.equal(again(rows[0]), head(rows[0]))
    with pytest.raises(ValueError, match="no preference to learn"):
        train_head([])


def test_files_that_are_no_head_and_faces_of_another_recogniser_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no preference head"):
        load_head(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no preference head"):
        load_head(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"trained on faces as w600k_tiny.* and these are toy's"):
        PreferenceReward()(video(*[STAY] * 3))


@pytest.fixture(scope="module")
def models():
    return load_face_models(FACE_PACK)


@pytest.fixture(scope="module")
def scenes():
    """Of people and prompts that nothing was trained on, those that show two."""
    return [scene for scene in tiny_scenes("held_out", 20) if scene.visible_TK[:, 1].mean() > 0.6][:2]


@pytest.mark.usefixtures("one_thread")
def test_each_distortion_harms_who_is_who_the_more_the_stronger_and_leaves_the_input(scenes, models):
    frames = scenes[0].frames()
    clean = see_faces(frames, *models)
    people = follow_people(clean.detections, clean.embeddings)[:2]
    tracks = [track_of({t: clean.detections[t][f] for t, f in one.items()}, len(frames)) for one in people]
    known = [torch.stack([clean.embeddings[t][f] for t, f in one.items()]) for one in people]
    for name, distort in DISTORTIONS.items():
        worths = []
        for strength in (0.2, 1.0):
            harmed = distort(frames, tracks, strength, torch.Generator().manual_seed(1))
            assert torch.equal(harmed[0], frames[0]) and not torch.equal(harmed[-1], frames[-1])
            sight = look(see_faces(harmed, *models), known)
            worths.append(sight.kept().mean() - sight.changes()[1])
        assert worths[1] < worths[0], name
        assert worths[1] < look(clean, known).kept().mean() - 0.05, name


@pytest.mark.usefixtures("one_thread")
def test_the_shipped_head_tells_pairs_of_unknown_people_apart(scenes, models):
    head, recognizer = load_head(SHIPPED)
    assert recognizer == models[1].name and SHIPPED.stat().st_size < 8192
    right = {kind: [] for kind in DISTORTIONS}
    for number, scene in enumerate(scenes):
        for pair in clip_pairs(scene.name, scene.frames(), *models, seed=100 + number):
            worths = [head(features(look(seen, pair.people))).item() for seen in (pair.first, pair.second)]
            right[pair.kind].append(worths[0] > worths[1])
    assert all(len(told) == 4 and sum(told) >= 3 for told in right.values()), right


@pytest.mark.usefixtures("one_thread")
def test_votes_of_a_study_are_pairs(tmp_path, scenes, models):
    frames = scenes[0].frames()
    grey = torch.full_like(frames, 0.5)
    study = Study.make(
        tmp_path / "study", "Which?", ["identity"], settings=_no_controls(),
        sets=[VideoSet(scenes[0].name, {"a": Take(frames, 8.0), "b": Take(grey, 8.0)}, frames[0])],
    )  # fmt: skip
    (trial,) = study.plan.trials
    for side, left in (("left", "a"), ("right", "b"), ("none", "a")):
        right = "b" if left == "a" else "a"
        study.ballots.cast(Vote(study.ballots.join(), trial.id, left, right, {"identity": side}))
    pairs = list(study_pairs(tmp_path / "study", *models))
    assert [pair.share for pair in pairs] == [1.0, 0.0, 0.5] and len(pairs[0].people) == 2
    assert sum(map(len, pairs[0].first.detections)) and not sum(map(len, pairs[0].second.detections))
    assert not sum(map(len, pairs[1].first.detections)), "the one that lay left is first"
    kept, lost = (features(look(seen, pairs[0].people)) for seen in (pairs[0].first, pairs[0].second))
    assert load_head(SHIPPED)[0](kept) > load_head(SHIPPED)[0](lost)


def _no_controls():
    from ipro_core.evaluation.study_design import StudySettings

    return StudySettings(controls=0)


@pytest.mark.usefixtures("one_thread")
def test_the_command_trains_a_head_and_says_how_often_it_is_right(tmp_path, capsys):
    out = str(tmp_path / "head.safetensors")
    asked = ["preferences", "--scenes", "9", "--kinds", "swap", "blend", "--held-out", "0.5", "--out", out]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert "right on held-out pairs" in told and "swap" in told and "warp" not in told
    assert load_head(out)[1].startswith("w600k_tiny")


@pytest.mark.usefixtures("one_thread")
def test_the_rewards_agree_on_a_generated_videos_faces(scenes, models):
    frames = scenes[1].frames()
    clean = see_faces(frames, *models)
    _, blended = clip_pairs("one", frames, *models, kinds=["blend"])
    kept = video(*[STAY] * 3).people[:1]
    people = tuple(
        replace(kept[0], pool=replace(kept[0].pool, embeddings_PD=faces, recognizer=models[1].name))
        for faces in blended.people
    )
    worths = [
        [reward(GeneratedVideo(people, seen=seen)).value.item() for seen in (clean, blended.second)]
        for reward in (PeopleReward(), PreferenceReward())
    ]
    assert all(good > bad for good, bad in worths)


def test_the_released_scorer_is_refused_in_one_sentence_where_something_is_missing(tmp_path):
    ask = GeneratedVideo((), frames_TCHW=torch.zeros(9, 3, 8, 8))
    with pytest.raises(ValueError, match=r"holds no \.safetensors: give a folder"):
        IdentityScorerReward()(ask)
    (tmp_path / "model.pth").touch()
    with pytest.raises(ValueError, match=r"holds no \.safetensors"):
        IdentityScorerReward(str(tmp_path))(ask)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no prompt.txt"):
        IdentityScorerReward(str(tmp_path))(ask)
    (tmp_path / "prompt.txt").write_text("<|SA_reward|>")
    with pytest.raises(ValueError, match=r"holds rm_head.weight"):
        IdentityScorerReward(str(tmp_path))(ask)
    with pytest.raises(ValueError, match="looks at the video itself"):
        IdentityScorerReward()(GeneratedVideo(()))
    # 200 · 100 pixels to 5000: both sides by half.
    assert shrunk(torch.zeros(2, 3, 200, 100), 5000).shape == (2, 3, 100, 50)
