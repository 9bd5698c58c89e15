"""Text-image scorers: CLIP by file against transformers and a plain open_clip, pictures as CLIP sees them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_networks import SIZE, write_folder, write_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from ipro_core.scorer import load_image_encoder, load_scorer, look
from ipro_core.scorer_files import open_scorer_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("clip"))


def picture(height: int, width: int):
    """A smooth picture of 8 bits: what overshoots in bicubic resizing is cut there and not here."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    return ((torch.stack([y.sin(), x.cos(), (x + y).sin()]) * 0.4 + 0.5) * 255).round() / 255


@pytest.mark.parametrize(("height", "width"), [(70, 110), (100, 60), (32, 32), (20, 44)])
def test_pictures_are_resized_and_normalised_as_transformers_does(height, width):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    given = picture(height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    shown = Image.fromarray((given * 255).round().byte().movedim(0, -1).numpy())
    wanted = torch.from_numpy(np.asarray(processor(shown)["pixel_values"][0]))
    # It rounds to bytes after each of two passes; the second's weights, at most 1.25 in sum, carry the
    # first's half a byte on. All over the smallest standard deviation.
    assert (look(given[None], SIZE)[0] - wanted).abs().max() < (0.5 + 1.25 * 0.5) / 255 / 0.261


def test_a_padded_picture_is_whole_with_black_beside_it():
    # 64 x 32 in a square of 32: 32 x 16, eight black columns at each side; white is (1 - mean) / std.
    seen = look(torch.ones(1, 3, 64, 32), 32, pads=True)[0, 0]
    black, white = -0.48145466 / 0.26862954, (1 - 0.48145466) / 0.26862954
    torch.testing.assert_close(seen[:, :8], torch.full((32, 8), black))
    torch.testing.assert_close(seen[:, 24:], torch.full((32, 8), black))
    torch.testing.assert_close(seen[:, 8:24], torch.full((32, 16), white))


def test_a_folder_of_transformers_gives_its_own_models_cosine(folder):
    from transformers import CLIPModel

    scorer, model = load_scorer(folder), CLIPModel.from_pretrained(folder).eval()
    frames = torch.stack([picture(40, 60), picture(40, 60).flip(2)])
    # "ab" is the letters a and b</w>, which are words 0 and 27 of the vocabulary, between its two last.
    ids = torch.tensor([[52, 0, 27, 53]])
    with torch.no_grad():
        told = model(input_ids=ids, pixel_values=look(frames, SIZE))
    wanted = F.normalize(told.image_embeds, dim=1) @ F.normalize(told.text_embeds[0], dim=0)
    torch.testing.assert_close(scorer.values(frames, "ab"), wanted, rtol=1e-4, atol=1e-6)
    assert scorer.embed_images(frames).norm(dim=1).tolist() == pytest.approx([1, 1])
    assert len(scorer.embed_text("ab cd ef gh ij kl mn op")) == 16  # cut at the tower's length
    assert scorer.name.startswith("model.safetensors sha256:")
    assert scorer.scale == pytest.approx(model.logit_scale.exp().item())


def test_a_file_of_open_clip_gives_what_open_clip_computes(tmp_path):
    path, model = write_open_clip(tmp_path)
    scorer, frames = (
        load_scorer(path),
        torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        images, text = model.visual(look(frames, SIZE)), model.texts([52, 0, 27, 53])
    torch.testing.assert_close(scorer.embed_images(frames), F.normalize(images, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scorer.embed_text("ab"), F.normalize(text, dim=0), rtol=1e-4, atol=1e-5)
    assert scorer.scale == pytest.approx(model.logit_scale.exp().item())


def test_hpsv2_is_known_by_its_name_and_looks_at_whole_frames(tmp_path):
    path, _ = write_open_clip(tmp_path, "HPS_v2.1.safetensors")
    assert open_scorer_file(path).pads and load_scorer(path).pads


def test_values_are_differentiable_in_the_frames_in_chunks_as_at_once(folder):
    scorer = load_scorer(folder)
    frames = torch.stack([picture(48, 48) + 0.01 * n for n in range(5)])
    gradients = []
    for chunk in (2, 8):
        given = frames.clone().requires_grad_()
        (scorer.embed_images(given, chunk) @ scorer.embed_text("ab")).sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().sum() > 0


def test_an_image_tower_alone_embeds_pictures_and_scores_no_prompt(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("vision", "visual"))}
    save_file(kept, tmp_path / "clip_vision.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    encoder, frames = load_image_encoder(tmp_path / "clip_vision.safetensors"), picture(40, 40)[None]
    torch.testing.assert_close(encoder.embed_images(frames), load_scorer(folder).embed_images(frames))
    with pytest.raises(ValueError, match="no text tower"):
        encoder.values(frames, "ab")
    with pytest.raises(ValueError, match="image tower alone"):
        load_scorer(tmp_path / "clip_vision.safetensors")


def test_what_is_no_scorer_is_told_in_one_sentence(folder, tmp_path):
    for name, word in (
        ("HPS_v2.1_compressed.pt", "make one by python -c"),
        ("gone.safetensors", "There is no"),
    ):
        if word.startswith("make"):
            (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(ValueError, match=word):
            load_scorer(tmp_path / name)
    (tmp_path / "torn.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="cannot be read"):
        load_scorer(tmp_path / "torn.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no CLIP image tower"):
        load_scorer(tmp_path / "other.safetensors")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("vision_model.post_layernorm.weight")
    save_file(tensors, tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match=r"no tokeniser beside lacking.safetensors"):
        load_scorer(tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match="lacks 1 of CLIP's tensors"):
        load_image_encoder(tmp_path / "lacking.safetensors")


def test_an_activation_that_cannot_be_known_is_asked_for(tmp_path):
    path, _ = write_open_clip(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match="which activation"):
        open_scorer_file(path)
    told = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 32}, "text_cfg": {"heads": 4}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    assert open_scorer_file(path).vision["hidden_act"] == "quick_gelu"
