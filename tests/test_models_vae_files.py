"""The autoencoders' files: two names for every tensor, every layout, damaged ones refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from vae_networks import CHANNELS, KINDS, SCALE, network, official_tensors

from ipro_core.models.vae import load_vae
from ipro_core.models.vae_keys import to_diffusers


@pytest.mark.parametrize(("kind", "count"), [("2.1", 194), ("2.2", 196)])
def test_the_names_are_a_bijection(kind, count):
    names = list(official_tensors(kind))
    assert len(set(names)) == count  # of the released files
    assert [to_diffusers(name, residual=kind == "2.2") for name in names] == list(network(kind).state_dict())
    with pytest.raises(KeyError):
        to_diffusers("decoder.middle.3.residual.0.gamma", residual=kind == "2.2")


def test_the_names_agree_with_diffusers_own_converter():
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers  # knows Wan 2.1 only

    converted = convert_wan_vae_to_diffusers(official_tensors("2.1"))
    wanted = network("2.1").state_dict()
    assert converted.keys() == wanted.keys() and all(
        torch.equal(converted[key], wanted[key]) for key in wanted
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["", "vae.", "first_stage_model.", "diffusers file", "diffusers folder"])
def test_every_layout_gives_the_same_network(tmp_path, kind, layout):
    path, tensors = tmp_path / "vae.safetensors", network(kind).state_dict()
    if layout.startswith("diffusers"):
        place = tmp_path / "vae" / "diffusion_pytorch_model.safetensors" if "folder" in layout else path
        place.parent.mkdir(exist_ok=True)
        path = tmp_path if "folder" in layout else path
        save_file(tensors, place)
    else:
        stored = {layout + name: tensor for name, tensor in official_tensors(kind).items()}
        others = {"model.diffusion_model.head.head.weight": torch.zeros(1)} if "first" in layout else {}
        save_file(stored | others, path)
    loaded = load_vae(path)
    state = loaded.network.state_dict()
    assert state.keys() == tensors.keys() and all(torch.equal(state[key], tensors[key]) for key in tensors)
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert loaded.network.config.patch_size == network(kind).config.patch_size
    assert loaded.channels == CHANNELS[kind] and loaded.decoder.scale == SCALE[kind]


def change(tensors: dict[str, Tensor], fault: str) -> None:
    if fault == r"lacks decoder\.mid":
        del tensors["decoder.middle.0.residual.2.bias"]
    elif fault == r"has unknown decoder\.extra":
        tensors["decoder.extra.weight"] = torch.zeros(1)
    elif fault == "has misshapen decoder":
        tensors["decoder.middle.0.residual.2.bias"] = torch.zeros(5)
    elif fault == "is quantised":
        tensors["conv1.weight"] = tensors["conv1.weight"].to(torch.float8_e4m3fn)
    elif fault == "not finite":
        tensors["conv1.weight"] = torch.full_like(tensors["conv1.weight"], torch.nan)
    elif fault == "takes 4 channels to 16":  # a VAE with transparency has this shape
        tensors["encoder.conv1.weight"] = torch.zeros(2, 4, 3, 3, 3)
    elif fault == "is no Wan autoencoder":
        del tensors["decoder.conv1.weight"]


@pytest.mark.parametrize(
    "fault",
    [
        r"lacks decoder\.mid",
        r"has unknown decoder\.extra",
        "has misshapen decoder",
        "is quantised",
        "not finite",
        "takes 4 channels to 16",
        "is no Wan autoencoder",
        "cannot be read",
        "There is no",
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path, fault):
    path, tensors = tmp_path / "vae.safetensors", official_tensors("2.1")
    change(tensors, fault)
    if fault != "There is no":
        save_file(tensors, path)
    if fault == "cannot be read":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=fault) as caught:
        load_vae(path)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
