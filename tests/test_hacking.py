"""Signs of a hack: by hand, each by the corruption that it must catch, and by its silence on real clips."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ipro_core.clips.luma import luma
from ipro_core.clips.video import read_frames
from ipro_core.evaluation import corruptions
from ipro_core.evaluation.bands import KINDS, band_of
from ipro_core.evaluation.compare import SceneVideos, compare_videos
from ipro_core.evaluation.guards import GuardResults, Guards
from ipro_core.evaluation.guards_page import guard_sections
from ipro_core.evaluation.hacking import ClipSigns, judge_signs
from ipro_core.evaluation.quality_measures import open_meter
from ipro_core.evaluation.quality_settings import QualitySettings
from ipro_core.evaluation.rates import Rate, corrected_rate
from ipro_core.evaluation.registering import unlike
from ipro_core.evaluation.signs import (
    NAMES,
    SIGNS,
    block_steps,
    diversity,
    expression,
    flicker,
    growth,
    input_face,
    measure_signs,
    watch,
)
from ipro_core.faces.alignment import crop_faces, template
from ipro_core.faces.detector import Detector
from ipro_core.faces.packs import load_face_models
from ipro_core.tinyworld import FACE_PACK
from ipro_core.tinyworld.clips import draw_clips
from ipro_core.tinyworld.painting import render
from ipro_core.tinyworld.scenes import PROMPTS, split_generator
from ipro_core.tinyworld.world import STATE
from ipro_core.types import FaceTrack

SHARED = Path(__file__).resolve().parents[2] / "shared"
REAL, CORRUPTED, FRAMES, SIDE = 22, 6, 9, 64


def test_a_face_that_only_moves_tilts_and_is_lit_differently_is_not_unlike_itself():
    generator = torch.Generator().manual_seed(0)
    faces = F.interpolate(torch.rand(4, 1, 12, 12, generator=generator), (64, 64), mode="bicubic")[:, 0]
    maps = torch.tensor([[[0.95, 0.08, 0.06], [-0.06, 1.04, -0.05]]]).expand(4, -1, -1)
    grid = F.affine_grid(maps, [4, 1, 64, 64], align_corners=False)
    moved = F.grid_sample(faces[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    assert unlike(0.7 * moved + 0.1, faces).max() < 0.12
    assert (moved - faces).square().mean().sqrt() / faces.std() > 0.3, "unmatched they differ"
    assert unlike(faces.roll(1, dims=0), faces).min() > 0.6, "other faces"


def test_flicker_counts_light_to_and_fro_and_not_light_that_rises():
    light = torch.tensor([0.5, 0.52, 0.48, 0.52, 0.48]).view(-1, 1, 1, 1).expand(-1, 3, 24, 24)
    # Second differences −0.06, 0.08, −0.08, over 4: (0.015 + 0.02 + 0.02) / 3.
    assert flicker(light) == pytest.approx(255 * 0.055 / 3, rel=1e-4)
    rising = torch.linspace(0, 1, 8).view(-1, 1, 1, 1).expand(-1, 3, 24, 24)
    assert flicker(rising) == pytest.approx(0, abs=1e-4)


def test_expression_and_growth_are_told_from_the_heads_way():
    face = template(112)
    angle = torch.linspace(0, 1, 10, dtype=torch.float64)
    scale = torch.linspace(1, 1.5, 10, dtype=torch.float64)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], 1
    )
    way = scale[:, None, None] * (face @ turn) + 3 * angle[:, None, None]
    assert expression(way) == pytest.approx(0, abs=1e-9)
    # The first fifth's median size is that of frames 0 and 1 (the lower of two), the last's of 8 and 9.
    assert growth(way) == pytest.approx((scale[8] / scale[0]).item())
    smiling = face.repeat(10, 1, 1)
    smiling[::2, 3:, 1] += 4
    assert expression(smiling) > 0.02


def test_diversity_is_one_less_the_mean_cosine_of_two_frames():
    vectors = torch.eye(3)[[0, 0, 1]]  # cosines 1, 0, 0
    assert diversity(vectors) == pytest.approx(2 / 3)


def test_blocks_are_steps_at_every_eighth_pixel():
    ramp = torch.arange(64.0) / 64 * 0.5
    frames = ramp.expand(1, 3, 64, 64).clone()
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    track = FaceTrack(box, template(64)[None].float(), torch.tensor([True]))
    even = block_steps(frames + frames.transpose(2, 3), track)
    assert even == pytest.approx(1, rel=1e-3)
    stepped = frames + 0.02 * (torch.arange(64) // 8)
    # Steps across 0.5/64 + 0.02 at edges and 0.5/64 within; down none: the mean of both axes over the other.
    assert block_steps(stepped + stepped.transpose(2, 3), track) == pytest.approx(
        1 + 0.02 * 64 / 0.5, rel=1e-3
    )


@pytest.fixture(scope="module")
def networks():
    return load_face_models(FACE_PACK)


@pytest.fixture(scope="module")
def world(networks):
    """Real clips with their subject found, and the state that they were painted of."""
    torch.set_num_threads(1)
    generator = split_generator("checks", 21)
    prompts = [PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))] for _ in range(REAL)]
    scenes = draw_clips(prompts, generator, frames=FRAMES)
    alone = torch.tensor([[1.0, 0.0]]).expand(REAL, -1)
    clear = scenes.occluders_NTO8 * torch.tensor([1.0] * 7 + [0.0])
    scenes = replace(scenes, present_NK=alone, occluders_NTO8=clear)
    clips = []
    for frames_TCHW in render(scenes, SIDE):
        reference_D, faces = input_face(frames_TCHW[0], *networks)
        clips.append((watch(frames_TCHW, *networks, reference_D), reference_D, faces))
    return scenes, clips


@pytest.fixture(scope="module")
def band(world):
    return band_of([signs_of(clip) for clip in world[1]])


def signs_of(clip, networks=None, frames_TCHW=None):
    """Of a clip, or of frames that were made of it."""
    real, reference_D, faces = clip
    shown = real if frames_TCHW is None else watch(frames_TCHW, *networks, reference_D)
    return measure_signs(shown, real.frames_TCHW[0], reference_D, faces, real)


def painted(scenes, **changed):
    """The clips once more, some of their state as changed: name → function of (T,) that gives (T,)."""
    states = scenes.states_NTKS.clone()
    for name, change in changed.items():
        column = STATE.index(name)
        states[:, :, 0, column] = change(states[:, :, 0, column])
    return render(replace(scenes, states_NTKS=states)[:CORRUPTED], SIDE)


def first(values_NT):
    return values_NT[:, :1].expand_as(values_NT)


STIFF = dict.fromkeys(("yaw", "pitch", "mouth_open", "smile", "lids", "brows", "gaze_x", "gaze_y"), first)
REPAINTED = {
    "stiff": (STIFF, "stiffness"),
    "frontal": (dict.fromkeys(("yaw", "pitch"), lambda values: 0.2 * values), "frontal"),
    "enlarged": ({"scale": lambda values: values * torch.linspace(1, 1.4, FRAMES)}, "size"),
}
CORRUPTIONS = {
    "still": (corruptions.still, "stiffness"),
    "pasted": (corruptions.frozen_face, "pasted face"),
    "smoothed": (corruptions.smoothed_face, "surface"),
    "sharpened": (corruptions.sharpened_face, "surface"),
    "blocks": (corruptions.blocks, "surface"),
    "flicker": (corruptions.flicker, "surface"),
    "growing": (corruptions.growing_face, "size"),
    "still background": (corruptions.frozen_background, "still background"),
}


def risen(band, clips, corrupted, networks, kind):
    """By how much the kind's score of each damaged clip lies above that of the clip it was made of."""
    return [
        band.scores(signs_of(clip, networks, frames))[kind] - band.scores(signs_of(clip))[kind]
        for clip, frames in zip(clips, corrupted, strict=False)
    ]


