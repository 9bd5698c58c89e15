"""Quick pieces of docs/real_clips.py: the codec is TAEF2, the windows suit faces, nobody is on both sides."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity, interpolate

from docs import real_clips
from ipro_core.clips.video import read_frames, read_image
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.tracks import person_faces
from ipro_core.models.wan import load_video_model
from ipro_core.models.wan_files import save_wan_file

SHARED = Path(__file__).resolve().parents[2] / "shared"
MEDIA = SHARED / "media"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: real clips and networks"),
]


@pytest.fixture(scope="module")
def codec():
    return real_clips.TinyImageCodec(SHARED / "weights/codec")


@pytest.fixture(scope="module")
def faces():
    return load_face_models(SHARED / "weights/insightface/models/antelopev2", long_sides=(320,))


@pytest.fixture(scope="module")
def portrait_CHW():
    picture_CHW = read_image(MEDIA / "stills/lacamoire_1.png")
    side = min(picture_CHW.shape[1:])
    square = picture_CHW[None, :, :side, :side]
    return interpolate(square, (256, 256), mode="bilinear", antialias=True)[0]


def test_the_codec_gives_a_portrait_back_and_keeps_who_it_is(codec, faces, portrait_CHW):
    returned_CHW = codec.decode(codec.encode(portrait_CHW[None, None]))[0, 0].detach()
    # 37.4 dB at 256 px is TAEF2's figure; with 8 groups in its norms instead of 4 this picture has 32.
    assert -10 * math.log10((returned_CHW - portrait_CHW).square().mean()) > 37
    before, after = person_faces(torch.stack([portrait_CHW, returned_CHW.clamp(0, 1)]), *faces).embeddings_TD
    assert cosine_similarity(before, after, dim=0) > 0.97


def test_the_codecs_pullback_is_the_slope_of_decode(codec):
    generator = torch.Generator().manual_seed(0)
    latents, direction = torch.randn(2, 1, 32, 2, 4, 4, generator=generator).double()
    codec64 = real_clips.TinyImageCodec(SHARED / "weights/codec")
    codec64.decoder = {name: tensor.double() for name, tensor in codec.decoder.items()}
    gradient = torch.randn(codec64.decode(latents).shape, generator=generator).double()

    def inner(step):
        return (gradient * codec64.decode(latents + step * direction)).sum()

    # A small step, because each of the ReLUs that it crosses adds its kink; float64 leaves it seven digits.
    slope = (inner(1e-8) - inner(-1e-8)) / 2e-8
    assert (codec64.pullback(latents, gradient) * direction).sum() == pytest.approx(slope.item(), rel=1e-5)


def test_windows_are_square_and_show_the_face_large_enough_to_read(faces):
    detector, _ = faces
    frames_TCHW = read_frames(MEDIA / "clips/walk_lp_s18.mp4", 0, 5, fps=real_clips.FPS, max_side=960)
    boxes_T4 = torch.stack([found[0].box_4 for found in detector.detect(frames_TCHW)])
    window_TCHW = real_clips.cut(frames_TCHW, boxes_T4)
    assert window_TCHW.shape == (5, 3, real_clips.SIDE, real_clips.SIDE)
    seen = torch.stack([found[0].box_4 for found in detector.detect(window_TCHW)])
    # 96 px / 2.1 face widths = 46 px; the recogniser reads who it is from 40 px on.
    assert real_clips.widths(seen).mean().item() == pytest.approx(46, abs=4)


def test_nobody_is_both_trained_on_and_held_out(faces):
    people = {**real_clips.TRAINED, **real_clips.HELD_OUT}
    assert not real_clips.TRAINED.keys() & real_clips.HELD_OUT.keys()
    # One frame of each file: strangers stay below 0.34 (300 labelled pairs), cuts of one recording above.
    face = {
        file: person_faces(read_frames(MEDIA / file, 0, 1, max_side=640), *faces).embeddings_TD[0]
        for file in (file for files in people.values() for file in files)
    }
    of = {file: person for person, files in people.items() for file in files}
    for a, b in product(face, face):
        assert (face[a] @ face[b] > 0.34) == (of[a] == of[b]), f"{a} and {b}"


def test_the_models_file_opens_as_any_wan_file_and_begins_by_holding_the_picture(tmp_path):
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    torch.manual_seed(0)
    network = WanTransformer3DModel(**real_clips.SHAPE)
    real_clips.begin_still(network)
    save_wan_file(network, tmp_path / "base.safetensors")
    model = load_video_model(tmp_path / "base.safetensors")
    first = torch.randn(2, 32, 4, 4)
    told = real_clips.hold(first)
    assert torch.equal(told.image_BCTHW[:, 4:, -1], first)  # held to the last frame
    assert told.image_BCTHW[:, :4].sum(dim=(1, 3, 4)).tolist() == [[64.0, 0, 0, 0, 0]] * 2  # 4 masks of 4 x 4
    held = told.image_BCTHW[:, 4:]
    noise = torch.randn_like(held)
    v = model.velocity(0.375 * held + 0.625 * noise, 0.625, told)
    # Towards the held picture, v = noise − c, but for what the last LayerNorm and its shift change.
    assert cosine_similarity(v.flatten(), (noise - held).flatten(), dim=0) > 0.95
