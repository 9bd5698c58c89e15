"""FaceSim, head motion and the comparison: by hand, and on real clips where they are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from ipro_core.clips.video import read_frames
from ipro_core.evaluation.compare import SceneVideos, compare_videos, detail
from ipro_core.evaluation.facesim import FaceSim, Scale, common, face_sim, stranger_floor
from ipro_core.evaluation.motion import head_motion, head_turn, motion_ratio
from ipro_core.evaluation.statistics import paired_gain
from ipro_core.evaluation.verdict import Comparison, PairResult, VideoResult
from ipro_core.faces.alignment import template
from ipro_core.faces.packs import recognizer_name
from ipro_core.job import check_judge
from ipro_core.tinyworld import FACE_PACK, open_tiny_world

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: real clips and networks")
NAN = float("nan")


def similarity_of(*cosines, given=1):
    cosine_T = torch.tensor(cosines)
    return FaceSim(cosine_T, ~cosine_T.isnan(), given, "toy")


def test_a_missing_face_counts_zero_in_all_and_not_at_all_in_found():
    video = similarity_of(1.0, 0.8, NAN, 0.4, NAN, 0.6, -0.2)
    # Without frame 0: (0.8 + 0 + 0.4 + 0 + 0.6 − 0.2) / 6 and (0.8 + 0.4 + 0.6 − 0.2) / 4.
    assert video.all == pytest.approx(1.6 / 6)
    assert video.found == pytest.approx(1.6 / 4)
    assert video.coverage == pytest.approx(4 / 6)
    assert video.first == 1.0
    # A quarter of six frames is one: the last less the first.
    assert video.drift_tail == pytest.approx(-0.2 - 0.8)
    assert video.worst_frame == 2, "no face is worse than a stranger's"
    assert replace(video, given=0).all == pytest.approx(2.6 / 7)


def test_skipping_missing_faces_reverses_the_truth_and_all_does_not():
    # B is worse by 0.03 in every frame and loses the face in the hard ones.
    a = similarity_of(0.8, 0.8, 0.8, 0.3, 0.3, given=0)
    b = similarity_of(0.77, 0.77, 0.77, NAN, NAN, given=0)
    assert b.found > a.found
    assert b.all < a.all
    assert common(a, b) == (pytest.approx(0.8), pytest.approx(0.77))


def test_a_video_without_any_face_is_a_result():
    video = similarity_of(NAN, NAN, NAN)
    assert (video.all, video.coverage) == (0, 0)
    assert torch.tensor(video.found).isnan()


def test_drift_is_the_last_quarter_less_the_first():
    falling = similarity_of(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, NAN, 0.2)
    assert falling.drift_tail == pytest.approx((0 + 0.2) / 2 - (0.9 + 0.8) / 2)
    assert similarity_of(1.0, 0.5, 0.5, 0.5, 0.5).drift_tail == 0


def test_a_scale_runs_from_strangers_to_the_real_clip():
    scale = Scale(floor=0.1, ceiling=0.8)
    assert scale.calibrated(0.1) == 0
    assert scale.calibrated(0.8) == pytest.approx(1)
    assert scale.calibrated(0.45) == pytest.approx(0.5)
    assert scale.calibrated(0.0) < 0, "raw cosines are not clamped, nor is what is made of them"
    for unknown in (Scale(NAN, 0.8), Scale(0.1, NAN), Scale(0.5, 0.4)):
        assert torch.tensor(unknown.calibrated(0.5)).isnan()


def test_strangers_are_all_pairs_of_different_people():
    a, b, c = torch.eye(3)
    # Cosines 0, 0 and 0.28, of (0.28, 0.96) to a.
    assert stranger_floor([a, c, 0.28 * a + 0.96 * b]) == pytest.approx(0.28 / 3)
    assert stranger_floor([a, -a]) == pytest.approx(-1)
    # One person in two scenes is no impostor: of 1, 0 and 0 the 1 is left out.
    assert stranger_floor([a, a, b]) == 0
    assert torch.tensor([stranger_floor([a]), stranger_floor([a, a])]).isnan().all()


def test_every_result_says_by_whom_and_how_it_was_measured():
    figures = similarity_of(1.0, 0.5, NAN).figures(Scale(0.0, 0.5))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["recognizer"] == "toy" and "every frame" in figures["protocol"].lower()
    assert (figures["all"], figures["calibrated"], figures["floor"], figures["ceiling"]) == (
        0.25,
        0.5,
        0,
        0.5,
    )
    assert figures["per_frame"] == [1.0, 0.5, None] and figures["given"] == 1
    assert similarity_of(1.0).figures()["all"] is None, "a single given frame is no result"


def test_sharpness_is_of_the_detail_not_of_the_contrast():
    # A checkerboard of ±a: the Laplacian is −8 times the value everywhere inside, so 8 whatever a is.
    board = (torch.arange(40)[:, None] + torch.arange(40)) % 2 * 2.0 - 1
    for contrast in (0.1, 0.4):
        frames = (0.5 + contrast * board).expand(2, 3, 40, 40)
        assert detail(frames) == pytest.approx(8, rel=1e-3)
    smooth = torch.linspace(0, 1, 40).expand(1, 3, 40, 40)
    assert detail(smooth) == pytest.approx(0, abs=1e-4)
    assert detail(torch.zeros(1, 3, 8, 8)) == 0


def head(turn_T, shift_T=0.0, size=60.0):
    """Points of a head that turns (nose against eyes, in template pixels) and shifts (pixels)."""
    turn_T, shift_T = torch.as_tensor(turn_T), torch.as_tensor(shift_T)
    points = template(112).repeat(len(turn_T), 1, 1)
    points[:, 2, 0] += turn_T
    points *= size / 112
    points[:, :, 0] += shift_T[..., None] if shift_T.ndim else shift_T
    return points, torch.ones(len(points), dtype=torch.bool)


def test_motion_of_a_swinging_head_is_known():
    # Shift a·sin over whole periods: rms a/√2. The template's points lie 23.25 px from their centre (rms).
    centred = template(112) - template(112).mean(dim=0)
    radius = centred.square().sum(dim=1).mean().sqrt()
    assert radius.item() == pytest.approx(23.25, abs=0.01)
    shift = 30 * torch.sin(torch.arange(400) * 2 * torch.pi / 80).double()
    motion = head_motion(*head(torch.zeros(400), shift, size=112))
    assert motion == pytest.approx(30 / 2**0.5 / 23.25, rel=0.01)
    # In pixels of a frame half as large it is the same motion.
    assert head_motion(*head(torch.zeros(400), shift / 2, size=56)) == pytest.approx(motion)


def test_flicker_and_single_jumps_are_no_motion():
    generator = torch.Generator().manual_seed(0)
    points, seen = head(torch.zeros(60), 20 * torch.sin(torch.arange(60) / 10).double())
    moved = head_motion(points, seen)
    shaken = points + torch.randn(points.shape, generator=generator, dtype=torch.float64)
    assert head_motion(shaken, seen) == pytest.approx(moved, rel=0.02)
    jumping = points.clone()
    jumping[[10, 25, 40]] += 200
    assert head_motion(jumping, seen) == pytest.approx(moved, rel=0.02)
    path = (shaken[1:] - shaken[:-1]).norm(dim=-1).mean() / (points[1:] - points[:-1]).norm(dim=-1).mean()
    assert path > 1.3, "the length of the path would count the flicker"


def test_a_frozen_head_moves_nothing_and_a_travelling_frozen_face_turns_nothing():
    still = head(torch.zeros(20))
    assert head_motion(*still) == pytest.approx(0, abs=1e-9)
    travelling = head(torch.zeros(20), torch.linspace(0, 50, 20).double())
    assert head_motion(*travelling) > 0.5
    assert head_turn(*travelling) == pytest.approx(0, abs=1e-9)
    turning = head(torch.linspace(-8, 8, 20))
    assert head_turn(*turning) > 0.1
    tilted = torch.view_as_real(torch.view_as_complex(turning[0]) * torch.exp(torch.tensor(0.6j)))
    assert head_turn(tilted, turning[1]) == pytest.approx(head_turn(*turning)), "tilting is no turn"


def test_frames_without_the_face_do_not_count_as_stillness():
    points, seen = head(torch.zeros(30), torch.linspace(0, 50, 30).double())
    half, carried = seen.clone(), points.clone()
    half[1::2] = False
    carried[1::2] = 7.0
    assert head_motion(carried, half) == head_motion(points[::2], seen[::2])
    assert torch.tensor(head_motion(points[:2], seen[:2])).isnan()


def test_the_motion_ratio_is_of_sums_over_the_pairs_that_can_be_measured():
    assert motion_ratio([0.2, 0.4, NAN, 9], [0.3, 0.5, 7, NAN]) == pytest.approx(0.6 / 0.8)
    assert torch.tensor(motion_ratio([NAN], [1])).isnan()
    assert torch.tensor(motion_ratio([1.0], [0.0])).isnan()


def comparison(base=0.5, tuned=0.6, real=0.8, judge=0.6, motion=0.3, tuned_seen=1.0):
    """Four scenes with the same values; `judge` is the judge's view of the tuned videos."""

    def video(value, judged, moved, seen=1.0):
        cosines = torch.full((11,), value)
        cosines[1 : 1 + round(10 * (1 - seen))] = NAN
        facesim = FaceSim(cosines, ~cosines.isnan(), 1, "toy")
        judged = FaceSim(torch.full((11,), judged), torch.ones(11, dtype=torch.bool), 1, "judge")
        return VideoResult(facesim, judged, moved, 0.1, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))

    pairs = tuple(
        PairResult(
            f"scene {k}",
            "smiles",
            k,
            video(base, 0.5, 0.3),
            video(tuned, judge, motion, tuned_seen),
            None if real is None else video(real, 0.7, 0.3),
            normalize(torch.eye(4)[k] + 0.5, dim=0),
            (0, 10),
        )
        for k in range(4)
    )
    names = [pair.scene for pair in pairs]
    gains = [
        paired_gain([measure(p.base) for p in pairs], [measure(p.tuned) for p in pairs], names)
        for measure in (lambda video: video.facesim.all, lambda video: video.judge.all)
    ]
    return Comparison(pairs, *gains, stranger_floor=0.1, judge_floor=0.1)