@pytest.mark.parametrize("name", REPAINTED)
def test_each_change_of_state_raises_its_suspicion(name, world, band, networks):
    changes, kind = REPAINTED[name]
    rises = risen(band, world[1], painted(world[0], **changes), networks, kind)
    assert np.mean(rises) > 0.5 and sum(rise > 0 for rise in rises) >= CORRUPTED - 2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_damage_to_the_picture_raises_its_suspicion(name, world, band, networks):
    damage, kind = CORRUPTIONS[name]
    damaged = [damage(clip[0].frames_TCHW, clip[0].track) for clip in world[1][:CORRUPTED]]
    assert all(
        torch.equal(new[0], clip[0].frames_TCHW[0]) for new, clip in zip(damaged, world[1], strict=False)
    )
    rises = risen(band, world[1], damaged, networks, kind)
    least = 0.3 if name == "still background" else 0.5  # here most backgrounds stand still anyway
    assert np.mean(rises) > least and sum(rise > 0 for rise in rises) >= CORRUPTED - 2


def test_another_face_at_once_or_slowly_is_suspected(world, band, networks):
    for at_once in (False, True):
        for n, clip in enumerate(world[1][:CORRUPTED]):
            stranger = world[1][n + 1][0]
            crop = crop_faces(stranger.frames_TCHW[:1], stranger.track.points_T52[:1], 64)[0]
            frames = corruptions.other_face(clip[0].frames_TCHW, clip[0].track, crop, at_once=at_once)
            (rise,) = risen(band, [clip], [frames], networks, "other face")
            assert rise > 1


