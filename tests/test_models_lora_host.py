"""LoRA files through ComfyUI itself: its loader, its key map, its WanModel, against ours, in float32."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import draw

from ipro_core.models.lora import LowRank, export_lora, import_lora
from ipro_core.models.wan import TARGETS, WanCondition, load_video_model
from ipro_core.models.wan_files import save_wan_file

HOSTS = {"COMFYUI_DIR": "~/ComfyUI", "COMFYUI_NEW_DIR": "~/ComfyUI33"}
SHAPES = {"A14B-I2V": (36, 16), "5B": (48, 48), "T2V": (16, 16)}  # channels in and out
CASES = [(shape, "COMFYUI_DIR") for shape in SHAPES] + [("A14B-I2V", "COMFYUI_NEW_DIR")]


def wan(channels_in: int, channels_out: int):
    """The smallest network that ComfyUI takes for Wan: heads of 128, text of 4096, frequencies of 256."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=128, in_channels=channels_in, text_dim=4096,
            out_channels=channels_out, freq_dim=256, ffn_dim=64, num_layers=2,
        )  # fmt: skip


def ours_alone(model) -> dict[str, LowRank]:
    """What is trained: rank 4, rank-stabilised, so that the file's alpha must be 4 · 3 / sqrt(4) = 6."""
    return {
        name: LowRank(0.1 * draw(4, x.in_features, seed=1), 0.1 * draw(x.out_features, 4, seed=2), 3 * 4**0.5)
        for name, x in model.linears.items()
        if name.split(".", 2)[-1] in TARGETS
    }


def lightning(model) -> dict[str, torch.Tensor]:
    """As distillation LoRAs are: every layer, rank 64 with alpha 8, norms, biases; some for Wan 2.1 only."""
    tensors = {}
    for seed, (name, shape) in enumerate(model.frozen_shapes().items()):
        layer, _, part = f"diffusion_model.{name}".rpartition(".")
        if part == "bias":
            tensors[f"{layer}.diff_b"] = 0.1 * draw(*shape, seed=seed)
        elif len(shape) > 3 or name.removesuffix(".weight") in model.linears:
            ones = (1,) * (len(shape) - 2)  # a convolution's up is 1 wide
            tensors[f"{layer}.lora_down.weight"] = draw(64, *shape[1:], seed=seed) / shape[1] ** 0.5
            tensors[f"{layer}.lora_up.weight"] = 0.1 * draw(shape[0], 64, *ones, seed=seed + 1)
            tensors[f"{layer}.alpha"] = torch.tensor(8.0)
        else:
            whole = f"{layer}.{part}" if part == "modulation" else layer
            tensors[f"{whole}.diff"] = 0.1 * draw(*shape, seed=seed)
    block = "diffusion_model.blocks.0"
    return tensors | {
        f"{block}.cross_attn.k_img.lora_down.weight": draw(64, 128, seed=1),
        f"{block}.cross_attn.k_img.lora_up.weight": draw(128, 64, seed=2),
        f"{block}.cross_attn.v_img.diff_b": draw(128, seed=3),
        f"{block}.ffn.0.diff_m": draw(64, seed=4),
    }


def other_kinds(model) -> dict[str, torch.Tensor]:
    """One layer of each of the other kinds, under each of the other names."""
    block, flat = "diffusion_model.blocks", "lora_unet_blocks"
    return {
        f"{flat}_0_ffn_0.hada_w1_a": 0.3 * draw(64, 2, seed=1),
        f"{flat}_0_ffn_0.hada_w1_b": 0.3 * draw(2, 128, seed=2),
        f"{flat}_0_ffn_0.hada_w2_a": draw(64, 2, seed=3),
        f"{flat}_0_ffn_0.hada_w2_b": draw(2, 128, seed=4),
        f"{flat}_0_ffn_0.alpha": torch.tensor(1.0),
        f"{block}.1.ffn.2.lokr_w1": 0.3 * draw(8, 4, seed=5),
        f"{block}.1.ffn.2.lokr_w2_a": 0.3 * draw(16, 3, seed=6),
        f"{block}.1.ffn.2.lokr_w2_b": draw(3, 16, seed=7),
        f"{block}.1.ffn.2.alpha": torch.tensor(2.0),
        f"{block}.0.norm3.w_norm": 0.3 * draw(128, seed=8),
        f"{block}.0.norm3.b_norm": 0.3 * draw(128, seed=9),
        f"{block}.1.self_attn.v.bias.diff": 0.3 * draw(128, seed=10),
        f"{block}.1.self_attn.o.lora_A.default.weight": 0.3 * draw(2, 128, seed=11),
        f"{block}.1.self_attn.o.lora_B.default.weight": 0.3 * draw(128, 2, seed=12),
        f"{block}.0.self_attn.v.lora.down.weight": 0.3 * draw(2, 128, seed=13),
        f"{block}.0.self_attn.v.lora.up.weight": 0.3 * draw(128, 2, seed=14),
        # Both at once: the whole difference alone counts.
        f"{block}.0.self_attn.o.diff": 0.1 * draw(128, 128, seed=15),
        f"{block}.0.self_attn.o.lora_A.weight": draw(2, 128, seed=16),
        f"{block}.0.self_attn.o.lora_B.weight": draw(128, 2, seed=17),
    }


