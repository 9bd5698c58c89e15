"""Wan networks: names, loading, v_θ and v_ref, against diffusers itself and against plain autograd."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_sampling_gradient import collect, plain_autograd
from torch import Tensor
from toys import WAN_CONDITION, WAN_X, ToyCodec, save_tiny_wan, tiny_adapter, tiny_wan, toy_score

from ipro_core.models.condition import image_condition
from ipro_core.models.wan import TARGETS, load_video_model
from ipro_core.models.wan_keys import to_diffusers, to_official
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.gradient import reward_gradient


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("models") / "tiny.safetensors")


def test_the_names_are_a_bijection_and_agree_with_diffusers_own_converter():
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    state = tiny_wan().state_dict()
    official = {to_official(key): tensor for key, tensor in state.items()}
    assert len(official) == len(state)
    assert [to_diffusers(key) for key in official] == list(state)
    converted = convert_wan_transformer_to_diffusers(dict(official))
    assert all(torch.equal(converted[key], tensor) for key, tensor in state.items())
    assert to_diffusers("blocks.3.norm3.bias") == "blocks.3.norm2.bias"
    with pytest.raises(KeyError):
        to_diffusers("blocks.0.cross_attn.q_img.weight")


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_a_loaded_network_is_diffusers_own(network_file, tmp_path, prefix):
    tensors = {prefix + key: tensor for key, tensor in load_file(network_file).items()}
    save_file(tensors, tmp_path / "net.safetensors")
    model = load_video_model(tmp_path / "net.safetensors", num_heads=2)
    x_in = torch.cat([WAN_X, WAN_CONDITION.image_BCTHW], dim=1)
    t_B = torch.full((2,), 625.0)
    expected = tiny_wan()(x_in, t_B, WAN_CONDITION.text_BLD, return_dict=False)[0]
    assert torch.equal(model.velocity(WAN_X, 0.625, WAN_CONDITION), expected)
    assert not any(parameter.requires_grad for parameter in model.transformer.parameters())


def test_the_number_of_heads_comes_from_the_file_or_is_asked_for(network_file, tmp_path):
    assert load_video_model(network_file).transformer.config.num_attention_heads == 2
    save_file(load_file(network_file), tmp_path / "plain.safetensors")  # without metadata: 32 wide, under 128
    with pytest.raises(ValueError, match=r"32 wide, .* give num_heads"):
        load_video_model(tmp_path / "plain.safetensors")


def change(tensors: dict[str, Tensor], fault: str) -> None:
    if fault == "lacks":
        del tensors["blocks.1.ffn.0.bias"]
    elif fault == "has unknown":
        tensors["blocks.1.extra.weight"] = torch.zeros(1)
    elif fault == "has misshapen":
        tensors["blocks.1.ffn.0.bias"] = torch.zeros(5)
    elif fault == "no Wan network":
        del tensors["head.head.weight"]


@pytest.mark.parametrize(
    "fault",
    [
        "lacks",
        "has unknown",
        "has misshapen",
        "no Wan network",
    ],
)
def test_a_wrong_file_is_named_with_its_fault(network_file, tmp_path, fault):
    tensors = load_file(network_file)
    change(tensors, fault)
    save_file(tensors, tmp_path / "wrong.safetensors", metadata={"num_heads": "2"})
    with pytest.raises(ValueError, match=f"wrong.safetensors .*{fault}"):
        load_video_model(tmp_path / "wrong.safetensors")


def test_missing_and_damaged_files_are_told_in_one_sentence(network_file, tmp_path):
    with pytest.raises(ValueError, match="no video model at"):
        load_video_model(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(network_file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_video_model(tmp_path / "cut.safetensors")


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_one_seed(network_file):
    model = load_video_model(network_file)
    base = model.velocity(WAN_X, 0.5, WAN_CONDITION)
    random_state = torch.get_rng_state()
    model.new_adapter(rank=4, seed=7)
    assert torch.equal(torch.get_rng_state(), random_state)
    first = {name: parameter.detach().clone() for name, parameter in model.adapter_parameters().items()}
    assert torch.equal(model.velocity(WAN_X, 0.5, WAN_CONDITION), base)
    assert len(first) == 2 * len(TARGETS) * 2  # two halves, ten layers, two blocks
    model.new_adapter(rank=4, seed=7)
    assert all(torch.equal(first[name], parameter) for name, parameter in model.adapter_parameters().items())


def test_v_ref_is_the_base_with_frozen_adapters_left_on(network_file):
    model = load_video_model(network_file)
    base = model.velocity(WAN_X, 0.5, WAN_CONDITION)
    model.place_adapter(tiny_adapter(model, seed=4), frozen=True)
    distilled = model.velocity(WAN_X, 0.5, WAN_CONDITION)
    assert not torch.allclose(distilled, base, atol=1e-3)
    model.place_adapter(tiny_adapter(model, seed=8))
    tuned = model.velocity(WAN_X, 0.5, WAN_CONDITION)
    assert not torch.allclose(tuned, distilled, atol=1e-3)
    assert torch.equal(model.frozen_velocity(WAN_X, 0.5, WAN_CONDITION), distilled)
    assert torch.equal(model.velocity(WAN_X, 0.5, WAN_CONDITION), tuned)
    trainable = [parameter for parameter in model.transformer.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trainable} == {id(p) for p in model.adapter_parameters().values()}


def test_an_error_inside_v_ref_leaves_the_adapter_on(network_file):
    model = load_video_model(network_file)
    model.place_adapter(tiny_adapter(model))
    tuned = model.velocity(WAN_X, 0.5, WAN_CONDITION)
    with pytest.raises(RuntimeError):
        model.frozen_velocity(WAN_X[:, :3], 0.5, WAN_CONDITION)
    assert torch.equal(model.velocity(WAN_X, 0.5, WAN_CONDITION), tuned)


def test_a_bfloat16_network_keeps_a_float32_adapter(network_file):
    model = load_video_model(network_file, dtype=torch.bfloat16)
    model.new_adapter(rank=2)
    assert {parameter.dtype for parameter in model.adapter_parameters().values()} == {torch.float32}
    assert model.velocity(WAN_X, 0.5, WAN_CONDITION).dtype == torch.float32


class Conditioned:
    """The model with its condition built in, for a reference that knows of none."""

    def __init__(self, model):
        self.model = model
        self.adapter_parameters = model.adapter_parameters

    def velocity(self, x, sigma, _):
        return self.model.velocity(x, sigma, WAN_CONDITION)

    def frozen_velocity(self, x, sigma, _):
        return self.model.frozen_velocity(x, sigma, WAN_CONDITION)


@pytest.mark.parametrize("through", ["detached", "exact", "biased"])
def test_the_chain_through_a_wan_network_equals_plain_autograd(network_file, through):
    codec, sigmas = ToyCodec(dtype=torch.float32), shifted_sigmas(4, 5.0)
    plain, chained = (load_video_model(network_file) for _ in range(2))
    for model in (plain, chained):
        model.place_adapter(tiny_adapter(model))
    plain_autograd(Conditioned(plain), codec, toy_score, WAN_X, sigmas, 3, 1.0, 1.0, "sigma", through)
    reward_gradient(
        chained,
        codec,
        toy_score,
        WAN_X,
        WAN_CONDITION,
        sigmas,
        grad_steps=3,
        reward_weight=1.0,
        kl_through=through,
    )
    expected = collect(plain)
    assert (collect(chained) - expected).norm() <= 1e-5 * expected.norm()


def test_the_image_condition_is_a_mask_and_the_clip_of_the_first_frame():
    codec = ToyCodec(dtype=torch.float32)
    first_BCHW = 0.2 + 0.5 * torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    image = image_condition(codec, first_BCHW, frames=3)
    assert image.shape == (2, 4 + 4, 3, 4, 4)
    assert torch.equal(image[:, :4].amin(dim=(0, 1, 3, 4)), torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(image[:, :4].amax(dim=(0, 1, 3, 4)), torch.tensor([1.0, 0.0, 0.0]))
    decoded = codec.decode(image[:, 4:])
    torch.testing.assert_close(decoded[:, 0], first_BCHW)
    torch.testing.assert_close(decoded[:, 1:], torch.full((2, 2, 3, 4, 4), 0.5))


def test_targets_are_the_authors_layers(network_file):
    pattern = re.compile(r"blocks\.\d\.(self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02])\.lora_[AB]\.weight")
    model = load_video_model(network_file)
    model.new_adapter(rank=1)
    assert all(pattern.fullmatch(name) for name in model.adapter_parameters())