def test_an_honest_gain_raises_no_flag():
    result = comparison()
    assert result.hack_flags == ()
    figures = result.figures()
    assert figures["facesim_base"] == pytest.approx(0.5)
    assert figures["facesim_tuned"] == pytest.approx(0.6)
    assert figures["gain"] == pytest.approx(0.1)
    assert figures["gain"] == pytest.approx(figures["facesim_tuned"] - figures["facesim_base"])
    assert figures["judge_gain_ci95"] == pytest.approx([0.1, 0.1])
    assert figures["real_ceiling"] == pytest.approx(0.8)
    assert figures["motion_ratio"] == pytest.approx(1)
    assert figures["kl"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tuned": 0.85, "judge": 0.85}, "above that of the real clips"),
        ({"motion": 0.2}, "Head motion fell to 0.67"),
        ({"motion": NAN}, "could not be measured"),
        ({"judge": 0.54}, "pleases one network"),
        ({"tuned": 0.7, "judge": 0.7, "tuned_seen": 0.9}, "found in 90% of the tuned frames"),
    ],
)
def test_each_hack_raises_its_own_flag(change, words):
    (flag,) = comparison(**change).hack_flags
    assert words in flag


def test_transfer_divides_gains_on_each_recognisers_own_scale():
    # Reward: 0.1 of 0.8 − 0.1; judge: 0.06 of 0.7 − 0.1.
    transfer = comparison(judge=0.56).transfer
    assert transfer.value == pytest.approx((0.06 / 0.6) / (0.1 / 0.7))
    assert transfer.calibrated and transfer.ci95 == pytest.approx((transfer.value, transfer.value))
    raw = comparison(judge=0.56, real=None).transfer
    assert raw.value == pytest.approx(0.6) and not raw.calibrated
    assert torch.tensor(comparison(tuned=0.5).transfer.value).isnan(), "of no gain there is no transfer"
    assert replace(comparison(), judge_gain=None).transfer is None