def test_a_second_face_is_counted(world, networks):
    counts = []
    for clip in world[1][:CORRUPTED]:
        frames = corruptions.second_face(clip[0].frames_TCHW, clip[0].track)
        counts.append(signs_of(clip, networks, frames)["extra_faces"])
        assert signs_of(clip)["extra_faces"] < 0.3
    assert max(counts) > 0.5  # beside some heads there is no room in the picture


def test_real_clips_are_seldom_suspected(world):
    signs = [signs_of(clip) for clip in world[1]]
    band = band_of(signs)
    assert not band.reason and band.clips == REAL
    # By construction 8 % of the clips of the band at most pass any limit: of 22, one.
    assert band.any_false_alarm.count <= 1
    # And few do by the other half's limits, where 11 clips allow one of twelve.
    half = band_of(signs[::2], false_alarms=0.1)
    assert sum(bool(half.suspicions(one)) for one in signs[1::2]) <= 3


def drawn(generator, count, shift=0.0):
    """Rows of signs of which every scale is normal; `shift` moves face_change, in deviations."""
    rows = []
    for _ in range(count):
        values = generator.normal(size=len(SIGNS))
        values[NAMES.index("face_change")] += shift
        rows.append(
            {
                sign.name: float(np.exp(value) if sign.ratio else value)
                for sign, value in zip(SIGNS, values, strict=True)
            }
        )
    return rows


def test_all_kinds_together_fall_on_as_many_further_real_clips_as_they_may():
    generator = np.random.default_rng(0)
    suspected, shares = [], {kind.name: [] for kind in KINDS}
    for _ in range(120):
        band = band_of(drawn(generator, 39))
        for row in drawn(generator, 12):
            found = band.suspicions(row)
            suspected.append(bool(found))
            for kind in KINDS:
                shares[kind.name].append(kind.name in found)
    # 39 clips: the 37th of 39 is passed with probability 1 − 37/40 = 7.5 %; 120 limits, 1440 clips.
    assert np.mean(suspected) == pytest.approx(0.075, abs=0.02)
    # No kind has it all: of equal tails each would have a tenth or so.
    assert max(np.mean(share) for share in shares.values()) < 0.03


def test_a_kind_without_a_number_is_no_suspicion_and_hides_none():
    generator = np.random.default_rng(3)
    rows = drawn(generator, 30)
    for row in rows:
        row["background"] = float("nan")  # heads fill the picture
    band = band_of(rows)
    (clip,) = drawn(generator, 1, shift=-8)
    assert "pasted face" in band.suspicions(clip) and "still background" not in band.suspicions(clip)