def run_host(variable: str, folder: Path) -> None:
    host = Path(os.environ.get(variable, HOSTS[variable])).expanduser()
    if not host.exists():
        pytest.skip(f"needs a ComfyUI checkout: set {variable}")
    script = Path(__file__).with_name("host_lora.py")
    done = subprocess.run(
        [sys.executable, str(script), str(host), str(folder)], capture_output=True, text=True, check=False
    )
    failure = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode and failure.startswith("ModuleNotFoundError"):
        pytest.skip(f"needs what {host}/requirements.txt lists: {failure}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request, tmp_path_factory):
    """(folder, model, inputs) with three LoRA files in the folder and ComfyUI's answer beside each."""
    shape, variable = request.param
    folder, (channels_in, channels_out) = tmp_path_factory.mktemp("host"), SHAPES[shape]
    save_wan_file(wan(channels_in, channels_out), folder / "network.safetensors")
    model = load_video_model(folder / "network.safetensors")
    inputs = {"x": draw(1, channels_in, 3, 4, 6, seed=5), "text": draw(1, 7, 4096, seed=6)}
    save_file(inputs | {"t": torch.tensor([500.0])}, folder / "inputs.safetensors")
    model.place_adapter(ours_alone(model))
    export_lora(model, folder / "lora_ours.safetensors")
    save_file(lightning(model), folder / "lora_lightning.safetensors")
    save_file(other_kinds(model), folder / "lora_others.safetensors")
    run_host(variable, folder)
    image = inputs["x"][:, channels_out:] if channels_in > channels_out else None
    return folder, inputs["x"][:, :channels_out], WanCondition(inputs["text"], image)


def compare(case, name: str, *, frozen: bool) -> tuple[float, float, dict[str, str], dict[str, str]]:
    """(our distance to ComfyUI, what the LoRA does, both relative; what was not used by us, by ComfyUI)."""
    folder, x_BCTHW, condition = case
    model = load_video_model(folder / "network.safetensors")
    base = model.velocity(x_BCTHW, 0.5, condition)
    unused = import_lora(folder / f"lora_{name}.safetensors", model, frozen=frozen)
    with torch.no_grad():
        ours = model.velocity(x_BCTHW, 0.5, condition)
    theirs = load_file(folder / f"lora_{name}.out")["v"]
    with safe_open(str(folder / f"lora_{name}.out"), framework="pt") as file:
        metadata = file.metadata()
    norm = theirs.norm()
    return ((ours - theirs).norm() / norm).item(), ((base - theirs).norm() / norm).item(), unused, metadata


def test_what_we_export_does_in_comfyui_what_it_does_here(case):
    distance, effect, unused, host = compare(case, "ours", frozen=False)
    print(f"ours: {distance:.1e} of {effect:.2f}, {host['kind']}")
    assert effect > 0.1 and distance < 1e-5
    assert not unused and json.loads(host["told"]) == []
    assert int(host["patched"]) == 2 * len(TARGETS)


def test_a_frozen_distillation_lora_does_here_what_it_does_in_comfyui(case):
    distance, effect, unused, host = compare(case, "lightning", frozen=True)
    print(f"lightning: {distance:.1e} of {effect:.2f}, {host['kind']}")
    assert effect > 0.1 and distance < 1e-5
    # ComfyUI takes a difference of the modulation for loaded, but never applies it.
    modulation = {key for key in unused if key.endswith(".modulation.diff")}
    assert len(modulation) == 3
    assert {f"lora key not loaded: {key}" for key in unused.keys() - modulation} == set(
        json.loads(host["told"])
    )
    assert len(unused) == 4 + 3


def test_the_other_kinds_of_update_do_here_what_they_do_in_comfyui(case):
    distance, effect, unused, host = compare(case, "others", frozen=True)
    print(f"others: {distance:.1e} of {effect:.2f}, {host['kind']}")
    assert effect > 0.1 and distance < 1e-5
    assert [key.split(".", 3)[-1] for key in unused] == [
        "self_attn.o.lora_A.weight",
        "self_attn.o.lora_B.weight",
    ]
    assert json.loads(host["told"]) == []
