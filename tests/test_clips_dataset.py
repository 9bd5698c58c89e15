"""Clips made ready for training: every stage does its work once, and goes on where it was broken off."""

from pathlib import Path

import pytest
import torch
from face_networks import red_cells, write_pack
from torch import Tensor

from ipro_core.cache import TensorCache
from ipro_core.clips.dataset import Framing, faces_stage, image_stage, pool_of, text_stage
from ipro_core.clips.video import read_frames, write_video
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.pool import build_pool
from ipro_core.types import Clip

FRAMING = Framing(width=32, height=16, frames=5, fps=8.0)


def clip(folder: Path, name: str, frames: int = 5, prompt: str = "a person smiles") -> Clip:
    """Grey frames, the left third of each red; 48 x 32 px."""
    pixels = torch.full((frames, 3, 32, 48), 0.5)
    pixels[:, 0, :, :16], pixels[:, 1:, :, :16] = 0.9, 0.1
    write_video(folder / f"{name}.mp4", pixels, fps=8)
    return Clip(folder / f"{name}.mp4", prompt)


def test_frames_are_cut_in_the_middle_to_the_aspect_and_shrunk():
    # 48 x 32 holds 48 x 24 of aspect 2: rows 4 to 27, by 2/3 in size. Columns 0-15 are red: 10.67 of 32.
    frames = torch.zeros(1, 3, 32, 48)
    frames[:, :, :4] = 1
    frames[:, 0, 4:28, :16] = 0.6
    out = FRAMING.fit(frames)
    assert out.shape == (1, 3, 16, 32)
    torch.testing.assert_close(out[0, 0, :, :10], torch.full((16, 10), 0.6), rtol=0, atol=0.05)
    assert not out[0, 1:].any() and out[0, 0, :, 12:].max() < 1e-6


def test_a_stage_encodes_each_clip_once_and_goes_on_after_an_interruption(tmp_path):
    clips, cache = [clip(tmp_path, "a"), clip(tmp_path, "b", frames=7)], TensorCache(tmp_path / "cache")
    seen: list[int] = []

    def encode(first_BCHW: Tensor, frames: int) -> Tensor:
        seen.append(frames)
        return first_BCHW[:, :, None].expand(-1, -1, frames, -1, -1)

    stage = image_stage("vae", encode, FRAMING)
    run = stage.run(cache, clips)
    assert next(run) == clips[0]
    run.close()
    assert stage.load(cache, clips[1]) is None
    assert list(stage.run(cache, clips)) == clips and seen == [5, 5]
    entry = stage.load(cache, clips[1])
    assert entry is not None and entry["image"].shape == (3, 5, 16, 32)
    assert image_stage("another vae", encode, FRAMING).load(cache, clips[1]) is None
    assert image_stage("vae", encode, Framing(32, 16, 9, 8.0)).load(cache, clips[1]) is None


def test_prompts_are_embedded_once_whatever_the_video(tmp_path):
    clips = [Clip(tmp_path / "a.mp4", "smiles"), Clip(tmp_path / "b.mp4", "smiles")]
    prompts: list[str] = []
    stage = text_stage("umt5", lambda prompt: prompts.append(prompt) or torch.ones(4, 8))
    cache = TensorCache(tmp_path / "cache")
    list(stage.run(cache, clips))
    entry = stage.load(cache, clips[1])
    assert prompts == ["smiles"] and entry is not None and entry["text"].shape == (4, 8)


def test_a_short_or_missing_clip_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"short\.mp4 is too short: 5 frames at 8 per second .*3 are there"):
        FRAMING.read(clip(tmp_path, "short", frames=3))
    stage = image_stage("vae", lambda first, frames: first[:, :, None], FRAMING)
    with pytest.raises(ValueError, match=r"There is no video at .*nowhere\.mp4"):
        list(stage.run(TensorCache(tmp_path / "cache"), [Clip(tmp_path / "nowhere.mp4")]))


def test_the_faces_stage_keeps_the_pool_that_the_clip_gives(tmp_path):
    models = load_face_models(write_pack(tmp_path / "pack"))
    frames = red_cells([[(1, 1)], [], [(2, 1)], [(2, 1)], [(1, 1)]])
    write_video(tmp_path / "faces.mp4", frames, fps=8, crf=1)
    shown, cache = Clip(tmp_path / "faces.mp4"), TensorCache(tmp_path / "cache")
    stage = faces_stage(*models, FRAMING)
    list(stage.run(cache, [shown]))
    entry = stage.load(cache, shown)
    assert entry is not None
    pool = pool_of(entry, shown, models[1].name)
    again = build_pool(read_frames(shown.video), *models, source="faces.mp4")
    assert pool.frames_P.tolist() == [0, 2, 3, 4] and pool.seen_T.tolist() == [True, False, True, True, True]
    assert torch.equal(pool.embeddings_PD, again.embeddings_PD) and torch.equal(pool.boxes_P4, again.boxes_P4)
    assert (pool.source, pool.recognizer) == (again.source, again.recognizer)