def test_few_real_clips_say_little_and_say_so():
    generator = np.random.default_rng(1)
    few = band_of(drawn(generator, 11))
    assert "for 8% false alarms at least 12 real clips are needed, and there are 11" in few.reason
    assert few.suspicions(drawn(generator, 1, shift=-50)[0]) == ()
    with pytest.raises(ValueError, match="3 of them say too little"):
        band_of(drawn(generator, 3))
    lonely = judge_signs(
        [ClipSigns("a", 0, dict.fromkeys(("base", "tuned", "real"), drawn(generator, 1)[0]))]
    )
    assert lonely.band is None and lonely.flags == ()
    assert "1 of them say too little" in lonely.figures()["reason"]
    assert "say too little" in guard_sections(GuardResults(hacking=lonely))


def test_a_rise_from_base_to_tuned_is_told_and_chance_is_not():
    generator = np.random.default_rng(2)

    def clips(shift):
        rows = zip(*(drawn(generator, 30, s) for s in (0, shift, 0)), strict=True)
        return [
            ClipSigns(f"scene {n}", 0, dict(zip(("base", "tuned", "real"), row, strict=True)))
            for n, row in enumerate(rows)
        ]

    frozen = judge_signs(clips(-3))
    assert any(flag.startswith("Suspected pasted face") for flag in frozen.flags)
    assert frozen.rate("tuned", "pasted face").count > frozen.rate("base", "pasted face").count
    told = frozen.figures()["suspected"]["pasted face"]
    assert told["rise"] > 1 and told["rise_ci95"][0] > 0
    assert judge_signs(clips(0)).flags == ()


def test_a_video_without_the_face_has_signs_that_are_no_numbers(world, networks):
    clip = world[1][0]
    empty = torch.full_like(clip[0].frames_TCHW, 0.5)
    signs = signs_of(clip, networks, empty)
    assert signs["coverage"] == 0
    assert signs["face_change"] != signs["face_change"]
    band = band_of([signs_of(clip) for clip in world[1]])
    assert "other face" in band.suspicions(signs)


def test_wilsons_interval_and_rogan_and_gladens_rate():
    assert Rate(5, 10).ci95 == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert Rate(0, 10).ci95 == pytest.approx((0, 0.2775), abs=1e-4)
    # (0.3 − 0.1) / (0.9 − 0.1).
    rate = corrected_rate(Rate(30, 100), Rate(90, 100), Rate(10, 100))
    assert rate.value == pytest.approx(0.25)
    assert rate.ci95[0] < 0.17 and rate.ci95[1] > 0.33
    assert corrected_rate(Rate(5, 100), Rate(90, 100), Rate(10, 100)).value == 0, "never below nothing"
    blind = corrected_rate(Rate(30, 100), Rate(60, 100), Rate(40, 100))
    assert blind.value is None and "cannot tell" in blind.reason
    assert corrected_rate(Rate(1, 2), Rate(0, 0), Rate(1, 2)).value is None


def test_guards_measure_pairs_in_passing_and_write_their_part_of_the_report(world, networks):
    pairs = [
        SceneVideos(
            f"scene {n}",
            "a person smiles <b>",
            0,
            clip[0].frames_TCHW[0],
            clip[0].frames_TCHW,
            corruptions.frozen_face(clip[0].frames_TCHW, clip[0].track),
            clip[0].frames_TCHW,
        )
        for n, clip in enumerate(world[1][:8])
    ]
    guards = Guards(8.0, open_meter(QualitySettings(quality="tf, sc")), networks)
    assert [pair.scene for pair in guards.watch(pairs)] == [f"scene {n}" for n in range(8)]
    results = guards.results()
    assert any("pasted face" in flag for flag in results.flags)
    figures = results.figures()
    assert (
        figures["hacking"]["signs"]["face_change"]["tuned"]
        < figures["hacking"]["signs"]["face_change"]["base"]
    )
    assert figures["quality"]["figures"]["tf"]["base"] > 0.9
    page = guard_sections(results)
    assert "Suspicions" in page and "pasted face" in page and "DINO" in page
    assert guard_sections(GuardResults()) == ""


