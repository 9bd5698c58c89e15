"""The host's MODEL behind our protocols, on the host's own code: KSampler's numbers, autograd's gradients."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from safetensors.torch import save_file
from vae_networks import official_tensors
from wan_layouts import tiny_state, write_layout

HOSTS = {"COMFYUI_DIR": "~/ComfyUI", "COMFYUI_NEW_DIR": "~/ComfyUI33"}
JOBS = {
    "COMFYUI_DIR": (("I2V-A14B", "fp32"), ("I2V-A14B", "fp8 e4m3fn")),
    "COMFYUI_NEW_DIR": (
        ("I2V-A14B", "fp32"), ("TI2V-5B", "fp32"), ("T2V-1.3B", "bf16"), ("I2V-A14B", "comfy_quant e4m3fn"),
    ),
}  # fmt: skip
CASES = [(host, *job) for host, jobs in JOBS.items() for job in jobs]


def run_host(host: str, jobs: tuple[tuple[str, str, str], ...]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The figures of (network, layout, task) of host_model.py; skips the test where there is no host."""
    figures = _run_host(host, jobs)
    if isinstance(figures, str):
        pytest.skip(figures)
    return figures


@cache
def _run_host(host: str, jobs: tuple[tuple[str, str, str], ...]) -> dict[tuple[str, str, str], Any] | str:
    """The same once for all tests; or why there is no host."""
    checkout = Path(os.environ.get(host, HOSTS[host])).expanduser()
    if not checkout.exists():
        return f"needs a ComfyUI checkout: set {host}"
    with TemporaryDirectory() as folder:
        save_file(dict(official_tensors("2.1")), Path(folder) / "vae.safetensors")
        given = []
        for kind, layout, task in jobs:
            path = Path(folder) / f"{kind}.{layout.replace(' ', '_')}.safetensors"
            if not path.exists():
                write_layout(layout, tiny_state(kind), path)
            given += [str(path), task]
        script = Path(__file__).with_name("host_model.py")
        command = [sys.executable, str(script), str(checkout), *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    failure = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode and failure.startswith("ModuleNotFoundError"):
        return f"needs what {checkout}/requirements.txt lists: {failure}"
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(jobs, figures, strict=True))


@pytest.fixture(params=CASES, ids=" ".join)
def figures(request):
    host, kind, layout = request.param
    figures = run_host(host, tuple((*job, "parity") for job in JOBS[host]))[kind, layout, "parity"]
    print(host, kind, layout, figures)
    return figures


def test_with_the_adapter_off_our_sampler_is_ksampler_bit_for_bit(figures):
    assert figures["size"] > 1
    assert figures["ours"] == figures["off"] == 0.0
    assert figures["effect"] > 1e-3  # with it on it is not


def test_the_gradient_reaches_every_tensor_and_is_autograds(figures):
    # q, k, v, o of two attentions and two layers of feed-forward, in 2 blocks, with 2 halves each.
    assert figures["reached"] == figures["tensors"] == 10 * 2 * 2
    assert figures["gradient"] < 1e-5


def test_the_gradient_is_that_of_the_cores_own_network_on_the_same_file(figures):
    if "core" not in figures:
        pytest.skip("the same numbers on both sides are there on float32 alone")
    assert figures["core_names"] and figures["core"] < 1e-5


def test_the_gradient_is_the_slope_of_the_velocity(figures):
    # Central differences: float32's noise and the third derivative make less than a hundredth.
    assert abs(figures["slope"] / figures["difference"] - 1) < 0.01


def test_a_training_leaves_the_hosts_network_as_it_was(figures):
    assert figures["after"] == 0.0
    assert figures["inference"], "the host's tensors must be the inference tensors that they were"
    assert figures["changed"] == 0


@pytest.mark.parametrize("host", HOSTS)
def test_the_hosts_vae_is_ours_in_its_own_memory(host):
    figures = run_host(host, (("T2V-1.3B", "bf16", "codec"),))["T2V-1.3B", "bf16", "codec"]
    print(host, figures)
    # In float64, but for the latents' statistics, which the host has in float32: their values are up to 8.
    assert figures["units"] < 1e-6
    assert figures["decode"] < 1e-9 and figures["gradient"] < 1e-9
    assert figures["shared"] == 1.0 and figures["inference"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_is_told_by_its_content_and_by_what_lies_on_it_at_every_start(host):
    kinds = [("I2V-A14B", "fp8 e4m3fn" if host == "COMFYUI_DIR" else "comfy_quant e4m3fn", "identities")]
    told = run_host(host, tuple(kinds))[kinds[0]]
    kinds.append(("T2V-1.3B", "bf16", "identities"))
    assert run_host(host, tuple(kinds))[kinds[0]] == told  # another start of the host
    same = [["base", "base while stock is loaded", "base loaded"], ["stock", "stock again", "stock loaded"]]
    same += [["beside", "beside again"], ["half"], ["beside, late"], ["unshifted"], ["other weights"]]
    assert {name for names in same for name in names} == told.keys()
    digests = [{told[name] for name in names} for names in same]
    assert [len(digest) for digest in digests] == [1] * len(same)
    assert len(set.union(*digests)) == len(same)


@pytest.mark.parametrize("host", HOSTS)
def test_a_layer_of_another_pack_is_tried_and_refused_if_no_gradient_comes_back(host):
    job = ("T2V-1.3B", "bf16", "foreign")
    told = run_host(host, (job,))[job]
    assert told["with"] == "T2V-1.3B"
    assert "cannot be tuned where it is (no gradient goes through blocks.0.ffn.0)" in told["silent"]
    assert told["without"].startswith("This MODEL cannot be tuned where it is (")
    assert "IPRO · Load Wan Expert" in told["without"]
