"""An exported LoRA through the host's stock loader and through Apply LoRA, against the trainer's output."""

import pytest
from test_host_model import run_host

JOBS = {
    "COMFYUI_DIR": (("TI2V-5B", "fp32"), ("I2V-A14B", "scaled_fp8")),
    "COMFYUI_NEW_DIR": (("I2V-A14B", "fp32"), ("I2V-A14B", "scaled_fp8"), ("I2V-A14B", "int8")),
}
CASES = [(host, *job) for host, jobs in JOBS.items() for job in jobs]


def run(host):
    jobs = [(*job, "loras") for job in JOBS[host]]
    return run_host(host, (*jobs, ("I2V-A14B", "scaled_fp8", "nodes")))


@pytest.fixture(params=CASES, ids=" ".join)
def figures(request):
    host, kind, layout = request.param
    figures = run(host)[kind, layout, "loras"]
    print(host, kind, layout, figures)
    return figures | {"floats": layout == "fp32", "smooth": layout != "int8"}


def test_apply_lora_gives_what_the_trainer_saw(figures):
    assert figures["effect"] > 1e-3
    assert figures["exact"] <= (1e-5 if figures["floats"] else 0.01)  # of the LoRA's effect


def test_the_stock_loader_gives_it_too_on_floats_and_not_on_rounded_weights(figures):
    # Relative to the output on floats; to the LoRA's effect where the sum is rounded to eight bits.
    print(f"of the LoRA's effect: stock loader {figures['stock']:.1e} off, Apply LoRA {figures['exact']:.1e}")
    if figures["floats"]:
        assert figures["stock"] * figures["effect"] <= 1e-5
    else:
        assert figures["stock"] > 10 * figures["exact"]


def test_two_of_a_quarter_and_three_quarters_are_one(figures):
    assert figures["twice"] * figures["effect"] <= (1e-5 if figures["floats"] else 0.01)


def test_in_a_range_of_steps_it_is_off_in_the_others(figures):
    assert figures["late_effect"] > 1e-3
    assert figures["late"] <= (1e-5 if figures["floats"] else 0.01)
    assert figures["by_file"] == 0  # and so do they where the file tells them


def test_the_model_that_was_given_is_not_changed(figures):
    assert figures["again"] == 0.0


def test_a_training_runs_its_blocks_again_with_the_loras_beneath_as_they_were(figures):
    assert figures["reached"] == figures["tensors"]
    if figures["smooth"]:  # int8 rounds activations too: a staircase, which has no slope
        assert abs(figures["slope"] / figures["difference"] - 1) < 0.02


@pytest.mark.parametrize("host", JOBS)
def test_the_nodes_do_the_same_and_tell_of_every_socket(host):
    figures = run(host)["I2V-A14B", "scaled_fp8", "nodes"]
    print(host, figures)
    assert figures["ids"] == ["IPRO_ApplyLoRA", "IPRO_RoundTripCheck"]
    assert figures["untold"] == []
    assert figures["applied"] == 0.0
    # Two blocks of ten layers; on fp8 the stock loader's merge is far off, and the report says what to use.
    assert figures["report"].startswith("20 of 20 layers matched.")
    assert figures["exact"] <= 0.01 < 0.1 < figures["stock"]
    assert figures["report"].endswith("use IPRO · Apply LoRA with it.")


def test_a_step_range_holds_the_noise_levels_of_its_steps_for_any_sampler():
    # Of 8 steps at shift 5 the 6th and 7th begin at 0.625 and 0.4167; what lies between belongs to the 6th.
    for host in JOBS:
        assert run(host)["I2V-A14B", "scaled_fp8", "nodes"]["on"] == [False, False, True, True, True, True]