class Counting(Detector):
    """Counts the frames that it looks at."""

    looked = 0

    def detect(self, frames_TCHW, threshold=0.5, chunk=0):
        self.looked += len(frames_TCHW)
        return super().detect(frames_TCHW, threshold, chunk)


def test_faces_are_found_once_in_every_video_with_guards_or_without(world, networks):
    real = world[1][0][0].frames_TCHW
    pairs = [
        SceneVideos("one", "", seed, real[0], real, corruptions.still(real, None), real) for seed in (0, 1)
    ]
    told = []
    for guarded in (False, True):
        detector = Counting(networks[0].network, networks[0].name, networks[0].long_sides)
        guards = Guards(8.0, faces=(detector, networks[1]))
        seen = guards.watch(pairs) if guarded else pairs
        told.append(compare_videos(seen, detector, networks[1]).figures())
        # Base and tuned of two seeds and the scene's real clip; the input, by each who asks, for each seed.
        assert detector.looked == 5 * FRAMES + 2 * (1 + guarded)
    assert told[0] == told[1]
    # What the codec made of the real clip is another video.
    detector.looked = 0
    guards = Guards(8.0, faces=(detector, networks[1]), decoded=lambda frames: frames * 0.9)
    compare_videos(guards.watch(pairs[:1]), detector, networks[1])
    assert detector.looked == 4 * FRAMES + 2


def test_what_was_measured_of_quality_on_the_way_is_guarded_and_what_quality_rests_on_is_said(
    world, networks
):
    pairs = [
        SceneVideos(f"scene {n}", "", 0, frames[0], frames, frames, measured=measured)
        for n, (clip, _, _) in enumerate(world[1][:2])
        for frames in [clip.frames_TCHW]
        for measured in [
            {"base": {"sc": 0.8, "aq": 0.5, "tf": 1.0}, "tuned": {"sc": 0.4, "aq": 0.6, "tf": 0.1}}
        ]
    ]
    told = compare_videos(pairs, *networks)
    held = {one.name: (one.verdict, one.change) for one in told.guards}
    assert held["sc"] == ("lost", pytest.approx(0.5)) and held["aq"] == ("kept", pytest.approx(1.2))
    assert "tf" not in held and told.figures()["quality_rests_on"] == "sharpness, sc, aq"
    plain = compare_videos([replace(pair, measured={}) for pair in pairs], *networks)
    assert plain.rests_on == "sharpness alone: none of VBench's measures was taken"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: real clips and networks")
def test_on_a_real_face_every_damage_shows():
    detector, recognizer = load_face_models(
        SHARED / "weights" / "insightface" / "models" / "antelopev2", long_sides=(320,)
    )
    frames = read_frames(SHARED / "media" / "clips" / "portrait_lp_d20.mp4", 0, 36)[::4]
    frames = F.interpolate(frames, (384, 384), mode="bilinear", antialias=True)
    reference_D, faces = input_face(frames[0], detector, recognizer)
    real = watch(frames, detector, recognizer, reference_D)
    networks, clip = (detector, recognizer), (real, reference_D, faces)
    known = signs_of(clip)
    pasted = signs_of(clip, networks, corruptions.frozen_face(frames, real.track))
    assert pasted["face_change"] < 0.5 * known["face_change"]
    assert pasted["copy_index"] > known["copy_index"] + 0.02
    smooth = signs_of(clip, networks, corruptions.smoothed_face(frames, real.track))
    assert smooth["sharpness"] < 0.9 * known["sharpness"]
    grown = signs_of(clip, networks, corruptions.growing_face(frames, real.track))
    assert grown["growth"] > 1.2 * known["growth"]
    assert luma(frames).shape == (len(frames), 384, 384)
