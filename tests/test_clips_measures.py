"""What shots show, against closed forms and the embedded world: cuts, hashes, faces, people, light."""

import math
from pathlib import Path

import pytest
import tiny_clips
import torch
from face_networks import red_cells, write_pack
from test_video import grey_video, numbers
from tiny_clips import FPS, FRAMES
from torch.nn.functional import interpolate

from ipro_core.clips import shots
from ipro_core.clips.measures import measure_video, nose_place, quality
from ipro_core.clips.pictures import PORTRAIT, portrait, sheet
from ipro_core.clips.settings import MeasureSettings
from ipro_core.clips.shots import dhash, find_shots, hash_bits, hash_distance
from ipro_core.clips.video import first_shown, probe, read_frames, write_video
from ipro_core.faces.alignment import template
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.tracks import follow_people, follow_person, see_faces
from ipro_core.tinyworld import FACE_PACK

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tiny_clips.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def tiny():
    return load_face_models(FACE_PACK)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The detector of known answers: a red cell of 32 px is a face."""
    return load_face_models(write_pack(tmp_path_factory.mktemp("pack")))


def measured(path: Path, models, **settings):
    return [shot for shot, _ in measure_video(path, *models, MeasureSettings(**settings), made_by="these")]


FINDERS = ["changes", "PySceneDetect"]


@pytest.fixture(params=FINDERS)
def finder(request, monkeypatch):
    if request.param == "PySceneDetect":
        pytest.importorskip("scenedetect", reason="needs PySceneDetect: pip install scenedetect-headless")
    monkeypatch.setattr(shots, "cut_finder", lambda: request.param)


def test_shots_that_were_cut_together_are_split_at_the_known_frames(clips, finder):
    found = find_shots(clips / "film.mp4", FPS)
    assert [(shot.first_frame, shot.frames) for shot in found] == [(0, 16), (16, 16), (32, 16)]
    assert [(shot.start, shot.end) for shot in found] == [(0, 2), (2, 4), (4, 6)]  # 8 frames a second


def test_neither_a_flash_nor_a_fast_pan_is_a_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(shots, "cut_finder", lambda: "changes")
    picture = torch.rand(1, 3, 12, 96, generator=torch.Generator().manual_seed(0))
    wide = interpolate(picture, (96, 768), mode="bilinear")[0]
    pan = torch.stack([wide[:, :, 14 * k : 14 * k + 96] for k in range(40)])
    still = wide[None, :, :, :96].repeat(40, 1, 1, 1)
    still[20] = 1
    for name, frames in (("pan", pan), ("flash", still)):
        change = (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3)).max()
        assert change > shots.LEAST_CHANGE  # as large as a cut
        write_video(tmp_path / f"{name}.mp4", frames, 24)
        assert len(find_shots(tmp_path / f"{name}.mp4", 24)) == 1


def test_a_long_shot_is_cut_into_equal_pieces(clips):
    # 2 seconds each: pieces of at most 0.9 are three, of 16 frames 5, 6 and 5.
    found = find_shots(clips / "film.mp4", FPS, longest=0.9)
    assert [shot.frames for shot in found] == [5, 6, 5] * 3
    assert [shot.first_frame for shot in found] == [0, 5, 11, 16, 21, 27, 32, 37, 43]


def test_pieces_of_a_variable_rate_begin_when_their_first_frame_is_shown(tmp_path):
    # Six frames, the fourth at 0.14 s; at an even rate it would come at 0.27.
    path = grey_video(tmp_path / "a.mkv", [0, 100, 120, 140, 400, 500])
    first, second = find_shots(path, probe(path).fps, longest=0.3)
    assert (first.end, second.start, second.first_frame) == (pytest.approx(0.14), pytest.approx(0.14), 3)
    for fps in (8, 20, 25, 60):
        shown = numbers(read_frames(path, first_shown(second.start, fps), 1, fps=fps))
        before = numbers(read_frames(path, first_shown(second.start, fps) - 1, 1, fps=fps))
        assert shown[0] >= 3 > before[0]


def test_a_hash_says_what_brightens_to_the_right_whatever_size_and_light():
    ramp = torch.linspace(0, 1, 90).expand(1, 3, 80, 90)
    assert dhash(ramp) == ["f" * 16] and dhash(ramp.flip(3)) == ["0" * 16]
    assert dhash(ramp[..., :45, :45] * 0.9 + 0.05) == ["f" * 16]
    # Brightening in the right half only. The middle one of 9 columns reaches into it: the last 5 of 8 places.
    assert dhash(torch.cat([ramp * 0, ramp], dim=3)) == ["f8" * 8]
    flat = 0.5 + 0.005 * torch.randn(1, 3, 80, 90, generator=torch.Generator().manual_seed(0))
    assert dhash(flat) == ["0" * 16]  # noise is no picture


def test_a_copy_is_told_from_another_take_by_its_hash(clips):
    bits = {
        name: hash_bits(find_shots(clips / f"{name}.mp4", FPS)[0].hashes)
        for name in ("two", "two_again", "three", "zero")
    }
    others = torch.stack([bits[name] for name in ("two_again", "three", "zero")])
    copy, *takes = hash_distance(bits["two"], others).tolist()
    assert copy < 2 and min(takes) > 12  # of 64; two random pictures differ in 32


def test_sharpness_is_the_laplacian_of_a_wave_over_its_contrast():
    # The Laplacian of cos(kx) is 2 (cos k − 1) cos(kx): the ratio of the spreads is 2 (1 − cos k).
    x = torch.arange(56.0)
    for period in (14, 7, 3.5):
        k = 2 * math.pi / period
        wave = (0.5 + 0.3 * torch.cos(k * x)).expand(1, 3, 56, 56)
        for light in (1.0, 0.3):  # which says nothing of sharpness
            (sharpness, luma, clipped) = quality(light * wave)[0].tolist()
            assert sharpness == pytest.approx(2 * (1 - math.cos(k)), rel=0.02)
            assert luma == pytest.approx(0.5 * light, abs=1e-3) and clipped == 0
    half = torch.cat([torch.zeros(1, 3, 28, 56), torch.full((1, 3, 28, 56), 0.6)], dim=2)
    assert quality(half)[0, 1:].tolist() == pytest.approx([0.3, 0.5])


def test_the_noses_place_says_how_far_a_head_is_turned_however_it_lies():
    points = template(112).float()
    eyes = (points[0] + points[1]) / 2
    size = (points - points.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    turned = points.clone()
    turned[2, 0] = eyes[0] + 0.25 * size
    # Moving the nose by 11 px changes the size a little; a roll of 0.6 and another scale change nothing.
    c, s = math.cos(0.6), math.sin(0.6)
    rolled = turned @ torch.tensor([[c, s], [-s, c]]) * 3 + 50
    straight, aside, again = nose_place(torch.stack([points, turned, rolled])).tolist()
    assert abs(straight) < 0.05 and aside == pytest.approx(0.25, rel=0.05) and again == pytest.approx(aside)


def test_faces_are_counted_sized_and_told_apart_as_they_were_drawn(cells, tmp_path):
    # 16 frames at 8 a second; a face in 12 of them, a second one beside it in 4.
    frames = red_cells([[(0, 1)]] * 8 + [[(0, 1), (3, 1)]] * 4 + [[]] * 4)
    write_video(tmp_path / "cells.mp4", frames, 8, crf=1)
    (shot,) = measured(tmp_path / "cells.mp4", cells, looks=8)
    assert (shot.looks, shot.coverage) == (16, 0.75)
    assert [person.coverage for person in shot.people] == [0.75, 0.25]
    # Boxes of 31 px in frames of 128.
    assert shot.largest_face == pytest.approx(31 / 128, abs=1e-4)
    assert shot.largest_at_960p == pytest.approx(232.5, abs=0.1)
    assert shot.people[0].face_px == pytest.approx(31, abs=0.1)
    assert shot.people[0].alike == pytest.approx(1, abs=0.01) and shot.people[0].turns < 0.01
    # Looked at twice a second: frames 0, 4, 8, 12, of which the last shows nobody.
    (seldom,) = measured(tmp_path / "cells.mp4", cells, looks=2)
    assert (seldom.looks, seldom.coverage, len(seldom.people)) == (4, 0.75, 1)


def test_a_person_is_the_same_in_another_clip_and_no_other(clips, tiny):
    film, zero = measured(clips / "film.mp4", tiny, looks=8), measured(clips / "zero.mp4", tiny, looks=8)
    assert [(shot.shot, shot.shots, len(shot.people)) for shot in film] == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]
    assert all(shot.coverage == 1 and shot.people[0].alike > 0.8 for shot in film)
    first, other, again = (shot.people[0].embedding_D for shot in film)
    (known,) = (person.embedding_D for person in zero[0].people)
    assert min(first @ again, first @ known) > max(first @ other, known @ other) + 0.1
    assert first.norm().item() == pytest.approx(1, abs=1e-3)  # kept in half precision


def test_a_clip_without_people_has_coverage_nought_and_nothing_else_is_claimed(clips, tiny):
    (shot,) = measured(clips / "nobody.mp4", tiny)
    assert (shot.coverage, shot.largest_face, shot.people) == (0.0, None, ())
    assert (shot.width, shot.height, shot.fps, shot.frames, shot.seconds) == (96, 96, 8, FRAMES, 2)


def test_a_damaged_file_is_one_line_with_the_reason(clips, tiny, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((clips / "zero.mp4").read_bytes()[:-3000])
    (shot,) = measured(broken, tiny)
    assert "broken.mp4" in shot.problem and shot.frames == 0


def test_everybody_is_followed_once_the_subject_first(cells):
    frames = red_cells([[(0, 0)], [(0, 0), (3, 3)], [(0, 0), (3, 3)], [(3, 3)] * 1])
    seen = see_faces(frames, *cells)
    people = follow_people(seen.detections, seen.embeddings)
    faces = [(t, face) for followed in people for t, face in followed.items()]
    assert sorted(faces) == [(t, f) for t, found in enumerate(seen.detections) for f in range(len(found))]
    assert people[0] == follow_person(seen.detections, seen.embeddings)
    assert follow_people([[], []], [torch.zeros(0, 4)] * 2) == []


def test_pictures_of_faces_reach_beyond_the_frame_in_black_and_sheets_are_filled_row_by_row():
    frame = torch.ones(3, 40, 60)
    # A box of 20 px at the left border: the picture covers 34 px, 7 of them outside.
    shown = portrait(frame, torch.tensor([0.0, 10.0, 20.0, 30.0]))
    assert shown.shape == (3, PORTRAIT, PORTRAIT)
    assert shown[0, PORTRAIT // 2].mean().item() == pytest.approx(27 / 34, abs=0.01)
    assert not portrait(frame, torch.tensor([200.0, 10.0, 220.0, 30.0])).any()
    pictures = [torch.full((3, 2, 3), float(k)) for k in range(1, 7)]
    assert sheet(pictures)[0, ::2, ::3].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert sheet(pictures[:2])[0, ::2, ::3].tolist() == [[1, 2]]