def test_guards_are_held_by_their_margins():
    guards = {guard.name: guard for guard in comparison().guards}
    assert guards["head motion"].verdict == guards["coverage"].verdict == "kept"
    assert {one.name: one.verdict for one in comparison(motion=0.2, tuned_seen=0.9).guards} == {
        "head motion": "lost",
        "coverage": "lost",
    }
    told = comparison(motion=0.2).figures()["guards"]["head motion"]
    assert told["change"] == pytest.approx(2 / 3)
    assert (told["margin"], told["unit"], told["verdict"]) == (0.8, "ratio", "lost")


def test_frames_of_both_and_the_number_of_scenes_stand_in_the_figures():
    figures = comparison(tuned_seen=0.9).figures()
    assert figures["common_base"] == pytest.approx(0.5) and figures["common_tuned"] == pytest.approx(0.6)
    assert figures["facesim_tuned"] == pytest.approx(0.54), "a tenth of the frames counts 0"
    assert figures["calibrated_base"] == pytest.approx(4 / 7)
    # Four scenes of one and the same gain: no spread, but too few to tell anything from chance.
    assert figures["least_gain"] is None and figures["scenes_for_0.05"] == 6
    # Three claims, each p = 2/16 by four scenes of one sign, the smallest counting three times.
    assert figures["p_holm"] == {"facesim": 0.375, "judge": 0.375, "drift_tail": 0.375}
    assert comparison().figures()["p_holm"] == {"facesim": 0.375, "judge": 0.375, "drift_tail": 1.0}


