"""Clips made ready for training: every stage does its work once, and goes on where it was broken off."""

from pathlib import Path

import pytest
import torch
from face_networks import red_cells, write_pack
from torch import Tensor

from ipro_core.cache import TensorCache
from ipro_core.clips.dataset import faces_stage, image_stage, pools_of, text_stage, video_stage
from ipro_core.clips.scenes import ClipScene, PreferredScene, ShownScene, clip_scenes, fit
from ipro_core.clips.video import read_frames, write_picture, write_video
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.pool import build_pool
from ipro_core.types import Clip, Framing

FRAMING = Framing(width=32, height=16, frames=5, fps=8.0)


def scene(
    folder: Path, name: str, frames: int = 5, prompt: str = "a person smiles", framing: Framing = FRAMING
) -> ClipScene:
    """Grey frames, the left third of each red; 48 x 32 px."""
    pixels = torch.full((frames, 3, 32, 48), 0.5)
    pixels[:, 0, :, :16], pixels[:, 1:, :, :16] = 0.9, 0.1
    write_video(folder / f"{name}.mp4", pixels, fps=8)
    return ClipScene(Clip(folder / f"{name}.mp4", prompt), framing, name)


def test_frames_are_cut_in_the_middle_to_the_aspect_and_shrunk():
    # 48 x 32 holds 48 x 24 of aspect 2: rows 4 to 27, by 2/3 in size. Columns 0-15 are red: 10.67 of 32.
    frames = torch.zeros(1, 3, 32, 48)
    frames[:, :, :4] = 1
    frames[:, 0, 4:28, :16] = 0.6
    out = fit(frames, FRAMING)
    assert out.shape == (1, 3, 16, 32)
    torch.testing.assert_close(out[0, 0, :, :10], torch.full((16, 10), 0.6), rtol=0, atol=0.05)
    assert not out[0, 1:].any() and out[0, 0, :, 12:].max() < 1e-6


def test_the_first_frame_of_each_clip_is_encoded_once_for_one_network_and_size(tmp_path):
    scenes, cache = [scene(tmp_path, "a"), scene(tmp_path, "b", frames=7)], TensorCache(tmp_path / "cache")
    seen: list[Tensor] = []

    def encode(first_BCHW: Tensor) -> dict[str, Tensor]:
        seen.append(first_BCHW)
        return {"image": first_BCHW[:, :, None]}

    stage = image_stage("vae", lambda: encode)
    assert list(stage.run(cache, scenes)) == scenes and list(stage.run(cache, scenes)) == scenes
    assert len(seen) == 2
    entry = stage.load(cache, scenes[1])
    assert entry is not None and torch.equal(entry["image"], scenes[1].first()[:, None])
    assert torch.equal(scenes[1].first(), scenes[1].frames()[0])
    assert image_stage("another vae", lambda: encode).load(cache, scenes[1]) is None
    longer = scene(tmp_path, "b", frames=7, framing=Framing(32, 16, 7, 8.0))
    assert stage.load(cache, longer) is None


def test_prompts_are_embedded_once_whatever_the_video(tmp_path):
    frames = torch.zeros(1, 3, 4, 4)
    scenes = [ShownScene("a", "smiles", frames), ShownScene("b", "smiles", frames + 1)]
    prompts: list[str] = []
    stage = text_stage("umt5", lambda: lambda prompt: prompts.append(prompt) or torch.ones(4, 8))
    cache = TensorCache(tmp_path / "cache")
    list(stage.run(cache, scenes))
    entry = stage.load(cache, scenes[1])
    assert prompts == ["smiles"] and entry is not None and entry["text"].shape == (4, 8)


def test_a_folder_gives_its_videos_and_a_text_beside_one_its_prompt(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        scene(tmp_path / folder, "walk")
    scene(tmp_path / "one", "turn")
    (tmp_path / "one" / "walk.txt").write_text("a person walks\n")
    found = clip_scenes([tmp_path / "one", tmp_path / "two" / "walk.mp4"], FRAMING)
    # Two clips of one name are told apart by their folders.
    told = [("turn", ""), ("one walk", "a person walks"), ("two walk", "")]
    assert [(one.name, one.prompt) for one in found] == told
    (tmp_path / "three").mkdir()
    with pytest.raises(ValueError, match="three holds no video"):
        clip_scenes([tmp_path / "three"], FRAMING)


def test_a_short_or_missing_clip_is_named(tmp_path):
    short = scene(tmp_path, "short", frames=3)
    with pytest.raises(ValueError, match=r"short\.mp4 is too short: 5 frames at 8 per second .*3 are there"):
        short.frames()
    with pytest.raises(ValueError, match=r"short\.mp4 is too short, 0\.4 seconds: 5 frames"):
        clip_scenes([short.clip.video], FRAMING)
    assert len(clip_scenes([short.clip.video], Framing(32, 16, 3, 8.0))[0].frames()) == 3
    with pytest.raises(ValueError, match=r"nowhere\.mp4"):
        clip_scenes([tmp_path / "nowhere.mp4"], FRAMING)


def test_the_faces_stage_keeps_the_pool_that_the_clip_gives(tmp_path):
    models = load_face_models(write_pack(tmp_path / "pack"))
    frames = red_cells([[(1, 1)], [], [(2, 1)], [(2, 1)], [(1, 1)]])
    write_video(tmp_path / "faces.mp4", frames, fps=8, crf=1)
    shown = ClipScene(Clip(tmp_path / "faces.mp4"), FRAMING, "faces")
    cache, stage = TensorCache(tmp_path / "cache"), faces_stage("pack", lambda: models)
    list(stage.run(cache, [shown]))
    entry = stage.load(cache, shown)
    assert entry is not None
    (pool,) = pools_of(entry, models[1].name, "faces")
    again = build_pool(read_frames(shown.clip.video), *models, source="faces")
    assert pool.frames_P.tolist() == [0, 2, 3, 4] and pool.seen_T.tolist() == [True, False, True, True, True]
    assert torch.equal(pool.embeddings_PD, again.embeddings_PD) and torch.equal(pool.boxes_P4, again.boxes_P4)
    assert (pool.source, pool.recognizer) == (again.source, again.recognizer)


def test_the_whole_clip_is_encoded_for_methods_that_learn_from_it(tmp_path):
    one, cache = scene(tmp_path, "a"), TensorCache(tmp_path / "cache")
    stage = video_stage("vae", lambda: lambda frames_BTCHW: frames_BTCHW.transpose(1, 2))
    assert list(stage.run(cache, [one])) == [one]
    entry = stage.load(cache, one)
    assert entry is not None and torch.equal(entry["video"], one.frames().transpose(0, 1))
    assert video_stage("another vae", stage.open).load(cache, one) is None


def test_of_two_videos_the_scene_shows_the_preferred_one_after_the_image(tmp_path):
    liked, other = scene(tmp_path, "liked", prompt="a bar"), scene(tmp_path, "other", frames=6)
    write_picture(tmp_path / "input.png", torch.full((3, 32, 48), 0.25))
    shown = PreferredScene(liked, other, tmp_path / "input.png")
    assert (shown.name, shown.prompt) == ("liked", "a bar")
    assert torch.equal(shown.frames(), liked.frames())
    torch.testing.assert_close(shown.first(), torch.full((3, 16, 32), 0.25), rtol=0, atol=0.01)
    assert torch.equal(PreferredScene(liked, other, None).first(), liked.first())
    keys = [shown.key(), PreferredScene(liked, other, None).key(), PreferredScene(liked, liked, None).key()]
    assert keys[0] != keys[1] != keys[2] != liked.key()
