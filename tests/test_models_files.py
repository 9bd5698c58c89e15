"""Checkpoints as ComfyUI users have them: every layout loads exactly, every other file is told what it is."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import wan_layouts
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear
from wan_layouts import FP8, LAYOUTS, NEWER, OLDER, inputs, output, write_gguf, write_layout

from ipro_core.models.frozen import GGUF_SCALES, FrozenLinear, StoredWeight
from ipro_core.models.wan_files import load_transformer, open_wan_file
from ipro_core.models.wan_keys import to_diffusers

LAYER = "blocks.1.ffn.0.weight"
tiny_state = cache(wan_layouts.tiny_state)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as told:
        load_transformer(open_wan_file(path))
    message = str(told.value)
    assert path.name in message and "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_means_what_its_format_defines(layout, tmp_path):
    file = open_wan_file(write_layout(layout, tiny_state(), tmp_path / "wan.safetensors"))
    ours = load_transformer(file, dtype=torch.float32)
    expected = output(wan_layouts.network_of(wan_layouts.meaning(layout, tiny_state())), inputs())
    assert relative(output(ours, inputs()), expected) < 1e-5  # float32 rounding; the quantisation is in both
    linears = [module for module in ours.blocks.modules() if isinstance(module, FrozenLinear)]
    assert len(linears) == (20 if "fp8" in layout or layout in NEWER else 0)  # 10 in each block
    assert file.kind == "I2V-A14B"


@pytest.mark.parametrize("kind", wan_layouts.CHANNELS)
def test_the_header_tells_the_model_and_it_runs_as_diffusers_own(kind, tmp_path):
    file = open_wan_file(write_layout("fp32", tiny_state(kind), tmp_path / "wan.safetensors"))
    assert file.kind == kind
    expected = output(wan_layouts.tiny_network(kind), inputs(kind))
    # Not bit for bit: where a tensor lies in the mapped file decides in which order a kernel adds.
    assert relative(output(load_transformer(file), inputs(kind)), expected) < 1e-6


def test_the_expert_is_told_by_file_folder_or_metadata(tmp_path):
    tensors, _ = LAYOUTS["bf16"](tiny_state())
    names = {
        "wan2.2_i2v_low_noise_14B_fp8_scaled": "low",
        "Wan2_2-I2V-A14B-HIGH_bf16": "high",
        "Wan2.2-I2V-A14B-HighNoise-Q8_0": "high",
        "slowhigher": None,
    }
    for name, expert in names.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        told = open_wan_file(tmp_path / f"{name}.safetensors").kind
        assert told == (f"I2V-A14B {expert}" if expert else "I2V-A14B")
    (tmp_path / "low_noise_model").mkdir()
    save_file(tensors, tmp_path / "low_noise_model/wan.safetensors")
    assert open_wan_file(tmp_path / "low_noise_model/wan.safetensors").kind == "I2V-A14B low"
    save_file(tensors, tmp_path / "wan.safetensors", {"modelspec.title": "Wan2.2 high noise"})
    assert open_wan_file(tmp_path / "wan.safetensors").kind == "I2V-A14B high"


def test_a_diffusers_folder_with_shards_loads_and_a_missing_shard_is_named(tmp_path):
    folder = wan_layouts.write_folder(tiny_state(), tmp_path / "transformer_2")
    file = open_wan_file(folder)
    assert file.kind == "I2V-A14B low"
    expected = output(wan_layouts.network_of(wan_layouts.meaning("bf16", tiny_state())), inputs())
    assert relative(output(load_transformer(file, dtype=torch.float32), inputs()), expected) < 1e-6
    shard = sorted(folder.glob("*.safetensors"))[1]
    assert "one of several parts" in refusal(shard)
    shard.unlink()
    assert f"lacks {shard.name}" in refusal(folder)
    (tmp_path / "model_index.json").write_text("{}")
    assert "choose one of its networks, transformer_2" in refusal(tmp_path)


GGUF_NAMES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
]  # fmt: skip


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_gguf_blocks_are_dequantised_as_the_gguf_package_does(name):
    import gguf

    type = gguf.GGMLQuantizationType[name]
    blocks = wan_layouts.gguf_blocks(tiny_state()[LAYER], type)
    weight = StoredWeight(torch.from_numpy(blocks), gguf_type=int(type))
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, type))
    assert weight.shape == (512, 256) and weight.is_finite()
    torch.testing.assert_close(weight.dequantised(torch.float32), expected, rtol=1e-6, atol=1e-9)
    for at in GGUF_SCALES[int(type)]:  # a NaN in any scale of any block is seen
        broken = torch.from_numpy(blocks).reshape(-1, gguf.GGML_QUANT_SIZES[type][1]).clone()
        broken[3, at : at + 2] = torch.tensor([0, 126], dtype=torch.uint8)  # 0x7E00 is float16's NaN
        assert not StoredWeight(broken.reshape(512, -1), gguf_type=int(type)).is_finite()
    assert {int(gguf.GGMLQuantizationType[name]) for name in GGUF_NAMES} == GGUF_SCALES.keys()


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "BF16"])
def test_a_gguf_file_loads_with_its_patch_embedding(name, flattened, tmp_path):
    import gguf

    state = tiny_state()
    file = open_wan_file(write_gguf(state, tmp_path / "wan-LowNoise.gguf", name, flattened=flattened))
    assert (file.kind, file.shapes["patch_embedding.weight"]) == ("I2V-A14B low", (256, 36, 1, 2, 2))
    type, meant = gguf.GGMLQuantizationType[name], dict(state)
    for key, tensor in state.items():
        if wan_layouts.is_linear(key, tensor) and key.startswith("blocks."):
            meant[key] = torch.from_numpy(gguf.quants.dequantize(wan_layouts.gguf_blocks(tensor, type), type))
    ours = load_transformer(file, dtype=torch.float32)
    assert relative(output(ours, inputs()), output(wan_layouts.network_of(meant), inputs())) < 1e-5


def stored_weights() -> dict[str, StoredWeight]:
    import gguf

    matrix = tiny_state()[LAYER]
    weights = {
        "bf16": StoredWeight(matrix.bfloat16()),
        "fp8": StoredWeight(*wan_layouts.fp8_scaled(matrix)),
        "fp8, no scale": StoredWeight(matrix.to(FP8)),
        "int8": StoredWeight(*wan_layouts._int8(matrix, rows=True)),
        "int8 rotated": StoredWeight(*wan_layouts._int8_rotated(matrix), rotated=wan_layouts.HADAMARD),
    }
    for type in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q5_K):
        blocks = torch.from_numpy(wan_layouts.gguf_blocks(matrix, type))
        weights[type.name] = StoredWeight(blocks, gguf_type=int(type))
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_through_a_frozen_linear_is_the_dequantised_matrixs(dtype):
    draw = torch.Generator().manual_seed(1)
    x_BLI = torch.randn(2, 5, 256, generator=draw).to(dtype)
    gradient_BLO = torch.randn(2, 5, 512, generator=draw).to(dtype)
    bias = torch.randn(512, generator=draw).to(dtype)
    for weight in stored_weights().values():
        given, plain = x_BLI.clone().requires_grad_(), x_BLI.clone().requires_grad_()
        y = FrozenLinear(weight, bias, 256)(given)
        expected = linear(plain, weight.dequantised(dtype), bias)
        assert torch.equal(y, expected)
        y.backward(gradient_BLO)
        expected.backward(gradient_BLO)
        assert torch.equal(given.grad, plain.grad)


def test_moves_and_casts_leave_the_stored_bytes_alone():
    for weight in stored_weights().values():
        layer = FrozenLinear(weight, torch.zeros(512), 256)
        before = layer.weight_in(torch.float32)
        layer.half().to(torch.float64).to("cpu", torch.bfloat16)
        assert layer.stored.dtype == weight.stored.dtype and layer.bias.dtype == torch.bfloat16
        assert torch.equal(layer.weight_in(torch.float32), before)
        layer.to("meta", torch.float16)
        assert (layer.stored.device.type, layer.stored.dtype) == ("meta", weight.stored.dtype)


def test_a_quantised_network_computes_in_bfloat16_with_the_authors_float32(tmp_path):
    file = open_wan_file(write_layout("scaled_fp8", tiny_state(), tmp_path / "wan.safetensors"))
    ours = load_transformer(file)
    dtypes = {name: parameter.dtype for name, parameter in ours.named_parameters()}
    float32 = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert all(any(word in name for word in ("time_embedder", "scale_shift", "norm2")) for name in float32)
    assert len(float32) == 4 + 3 + 4  # time_embedder's; two blocks' tables and the head's; two norms
    assert dtypes["patch_embedding.weight"] == torch.bfloat16
    given = {name: tensor.bfloat16() if name != "t" else tensor for name, tensor in inputs().items()}
    exact = output(load_transformer(file, dtype=torch.float32), inputs())
    assert relative(output(ours, given).float(), exact) < 2e-2  # a few roundings of 2^-9 each
    # Whole in float16 when asked for; the stored bytes stay.
    half = load_transformer(file, dtype=torch.float16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert half.blocks[0].ffn.net[2].stored.dtype == FP8


def test_tensors_are_views_of_the_mapped_file(tmp_path):
    state, path = tiny_state(), tmp_path / "wan.safetensors"
    files = [
        open_wan_file(write_layout(layout, state, path.with_stem(layout))) for layout in ("bf16", "int8")
    ]
    files.append(open_wan_file(write_gguf(state, tmp_path / "wan.gguf", "Q8_0")))
    for file in files:
        layer = load_transformer(file).get_submodule(to_diffusers(LAYER.removesuffix(".weight")))
        held = layer.stored if isinstance(layer, FrozenLinear) else layer.weight
        assert held.data_ptr() == file.tensors[LAYER].read().data_ptr()


def test_every_key_is_used_or_left_aside_for_a_reason(tmp_path):
    tensors, _ = LAYOUTS["scaled_fp8"](tiny_state())
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(
        whole | {"first_stage_model.decoder.conv1.weight": torch.zeros(1)}, tmp_path / "whole.safetensors"
    )
    file = open_wan_file(tmp_path / "whole.safetensors")
    assert len(file.tensors) + len(file.scales) + len(file.ignored) == len(whole) + 1
    reasons = {key.rpartition(".")[2]: why for key, why in file.ignored.items()}
    assert reasons.keys() == {"scaled_fp8", "scale_input", "weight"}
    assert "activations" in reasons["scale_input"] and "VAE" in reasons["weight"]


def change(layout: str, **changes: Tensor | None) -> dict[str, Tensor]:
    tensors, _ = LAYOUTS[layout](tiny_state())
    return {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}


def note(format: str) -> Tensor:
    return torch.tensor(list(b'{"format": "%s"}' % format.encode()), dtype=torch.uint8)


NAN = torch.tensor(float("nan"))
LAYER_NOTE = LAYER.replace("weight", "comfy_quant")
DAMAGED = {
    "lacks blocks.1.ffn.0.weight": ("bf16", {LAYER: None}),
    "has unknown blocks.1.extra.weight": ("bf16", {"blocks.1.extra.weight": torch.zeros(1)}),
    "has misshapen blocks.1.ffn.0.weight": ("fp8 e4m3fn", {LAYER: torch.zeros(2, 2).to(FP8)}),
    "blocks.1.ffn.0.weight holds NaN": ("bf16", {LAYER: NAN.expand(512, 256).bfloat16().clone()}),
    "blocks.1.ffn.0.weight holds NaN or": (
        "fp8 e5m2",
        {LAYER: (NAN * torch.ones(512, 256)).to(torch.float8_e5m2)},
    ),
    "holds NaN or infinity": ("scaled_fp8", {LAYER.replace("weight", "scale_weight"): NAN.clone()}),
    "has a scale of (3,)": ("scaled_fp8", {LAYER.replace("weight", "scale_weight"): torch.ones(3)}),
    "is int8 and has no scale": ("bf16", {LAYER: torch.zeros(512, 256, dtype=torch.int8)}),
    "blocks.1.ffn.0 in nvfp4": ("int8", {LAYER_NOTE: note("nvfp4")}),
    "blocks.1.ffn.0 in mxfp8": ("int8", {LAYER_NOTE: note("mxfp8")}),
    "blocks.1.ffn.0 in convrot_w4a4": ("int8", {LAYER_NOTE: note("convrot_w4a4")}),
    "blocks.1.ffn.0 in asym_w4a8_int8": ("int8", {LAYER_NOTE: note("asym_w4a8_int8")}),
    "blocks.1.ffn.0 in awq_w4a16": ("int8", {LAYER_NOTE: note("awq_w4a16")}),
    "is I8, though noted as float8_e4m3fn": ("int8", {LAYER_NOTE: note("float8_e4m3fn")}),
    "notes its formats in a way that cannot be read": (
        "int8",
        {LAYER_NOTE: torch.zeros(3, dtype=torch.uint8)},
    ),
    "in svdquant": ("bf16", {"blocks.1.ffn.0.smooth_factor": torch.ones(256)}),
    "in 4 bits": ("bf16", {LAYER: torch.zeros(512, 128, dtype=torch.uint8)}),
    "is Wan VACE": ("bf16", {"vace_patch_embedding.weight": torch.zeros(1)}),
    "is Wan Animate": ("bf16", {"face_adapter.fuser_blocks.0.k_norm.weight": torch.zeros(1)}),
    "52 channels in and 16 out": ("bf16", {"patch_embedding.weight": torch.zeros(256, 52, 1, 2, 2)}),
    "(256, 36), or another layer": ("bf16", {"patch_embedding.weight": torch.zeros(256, 36)}),
}


@pytest.mark.parametrize("told", DAMAGED)
def test_a_damaged_or_unreadable_network_is_told_in_one_sentence(told, tmp_path):
    layout, changes = DAMAGED[told]
    save_file(change(layout, **changes), tmp_path / "wan.safetensors")
    assert told in refusal(tmp_path / "wan.safetensors")


FOREIGN = {
    "is a LoRA": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    "is a VAE": "decoder.conv1.weight",
    "is a text encoder": "blocks.0.attn.q.weight",
    "is a CLIP vision encoder": "vision_model.encoder.layers.0.mlp.fc1.weight",
    "of the Flux or HunyuanVideo family": "double_blocks.0.img_attn.qkv.weight",
    "is a Stable Diffusion network": "model.diffusion_model.input_blocks.0.0.weight",
    "is no Wan network: it lacks patch_embedding.weight": "conv.weight",
}


@pytest.mark.parametrize("told", FOREIGN)
def test_a_file_of_another_model_is_told_what_it_is(told, tmp_path):
    save_file({FOREIGN[told]: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert told in refusal(tmp_path / "other.safetensors")


def test_cut_missing_and_pickled_files_are_told_in_one_sentence(tmp_path):
    whole = write_gguf(tiny_state(), tmp_path / "wan.gguf", "Q8_0").read_bytes()
    for length in (0, 3, 1000, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        assert "cannot be read as GGUF" in refusal(tmp_path / "cut.gguf")
    whole = write_layout("bf16", tiny_state(), tmp_path / "wan.safetensors").read_bytes()
    for length in (0, 3, 1000, len(whole) // 2):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        assert "cannot be read as a video model" in refusal(tmp_path / "cut.safetensors")
    for ending in ("ckpt", "pt", "pth"):
        assert "is a pickle" in refusal(tmp_path / f"wan.{ending}")  # not even opened: it is not there


HOSTS = {"older": ("COMFYUI_DIR", "~/ComfyUI", OLDER), "newer": ("COMFYUI_NEW_DIR", "~/ComfyUI33", NEWER)}
ROUNDED_ACTIVATIONS = {"int8": 5e-3, "int8 rows": 5e-3, "int8 rotated": 5e-3}
"""ComfyUI rounds an int8 layer's input to int8 as well (0.002 here), which we do not; the matrices agree."""


