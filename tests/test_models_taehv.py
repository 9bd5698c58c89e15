"""The draft codec: equal to ComfyUI's own module, its gradient to finite differences, its files checked."""

import pytest
import torch
from comfyui import find_comfyui, run_in_comfyui
from safetensors.torch import load_file, save_file

from ipro_core.models import taehv
from ipro_core.models.base import pullback_by_autograd
from ipro_core.models.taehv import TinyAutoencoder, load_draft_codec
from ipro_core.models.vae_files import statistics

KINDS = [("taew2_1", 16, 1), ("taew2_2", 48, 2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, channels, patch in KINDS:
        torch.manual_seed(channels)
        save_file(TinyAutoencoder(channels, patch).state_dict(), folder / f"{name}.safetensors")
    return folder


def latents_of(channels: int, count: int = 2) -> torch.Tensor:
    return torch.randn(1, channels, count, 2, 3, generator=torch.Generator().manual_seed(1))


def frames_of(patch: int) -> torch.Tensor:
    return torch.rand(1, 5, 3, 16 * patch, 8 * patch, generator=torch.Generator().manual_seed(2))


COMFY = """
import sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import torch
from comfy.taesd.taehv import TAEHV
from safetensors.torch import load_file, save_file
for name, channels in (("taew2_1", 16), ("taew2_2", 48)):
    network = TAEHV(latent_channels=channels, latent_format=None)
    network.load_state_dict(load_file(f"{sys.argv[2]}/{name}.safetensors"), strict=True)
    given = load_file(f"{sys.argv[2]}/{name}.inputs.safetensors")
    with torch.no_grad():
        decoded = network.decode(given["latents"].clone())
        encoded = network.encode(given["frames"].movedim(1, 2).clone())
    decoded, encoded = decoded.contiguous(), encoded.contiguous()
    save_file({"decoded": decoded, "encoded": encoded}, f"{sys.argv[2]}/{name}.outputs.safetensors")
"""


def test_it_decodes_and_encodes_as_comfyuis_own_module(files):
    host = find_comfyui("comfy/taesd/taehv.py")
    for name, channels, patch in KINDS:
        inputs = {"latents": latents_of(channels), "frames": frames_of(patch)}
        save_file(inputs, files / f"{name}.inputs.safetensors")
    run_in_comfyui(COMFY, host, files)
    for name, channels, patch in KINDS:
        codec, expected = (
            load_draft_codec(files / f"{name}.safetensors"),
            load_file(files / f"{name}.outputs.safetensors"),
        )
        decoded = codec.decode(latents_of(channels))
        torch.testing.assert_close(decoded, expected["decoded"].movedim(2, 1), atol=1e-5, rtol=1e-5)
        encoded = codec.encode(frames_of(patch))
        torch.testing.assert_close(encoded, expected["encoded"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "channels", "patch"), KINDS)
def test_shapes_are_those_of_wans_own_codec_and_one_frame_is_a_video(files, name, channels, patch):
    codec = load_draft_codec(files / f"{name}.safetensors")
    assert codec.decode(latents_of(channels)).shape == (1, 5, 3, 16 * patch, 24 * patch)
    assert codec.decode(latents_of(channels, 1)).shape == (1, 1, 3, 16 * patch, 24 * patch)
    assert codec.encode(frames_of(patch)).shape == (1, channels, 2, 2, 1)
    assert codec.encode(frames_of(patch)[:, :1]).shape == (1, channels, 1, 2, 1)
    with pytest.raises(ValueError, match=r"1, 5, 9, … frames .* not 4 frames"):
        codec.encode(frames_of(patch)[:, :4])


@pytest.mark.parametrize(("name", "channels", "patch"), KINDS)
def test_pieces_of_a_video_are_decoded_as_the_whole(files, name, channels, patch, monkeypatch):
    codec, latents = load_draft_codec(files / f"{name}.safetensors"), latents_of(channels, 5)
    monkeypatch.setattr(taehv, "PIECE", 99)
    whole = codec.decode(latents)
    for size in (1, 2):
        monkeypatch.setattr(taehv, "PIECE", size)
        torch.testing.assert_close(codec.decode(latents), whole, atol=1e-5, rtol=1e-5)


def test_light_files_work_in_the_encoders_units(files):
    # The same weights once trained on raw latents z: decode(x) = network(x · std + mean).
    raw = load_draft_codec(files / "taew2_1.safetensors", latents="raw")
    plain, latents = load_draft_codec(files / "taew2_1.safetensors"), latents_of(16)
    mean, std = statistics(16, latents)
    assert torch.equal(raw.decode(latents), plain.decode(latents * std + mean))
    torch.testing.assert_close(raw.encode(frames_of(1)) * std + mean, plain.encode(frames_of(1)))
    light = files / "lighttaew2_1_bf16.safetensors"
    light.write_bytes((files / "taew2_1.safetensors").read_bytes())
    assert load_draft_codec(light).raw and not plain.raw
    assert not load_draft_codec(light, latents="normalised").raw


def test_the_gradient_is_that_of_finite_differences(files):
    codec = load_draft_codec(files / "taew2_1.safetensors", dtype=torch.float64)
    latents = latents_of(16).double()
    frames = codec.decode(latents)
    gradient, step = torch.randn_like(frames), torch.randn_like(latents)
    slope = (
        gradient * (codec.decode(latents + 1e-6 * step) - codec.decode(latents - 1e-6 * step))
    ).sum() / 2e-6
    pulled = codec.pullback(latents, gradient)
    torch.testing.assert_close((pulled * step).sum(), slope, rtol=1e-6, atol=0)
    assert torch.equal(pulled, pullback_by_autograd(codec, latents, gradient))


@pytest.mark.parametrize(
    "fault", ["lacks decoder.3", "is no tiny autoencoder", "cannot be read", "There is no"]
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(files, tmp_path, fault):
    tensors, path = load_file(files / "taew2_1.safetensors"), tmp_path / "net.safetensors"
    if fault == "lacks decoder.3":
        del tensors["decoder.3.conv.0.bias"]
    elif fault == "is no tiny autoencoder":
        tensors["decoder.1.weight"] = torch.zeros(256, 32, 3, 3)  # HunyuanVideo 1.5's
    if fault != "There is no":
        save_file(tensors, path)
    if fault == "cannot be read":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=fault):
        load_draft_codec(path)