def test_what_was_not_measured_is_none_in_the_figures():
    figures = comparison(real=None).figures()
    assert figures["real_ceiling"] is None
    assert figures["coverage_real"] is None
    assert comparison(real=None).hack_flags == ()


@pytest.fixture(scope="module")
def networks():
    from ipro_core.faces.packs import load_face_models

    packs = SHARED / "weights" / "insightface" / "models"
    (detector, recognizer), (_, judge) = (load_face_models(packs / pack) for pack in ("antelopev2", "judge"))
    return detector, recognizer, judge


@pytest.fixture(scope="module")
def clips():
    names = ["i2v81_walk_lp_s18", "i2v81_dolly_lp_s20", "two_person_s18_left_s32_right"]
    return [read_frames(SHARED / "media" / "derived" / f"{name}.mp4", 0, 13)[::4] for name in names]


@needs_shared
@pytest.mark.shared
def test_facesim_knows_the_person_on_real_clips(networks, clips):
    detector, recognizer, _ = networks
    walker, other, two_people = clips
    same = face_sim(walker, walker[0], detector, recognizer)
    assert same.coverage == 1
    assert same.first == pytest.approx(1, abs=1e-5)
    assert same.found > 0.85
    stranger = face_sim(walker, other[0], detector, recognizer)
    assert stranger.found < 0.25  # different people: at most 0.23 in 174 pairs
    # Two people, one of them the walker: the subject is the one of the reference, on whatever side.
    assert face_sim(two_people, walker[0], detector, recognizer, given=0).found > 0.8


@needs_shared
@pytest.mark.shared
def test_a_lost_face_lowers_all_and_a_reference_without_one_is_refused(networks, clips):
    detector, recognizer, _ = networks
    walker = clips[0]
    half = walker.clone()
    half[2:] = 0.5
    lost = face_sim(half, walker[0], detector, recognizer, given=0)
    assert lost.coverage == 0.5
    assert lost.all == pytest.approx(lost.found / 2)
    nothing = face_sim(half[2:], walker[0], detector, recognizer, given=0)
    assert (nothing.coverage, nothing.all) == (0, 0)
    with pytest.raises(ValueError, match="shows no face"):
        face_sim(walker, half[2], detector, recognizer)


def test_the_rewards_own_recogniser_is_no_judge_and_that_is_said_before_anything_is_opened():
    closed = {"open": lambda: pytest.fail("opened")}
    studio = open_tiny_world()
    studio = replace(studio, faces=replace(studio.faces, **closed), judge=replace(studio.judge, **closed))
    check_judge(studio)
    check_judge(replace(studio, judge=None))
    own = replace(studio.judge, identity=lambda: recognizer_name(FACE_PACK))
    with pytest.raises(ValueError, match="reward's own recogniser"):
        check_judge(replace(studio, judge=own))


@needs_shared
@pytest.mark.shared
def test_a_comparison_on_real_clips_sees_that_blur_costs_likeness(networks, clips):
    detector, recognizer, judge = networks

    def blurred(frames):
        small = torch.nn.functional.interpolate(frames, scale_factor=0.15, mode="area")
        return torch.nn.functional.interpolate(small, size=frames.shape[2:], mode="bilinear")

    scenes = [
        SceneVideos(name, "walks", 0, frames[0], blurred(frames), frames, frames)
        for name, frames in zip(["walk", "dolly"], clips, strict=False)
    ]
    result = compare_videos(iter(scenes), detector, recognizer, judge)
    figures = result.figures()
    assert figures["gain"] > 0.2
    assert figures["judge_gain"] > 0.1
    assert figures["facesim_tuned"] == pytest.approx(figures["real_ceiling"])
    assert abs(figures["stranger_floor"]) < 0.25
    assert 0.7 < figures["motion_ratio"] < 1.4
    assert result.hack_flags == ()
    assert result.pairs[0].tuned.strip_SCHW.dtype == torch.uint8
    assert figures["judge"] != figures["recognizer"] and "sha256" in figures["judge"]
    assert 0.3 < figures["transfer"] < 3 and figures["transfer_calibrated"]
    assert {guard.name: guard.verdict for guard in result.guards}["sharpness"] == "kept"
    with pytest.raises(ValueError, match="reward's own recogniser"):
        compare_videos(iter(scenes), detector, recognizer, recognizer)
    with pytest.raises(ValueError, match=r"Scene wall: .* no face"):
        compare_videos([replace(scenes[0], scene="wall", reference_CHW=torch.zeros(3, 64, 64))], *networks)