def round_biases(network) -> None:
    """ComfyUI 0.3.64 keeps a `scaled_fp8` file's biases in fp8 too: 0.0036 here, all of the difference."""
    for module in network.modules():
        if isinstance(module, FrozenLinear | torch.nn.Linear):
            module.bias.data = module.bias.to(FP8).float()


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_comfyuis_own_loader_and_model_give_the_same(host, tmp_path):
    """In float32 on both sides, so that nothing but the order of sums differs where nothing is said above."""
    variable, default, layouts = HOSTS[host]
    checkout = Path(os.environ.get(variable, default)).expanduser()
    if not (checkout / "comfy" / "sd.py").exists():
        pytest.skip(f"needs a ComfyUI checkout: set {variable}")
    (tmp_path / "inputs").mkdir()
    cases = {(kind, "bf16") for kind in wan_layouts.CHANNELS} | {("I2V-A14B", layout) for layout in layouts}
    for kind, layout in cases:
        name = f"{kind} {layout}.safetensors"
        write_layout(layout, tiny_state(kind), tmp_path / name)
        save_file(inputs(kind), tmp_path / "inputs" / name)
    script = Path(__file__).with_name("comfy_host.py")
    ran = subprocess.run([sys.executable, script, checkout, tmp_path], capture_output=True, text=True)
    if "ModuleNotFoundError" in ran.stderr:
        pytest.skip(f"needs what {checkout} needs: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr
    for kind, layout in cases:
        name = f"{kind} {layout}.safetensors"
        theirs = load_file(tmp_path / "outputs" / name)
        file = open_wan_file(tmp_path / name)
        ours = load_transformer(file, dtype=torch.float32)
        for key, matrix in theirs.items():
            if key.startswith("weights."):
                assert torch.equal(
                    file.weight(key.removeprefix("weights.")).dequantised(torch.float32), matrix
                )
        if layout == "scaled_fp8":
            round_biases(ours)
        assert relative(output(ours, inputs(kind)), theirs["v"]) < ROUNDED_ACTIVATIONS.get(layout, 1e-5), name
