"""LoRA files: written as ComfyUI wants them, read however they are named, refused when they do not fit."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import WAN_CONDITION, WAN_X, save_tiny_wan, tiny_adapter

from ipro_core.models.lora import export_lora, import_lora
from ipro_core.models.wan import load_video_model
from ipro_core.models.wan_keys import to_diffusers


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture
def model(network_file):
    return load_video_model(network_file)


@pytest.fixture
def exported(model, tmp_path):
    """(file, velocity of the model it came from)."""
    model.place_adapter(tiny_adapter(model))
    export_lora(model, tmp_path / "lora.safetensors", {"recipe": "paper"})
    return tmp_path / "lora.safetensors", model.velocity(WAN_X, 0.5, WAN_CONDITION)


def test_a_lora_written_and_read_is_the_same_bit_for_bit(exported, network_file):
    path, expected = exported
    fresh = load_video_model(network_file)
    import_lora(path, fresh)
    assert torch.equal(fresh.velocity(WAN_X, 0.5, WAN_CONDITION), expected)


def test_the_file_has_comfyuis_names_an_alpha_and_where_it_came_from(exported, model):
    with safe_open(str(exported[0]), framework="pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
    layer = "diffusion_model.blocks.0.self_attn.q"
    assert {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.alpha"} <= keys
    assert len(keys) == 3 * 20
    assert metadata["recipe"] == "paper" and metadata["ipro.base"] == "tiny.safetensors"
    assert metadata["ipro.base_sha256"] == model.base_sha256 and len(model.base_sha256) == 64


def renamed(style: str, layer: str, half: str) -> str:
    down_up = {"lora_A": "lora_down", "lora_B": "lora_up"}[half]
    return {
        "comfyui, without prefix": f"{layer}.{half}.weight",
        "diffusers": f"transformer.{to_diffusers(layer)}.{half}.weight",
        "peft": f"base_model.model.{to_diffusers(layer)}.{half}.weight",
        "peft, adapter named": f"base_model.model.{layer}.{half}.default.weight",
        "lightning": f"diffusion_model.{layer}.{down_up}.weight",
        "kohya": f"lora_unet_{layer.replace('.', '_')}.{down_up}.weight",
        "musubi": f"lora_unet__{layer.replace('.', '_')}.{down_up}.weight",
    }[style]


@pytest.mark.parametrize(
    "style",
    ["comfyui, without prefix", "diffusers", "peft", "peft, adapter named", "lightning", "kohya", "musubi"],
)
def test_other_tools_names_are_read(exported, network_file, tmp_path, style):
    path, expected = exported
    tensors = {}
    for key, tensor in load_file(path).items():
        if not key.endswith(".alpha"):  # alpha = rank here: leaving it out changes nothing
            layer, half = key.removeprefix("diffusion_model.").removesuffix(".weight").rsplit(".", 1)
            tensors[renamed(style, layer, half)] = tensor
    save_file(tensors, tmp_path / "other.safetensors")
    fresh = load_video_model(network_file)
    import_lora(tmp_path / "other.safetensors", fresh)
    assert torch.equal(fresh.velocity(WAN_X, 0.5, WAN_CONDITION), expected)


def test_alpha_over_rank_scales_the_update(exported, model, network_file, tmp_path):
    # W' = W + alpha / rank · up · down with rank 2: alpha 8 on up is alpha 2 on 4 up.
    tensors = load_file(exported[0])
    times_four = {key: 4 * value if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file(times_four, tmp_path / "alpha.safetensors")
    import_lora(tmp_path / "alpha.safetensors", model)
    by_alpha = model.velocity(WAN_X, 0.5, WAN_CONDITION)
    times_four = {key: 4 * value if "lora_B" in key else value for key, value in tensors.items()}
    save_file(times_four, tmp_path / "up.safetensors")
    import_lora(tmp_path / "up.safetensors", model)
    torch.testing.assert_close(model.velocity(WAN_X, 0.5, WAN_CONDITION), by_alpha)


def test_a_rank_stabilised_scale_is_folded_into_alpha(exported, model, tmp_path):
    # Rank 2, alpha 2: scale = 2 / sqrt(2). ComfyUI divides by the rank: the file says 2 · 2 / sqrt(2).
    for layer in model.adapters.layers["ipro"].values():
        layer.scaling["ipro"] = 2 / 2**0.5
    export_lora(model, tmp_path / "stabilised.safetensors")
    alpha = load_file(tmp_path / "stabilised.safetensors")["diffusion_model.blocks.0.ffn.0.alpha"]
    assert alpha.item() == pytest.approx(2.8284271)


def test_a_frozen_lora_becomes_part_of_v_ref(exported, network_file):
    path, expected = exported
    fresh = load_video_model(network_file)
    import_lora(path, fresh, frozen=True)
    fresh.new_adapter(rank=3)
    assert torch.equal(fresh.frozen_velocity(WAN_X, 0.5, WAN_CONDITION), expected)
    assert all(len(low_rank.down_RI) == 3 for low_rank in fresh.adapter().values())


@pytest.mark.parametrize(
    "key, shape, told",
    [
        ("diffusion_model.blocks.7.self_attn.q.lora_A.weight", (2, 32), "blocks.7.self_attn.q.lora_A.weight"),
        ("diffusion_model.blocks.0.self_attn.q.diff_b", (32,), "diff_b"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", (2, 64), r"blocks.0.self_attn.q \(2×64"),
        ("diffusion_model.text_embedding.0.lora_A.weight", (2, 8), r"text_embedding.0 \(half"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_placed(exported, network_file, tmp_path, key, shape, told):
    save_file(load_file(exported[0]) | {key: torch.zeros(shape)}, tmp_path / "other.safetensors")
    fresh = load_video_model(network_file)
    with pytest.raises(ValueError, match=f"other.safetensors is a LoRA of another model: .*{told}"):
        import_lora(tmp_path / "other.safetensors", fresh)
    assert not fresh.adapter_parameters()


def test_missing_damaged_and_empty_files_are_told(model, tmp_path):
    with pytest.raises(ValueError, match="no LoRA at"):
        import_lora(tmp_path / "absent.safetensors", model)
    (tmp_path / "bad.safetensors").write_bytes(b"not a LoRA at all")
    with pytest.raises(ValueError, match="cannot be read as a LoRA"):
        import_lora(tmp_path / "bad.safetensors", model)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="it has no layer"):
        import_lora(tmp_path / "empty.safetensors", model)
