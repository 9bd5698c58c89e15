"""`ipro evaluate` and `ipro score` on videos that exist, also of several people: reports and refusals."""

import csv
import json
from pathlib import Path

import pytest
import torch
from test_commands import answer, refused

from ipro_core.__main__ import main
from ipro_core.clips.video import read_frames, write_video
from ipro_core.commands.evaluate_videos import scene_of
from ipro_core.tinyworld import FACE_PACK, FRAMING
from ipro_core.tinyworld.scenes import tiny_scenes
from ipro_core.types import FacePool

SHARED = Path(__file__).resolve().parents[2] / "shared"
FACES = ["--faces", str(FACE_PACK)]


def blurred(frames_TCHW):
    small = torch.nn.functional.interpolate(frames_TCHW, scale_factor=0.5, mode="area")
    return torch.nn.functional.interpolate(small, size=frames_TCHW.shape[2:], mode="bilinear")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two scenes of two seeds by a base that blurs and a tuned model that does not, and the real clips."""
    root = tmp_path_factory.mktemp("videos")
    for which in ("base", "tuned", "real"):
        (root / which).mkdir()
    for k, scene in enumerate(tiny_scenes("checks", 2)):
        real = scene.frames_TCHW
        write_video(root / f"real/scene{k}.mp4", real, FRAMING.fps)
        for seed in (0, 1):
            write_video(root / f"base/scene{k}_seed{seed}.mp4", blurred(real), FRAMING.fps)
            write_video(root / f"tuned/scene{k}_seed{seed}.mp4", 0.98 * real, FRAMING.fps)
    return root


def judging(folders, *more):
    return [
        *("evaluate", "--base-videos", folders / "base", "--tuned-videos", folders / "tuned", *FACES),
        *more,
    ]


def test_two_folders_become_a_report_with_json_and_csv(folders, tmp_path, capsys):
    report = tmp_path / "out.html"
    arguments = judging(folders, "--real-videos", folders / "real", "--report", report, "--json")
    assert main([str(one) for one in arguments]) == 0
    figures = answer(capsys)
    assert (figures["scenes"], figures["pairs"]) == (2, 4)
    assert figures["gain"] > 0.02 and figures["real_ceiling"] >= figures["facesim_tuned"] - 0.02
    assert figures["guards"]["coverage"]["verdict"] in ("kept", "not shown")
    kept = json.loads(report.with_suffix(".json").read_text())
    assert kept["gain"] == figures["gain"] and len(kept["per_pair"]) == 4
    first = kept["per_pair"][0]
    assert (first["scene"], first["seed"]) == ("scene0", 0)
    sim = first["tuned"]["facesim"]
    assert len(sim["per_frame"]) == 9 and "sha256" in sim["recognizer"] and sim["protocol"]
    assert sim["ceiling"] == pytest.approx(figures["real_ceiling"])
    rows = list(csv.DictReader(report.with_suffix(".csv").read_text().splitlines()))
    assert [row["video"] for row in rows] == ["real", "base", "tuned"] * 4
    assert float(rows[2]["facesim_all"]) == pytest.approx(sim["all"])
    mean = sum(float(row["facesim_all"]) for row in rows if row["video"] == "tuned") / 4
    assert mean == pytest.approx(figures["facesim_tuned"])


def test_a_files_name_tells_its_scene_and_seed():
    assert scene_of("walk_seed3") == ("walk", 3)
    assert scene_of("a walk-seed 12") == ("a walk", 12)
    assert scene_of("walk") == ("walk", 0)
    assert scene_of("seed3") == ("seed3", 0)


def test_what_cannot_be_compared_is_refused_in_a_sentence(folders, tmp_path, capsys):
    other = tmp_path / "tuned"
    other.mkdir()
    base = folders / "base/scene0_seed0.mp4"
    frames = read_frames(base)

    def refusal(name, *more):
        return refused(
            capsys, "evaluate", "--base-videos", base, "--tuned-videos", other / name, *FACES, *more
        )

    write_video(other / "elsewhere.mp4", frames, 8)
    assert "elsewhere has none: name them alike" in refusal("elsewhere.mp4")
    short = other / "scene0_seed0.mp4"
    write_video(short, frames[:5], 8)
    assert "9 frames and the tuned one 5" in refusal(short.name)
    short.write_bytes(base.read_bytes()[:200])
    assert "holds no video stream" in refusal(short.name)
    short.write_bytes(b"no video at all")
    assert "cannot be opened as a video" in refusal(short.name)
    short.unlink()
    assert "no video file" in refusal(short.name)
    assert "either videos, or what makes them" in refusal(short.name, "--lora", "x.safetensors")
    assert "nothing to compare" in refused(capsys, "evaluate", "--real-videos", base, *FACES)


def test_a_video_without_a_face_is_a_result_and_a_reference_without_one_is_refused(folders, tmp_path, capsys):
    empty = tmp_path / "scene0_seed0.mp4"
    write_video(empty, torch.full((9, 3, 48, 48), 0.5), FRAMING.fps)
    base = folders / "base/scene0_seed0.mp4"
    report = ["--report", tmp_path / "r.html", "--json"]
    arguments = ["evaluate", "--base-videos", base, "--tuned-videos", empty, *FACES, *report]
    assert main([str(one) for one in arguments]) == 0
    figures = answer(capsys)
    assert (figures["facesim_tuned"], figures["coverage_tuned"]) == (0, 0)
    assert figures["gain"] < 0 and figures["motion_ratio"] is None
    arguments = ["evaluate", "--base-videos", empty, "--tuned-videos", base, *FACES, *report]
    assert "Scene scene0: The reference image shows no face" in refused(capsys, *arguments)


def test_one_frame_is_no_evidence_but_no_error(folders, tmp_path, capsys):
    for which in ("base", "tuned"):
        (tmp_path / which).mkdir()
        write_video(tmp_path / which / "a.mp4", read_frames(folders / "real/scene0.mp4")[:1], 8)
    arguments = judging(tmp_path, "--report", tmp_path / "r.html", "--json")
    assert main([str(one) for one in arguments]) == 0
    figures = answer(capsys)
    assert figures["facesim_base"] is None and figures["gain"] is None and figures["p_value"] is not None
    assert "–" in (tmp_path / "r.html").read_text()


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: real clips and networks")


@pytest.fixture(scope="module")
def real_people(tmp_path_factory):
    """A short clip of two people, and a pool of each from another clip."""
    from ipro_core.faces.packs import load_face_models
    from ipro_core.faces.pool import build_pool

    root, media = tmp_path_factory.mktemp("people"), SHARED / "media/derived"
    models = load_face_models(SHARED / "weights/insightface/models/antelopev2")
    other = read_frames(media / "two_person_s32_left_s18_right.mp4", 0, 9)[::4]
    half = other.shape[3] // 2
    for name, part in (("s32", other[..., :half]), ("s18", other[..., half:])):
        build_pool(part, *models, source=name).save(root / f"{name}.safetensors")
    frames = read_frames(media / "two_person_s18_left_s32_right.mp4", 0, 17)[::4]
    lost = frames.clone()
    lost[..., half:] = 0.5
    for which, some in (("base", lost), ("tuned", frames)):
        (root / which).mkdir()
        write_video(root / which / "both.mp4", some, 4)
    return root


@needs_shared
@pytest.mark.shared
def test_several_people_are_scored_and_compared_each_by_their_pool(real_people, capsys):
    pack = ["--faces", str(SHARED / "weights/insightface/models/antelopev2")]
    pools = ["--pool", *(str(real_people / f"{name}.safetensors") for name in ("s18", "s32"))]
    assert main(["score", str(real_people / "tuned/both.mp4"), *pools, *pack, "--json"]) == 0
    scored = answer(capsys)
    assert scored["identity_f1"] == 1 and scored["missing"] == [] and scored["score"] > 0.8
    assert main(["score", str(real_people / "base/both.mp4"), *pools, *pack, "--json"]) == 0
    assert answer(capsys)["missing"] == ["s32"]
    report = real_people / "report.html"
    arguments = ["evaluate", "--base-videos", real_people / "base", "--tuned-videos", real_people / "tuned"]
    arguments += [*pools, *pack, "--report", report, "--json"]
    assert main([str(one) for one in arguments]) == 0
    figures = answer(capsys)
    assert figures["facesim_base"] == 0, "the one kept worst is the headline, and s32 is missing"
    assert figures["gain"] > 0.8
    assert figures["people"][0]["base"]["missing"] == ["s32"]
    assert "missing" in report.read_text() and "s32" in report.read_text()


@needs_shared
@pytest.mark.shared
def test_pools_that_do_not_fit_are_refused(real_people, tmp_path, capsys):
    video, one = real_people / "tuned/both.mp4", real_people / "s18.safetensors"
    assert "built with glintr100" in refused(capsys, "score", video, "--pool", one, one, *FACES)
    pack = ["--faces", SHARED / "weights/insightface/models/antelopev2"]
    assert "Two pools are named s18" in refused(capsys, "score", video, "--pool", one, one, *pack)
    twin = tmp_path / "twin.safetensors"
    FacePool.load(one).save(twin)
    assert "s18 and twin show one person" in refused(capsys, "score", video, "--pool", one, twin, *pack)
