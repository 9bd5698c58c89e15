"""Suspicions: each by the damage that it must catch, and their silence on real clips; guards in passing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ipro_core.evaluation import corruptions
from ipro_core.evaluation.bands import band_of
from ipro_core.evaluation.compare import SceneVideos, compare_videos
from ipro_core.evaluation.guards import GuardResults, Guards
from ipro_core.evaluation.guards_page import guard_sections
from ipro_core.evaluation.quality_measures import open_meter
from ipro_core.evaluation.quality_settings import QualitySettings
from ipro_core.evaluation.signs import (
    input_face,
    measure_signs,
    watch,
)
from ipro_core.faces.alignment import crop_faces
from ipro_core.faces.detector import Detector
from ipro_core.faces.packs import load_face_models
from ipro_core.tinyworld import FACE_PACK
from ipro_core.tinyworld.clips import draw_clips
from ipro_core.tinyworld.painting import render
from ipro_core.tinyworld.scenes import PROMPTS, split_generator
from ipro_core.tinyworld.world import STATE

REAL, CORRUPTED, FRAMES, SIDE = 22, 6, 9, 64


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


def test_a_video_without_the_face_has_signs_that_are_no_numbers(world, networks):
    clip = world[1][0]
    empty = torch.full_like(clip[0].frames_TCHW, 0.5)
    signs = signs_of(clip, networks, empty)
    assert signs["coverage"] == 0
    assert signs["face_change"] != signs["face_change"]
    band = band_of([signs_of(clip) for clip in world[1]])
    assert "other face" in band.suspicions(signs)


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
