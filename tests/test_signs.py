"""Signs of a hack, by hand, and on a real face that is damaged."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ipro_core.clips.luma import luma
from ipro_core.clips.video import read_frames
from ipro_core.evaluation import corruptions
from ipro_core.evaluation.registering import unlike
from ipro_core.evaluation.signs import (
    Watched,
    block_steps,
    diversity,
    expression,
    flicker,
    growth,
    input_face,
    measure_signs,
    watch,
)
from ipro_core.faces.alignment import template
from ipro_core.faces.packs import load_face_models
from ipro_core.types import FaceTrack

SHARED = Path(__file__).resolve().parents[2] / "shared"


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

    def signs(shown: Watched | None = None) -> dict[str, float]:
        return measure_signs(shown or real, frames[0], reference_D, faces, real)

    def damaged(damage: corruptions.Corruption) -> dict[str, float]:
        return signs(watch(damage(frames, real.track), detector, recognizer, reference_D))

    known, pasted = signs(), damaged(corruptions.frozen_face)
    assert pasted["face_change"] < 0.5 * known["face_change"]
    assert pasted["copy_index"] > known["copy_index"] + 0.02
    assert damaged(corruptions.smoothed_face)["sharpness"] < 0.9 * known["sharpness"]
    assert damaged(corruptions.growing_face)["growth"] > 1.2 * known["growth"]
    assert luma(frames).shape == (len(frames), 384, 384)
