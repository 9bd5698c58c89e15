"""The host's MODEL behind our protocols, on the host's own code: KSampler's numbers, autograd's gradients."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from wan_layouts import tiny_state, write_layout

HOSTS = {"COMFYUI_DIR": "~/ComfyUI", "COMFYUI_NEW_DIR": "~/ComfyUI33"}
CASES = [
    *((kind, "fp32", host) for kind in ("I2V-A14B", "TI2V-5B") for host in HOSTS),
    ("T2V-1.3B", "bf16", "COMFYUI_NEW_DIR"),
    ("I2V-A14B", "fp8 e4m3fn", "COMFYUI_DIR"),
    ("I2V-A14B", "comfy_quant e4m3fn", "COMFYUI_NEW_DIR"),
    ("I2V-A14B", "int8", "COMFYUI_NEW_DIR"),
]


@cache
def network(folder: Path, kind: str, layout: str) -> Path:
    return write_layout(layout, tiny_state(kind), folder / f"{kind}.{layout}.safetensors".replace(" ", "_"))


def on_host(host: str, network: Path, task: str) -> dict[str, float]:
    """The figures of one task of host_model.py; skips the test where there is no host."""
    checkout = Path(os.environ.get(host, HOSTS[host])).expanduser()
    if not checkout.exists():
        pytest.skip(f"needs a ComfyUI checkout: set {host}")
    script = Path(__file__).with_name("host_model.py")
    done = subprocess.run(
        [sys.executable, str(script), str(checkout), str(network), task],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    failure = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode and failure.startswith("ModuleNotFoundError"):
        pytest.skip(f"needs what {checkout}/requirements.txt lists: {failure}")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    print(network.name, host, task, figures)
    return figures


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def figures(request, tmp_path_factory):
    kind, layout, host = request.param
    folder = tmp_path_factory.mktemp("host")
    return on_host(host, network(folder, kind, layout), "parity") | {"floats": layout == "fp32"}


def test_with_the_adapter_off_our_sampler_is_ksampler_bit_for_bit(figures):
    assert figures["size"] > 1
    assert figures["ours"] == figures["off"] == 0.0
    assert figures["effect"] > 1e-3  # with it on it is not


def test_the_gradient_reaches_every_tensor_and_is_autograds(figures):
    # q, k, v, o of two attentions and two layers of feed-forward, in 2 blocks, with 2 halves each.
    assert figures["reached"] == figures["tensors"] == 10 * 2 * 2
    assert figures["gradient"] < 1e-5


def test_the_gradient_is_the_slope_of_the_velocity(figures):
    # Central differences: of float32 noise and the third derivative there is less than a hundredth.
    if figures["floats"]:
        assert abs(figures["slope"] / figures["difference"] - 1) < 0.01


def test_a_training_leaves_the_hosts_network_as_it_was(figures):
    assert figures["after"] == 0.0
    assert figures["inference"], "the host's tensors must be the inference tensors that they were"
    assert figures["changed"] == 0
