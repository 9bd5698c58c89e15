"""LoRA files: written as ComfyUI wants them, read however they are named, refused when they do not fit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import WAN_CONDITION, WAN_X, draw, save_tiny_wan, tiny_adapter

from ipro_core.models.frozen import FrozenLinear, StoredWeight
from ipro_core.models.lora import export_lora, import_lora, lora_settings
from ipro_core.models.lora_keys import read_content
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
    assert import_lora(path, fresh) == {}
    assert torch.equal(fresh.velocity(WAN_X, 0.5, WAN_CONDITION), expected)
    export_lora(fresh, path.with_name("again.safetensors"), {"recipe": "paper"})
    again, written = load_file(path.with_name("again.safetensors")), load_file(path)
    assert again.keys() == written.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in written.items())


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
        (
            "blocks.7.self_attn.q.lora_A.weight",
            (2, 32),
            r"blocks.7.self_attn.q.lora_A.weight \(no such layer",
        ),
        ("blocks.0.self_attn.q.diff_b", (32,), r"blocks.0.self_attn.q.bias \(a whole difference"),
        ("blocks.0.self_attn.q.lora_A.weight", (2, 64), r"blocks.0.self_attn.q.* \(2×64 and 32×2 for 32×32"),
        (
            "text_embedding.0.lora_A.weight",
            (2, 8),
            r"text_embedding.0.lora_A.weight \(the rest of it is miss",
        ),
        ("blocks.0.self_attn.q.dora_scale", (32, 1), r"blocks.0.self_attn.q.* \(DoRA"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_placed(exported, network_file, tmp_path, key, shape, told):
    save_file(
        load_file(exported[0]) | {f"diffusion_model.{key}": torch.zeros(shape)},
        tmp_path / "other.safetensors",
    )
    fresh = load_video_model(network_file)
    with pytest.raises(ValueError, match=f"other.safetensors is a LoRA of another model: .*{told}"):
        import_lora(tmp_path / "other.safetensors", fresh)
    assert not fresh.adapter_parameters()


def test_a_frozen_lora_changes_norms_and_biases_too_and_tells_what_it_did_not_use(
    exported, network_file, tmp_path, caplog
):
    whole = {
        "blocks.0.norm3": "blocks.0.norm3.weight",
        "head.head": "head.head.weight",
        "patch_embedding": "patch_embedding.weight",
    }
    before, fresh = load_file(network_file), load_video_model(network_file)
    differences = {key: draw(*before[name].shape, seed=1) for key, name in whole.items()}
    foreign, skipped = (
        "diffusion_model.blocks.0.cross_attn.k_img.diff_b",
        "diffusion_model.head.modulation.diff",
    )
    save_file(
        load_file(exported[0])
        | {f"diffusion_model.{key}.diff": tensor for key, tensor in differences.items()}
        | {"diffusion_model.blocks.1.ffn.0.diff_b": draw(48, seed=2), foreign: draw(32, seed=3)}
        | {skipped: draw(1, 2, 32, seed=4)},
        tmp_path / "frozen.safetensors",
    )
    unused = {foreign: "no such layer", skipped: "ComfyUI does not apply it either"}
    assert import_lora(tmp_path / "frozen.safetensors", fresh, frozen=True) == unused
    told = ", ".join(f"{key} ({reason})" for key, reason in unused.items())
    assert caplog.messages == [f"frozen.safetensors: 2 of 66 tensors are not used: {told}."]  # 60 + 3 + 3
    changed = {name: before[name] + differences[key] for key, name in whole.items()}
    changed["blocks.1.ffn.0.bias"] = before["blocks.1.ffn.0.bias"] + draw(48, seed=2)
    for name, expected in changed.items():
        assert torch.equal(getattr(*fresh._owners[name]), expected), name

    # The same network, changed beforehand, with the low-rank part alone: v_ref knows no difference.
    save_file(before | changed, tmp_path / "changed.safetensors")
    other = load_video_model(tmp_path / "changed.safetensors", num_heads=2)
    import_lora(exported[0], other, frozen=True)
    expected = other.frozen_velocity(WAN_X, 0.5, WAN_CONDITION)
    assert torch.equal(fresh.frozen_velocity(WAN_X, 0.5, WAN_CONDITION), expected)


def test_a_frozen_lora_of_which_nothing_fits_is_refused(network_file, tmp_path):
    save_file({"diffusion_model.blocks.9.ffn.0.diff_b": torch.ones(48)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="LoRA of another model"):
        import_lora(tmp_path / "other.safetensors", load_video_model(network_file), frozen=True)


def test_loha_lokr_and_a_convolutions_low_rank_are_whole_differences():
    a1, b1, a2, b2 = draw(6, 2, seed=1), draw(2, 8, seed=2), draw(6, 2, seed=3), draw(2, 8, seed=4)
    w1, up, down = draw(3, 2, seed=5), draw(4, 2, 1, 1, 1, seed=6), draw(2, 3, 1, 2, 2, seed=7)
    content = read_content(
        {
            "lora_unet_blocks_0_ffn_0.hada_w1_a": a1,
            "lora_unet_blocks_0_ffn_0.hada_w1_b": b1,
            "lora_unet_blocks_0_ffn_0.alpha": torch.tensor(1.0),
        }
        | {"lora_unet_blocks_0_ffn_0.hada_w2_a": a2, "lora_unet_blocks_0_ffn_0.hada_w2_b": b2}
        | {"head.head.lokr_w1": w1, "head.head.lokr_w2_a": a1[:2], "head.head.lokr_w2_b": b1[:, :4]}
        | {"patch_embedding.lora_up.weight": up, "patch_embedding.lora_down.weight": down},
        {
            "blocks.0.ffn.0.weight": (6, 8),
            "head.head.weight": (6, 8),
            "patch_embedding.weight": (4, 3, 1, 2, 2),
        },
        linears=("blocks.0.ffn.0", "head.head"),
    )
    assert not content.unused and not content.layers
    loha, lokr, convolution = content.differences.values()
    torch.testing.assert_close(loha, 0.5 * (a1 @ b1) * (a2 @ b2))  # alpha 1, rank 2
    # Block (i, j) of a Kronecker product is w1[i, j] · w2; there is no alpha.
    torch.testing.assert_close(lokr[2:4, 4:], w1[1, 1] * (a1[:2] @ b1[:, :4]))
    expected = torch.einsum("or,rihwd->oihwd", up[..., 0, 0, 0], down)
    torch.testing.assert_close(convolution, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_frozen_layer_takes_a_difference_in_its_numbers_or_beside_them(dtype):
    scale = torch.tensor(0.5) if dtype == torch.float8_e4m3fn else None
    layer = FrozenLinear(StoredWeight(draw(6, 4, seed=1).to(dtype), scale), None, in_features=4)
    wanted = layer.weight_in(torch.float32) + 2 * draw(6, 4, seed=2)
    layer.change(draw(6, 4, seed=2))
    layer.change(draw(6, 4, seed=2))
    # Two roundings to 8 bits each: within 2^-8 of the sum's largest part.
    tolerance = 0 if dtype == torch.float32 else 2**-8 * 12
    torch.testing.assert_close(layer.weight_in(torch.float32), wanted, rtol=1e-6, atol=max(tolerance, 1e-6))
    x = draw(3, 4, seed=3).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight_in(torch.float32).sum(0).expand(3, 4))


def test_a_runs_settings_travel_with_its_lora(exported, model, tmp_path):
    settings = {"rank": 2, "ipro": {"steps": 8, "shift": 5.0, "first_tuned_step": 3, "grad_steps": 4}}
    export_lora(model, tmp_path / "told.safetensors", {"ipro.settings": json.dumps(settings)})
    assert lora_settings(tmp_path / "told.safetensors") == settings
    assert lora_settings(exported[0]) == {}
    export_lora(model, tmp_path / "cut.safetensors", {"ipro.settings": json.dumps(settings)[:-1]})
    with pytest.raises(ValueError, match="damaged settings"):
        lora_settings(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="no LoRA at"):
        lora_settings(tmp_path / "absent.safetensors")


def test_a_lora_with_a_number_that_is_none_is_refused(exported, model):
    tensors = load_file(exported[0])
    tensors["diffusion_model.blocks.1.ffn.0.lora_B.weight"][3, 1] = float("nan")
    save_file(tensors, exported[0])
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.0\.lora_B\.weight is not finite"):
        import_lora(exported[0], model)


def test_missing_damaged_and_empty_files_are_told(model, tmp_path):
    with pytest.raises(ValueError, match="no LoRA at"):
        import_lora(tmp_path / "absent.safetensors", model)
    (tmp_path / "bad.safetensors").write_bytes(b"not a LoRA at all")
    with pytest.raises(ValueError, match="cannot be read as a LoRA"):
        import_lora(tmp_path / "bad.safetensors", model)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="it has no layer"):
        import_lora(tmp_path / "empty.safetensors", model)
