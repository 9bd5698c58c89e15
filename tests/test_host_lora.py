"""An exported LoRA through the host's stock loader and through Apply LoRA, against the trainer's own output."""

import pytest
from test_host_model import HOSTS, network, on_host

CASES = [
    *(("I2V-A14B", layout, host) for layout in ("fp32", "scaled_fp8") for host in HOSTS),
    ("TI2V-5B", "fp32", "COMFYUI_DIR"),
    ("I2V-A14B", "int8", "COMFYUI_NEW_DIR"),
]


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def figures(request, tmp_path_factory):
    kind, layout, host = request.param
    folder = tmp_path_factory.mktemp("host")
    return on_host(host, network(folder, kind, layout), "loras") | {"floats": layout == "fp32"}


def test_apply_lora_gives_what_the_trainer_saw(figures):
    assert figures["effect"] > 1e-3
    assert figures["exact"] <= (1e-5 if figures["floats"] else 0.01)  # of the LoRA's effect


def test_the_stock_loader_gives_it_too_on_floats_and_not_on_rounded_weights(figures):
    # Relative to the output on floats; to the LoRA's effect where the sum is rounded to eight bits.
    print(f"stock loader: off by {figures['stock']:.1e} of the LoRA's effect; Apply LoRA: {figures['exact']:.1e}")
    if figures["floats"]:
        assert figures["stock"] * figures["effect"] <= 1e-5
    else:
        assert figures["stock"] > 10 * figures["exact"]


def test_two_of_a_quarter_and_three_quarters_are_one(figures):
    assert figures["twice"] * figures["effect"] <= (1e-5 if figures["floats"] else 0.01)


def test_in_a_range_of_steps_it_is_off_in_the_others(figures):
    assert figures["late_effect"] > 1e-3
    assert figures["late"] <= (1e-5 if figures["floats"] else 0.01)


def test_the_model_that_was_given_is_not_changed(figures):
    assert figures["again"] == 0.0


def test_a_training_runs_its_blocks_again_with_the_loras_beneath_as_they_were(figures):
    assert figures["reached"] == figures["tensors"]
    assert abs(figures["slope"] / figures["difference"] - 1) < 0.02
