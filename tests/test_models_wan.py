"""The engine beneath WanVideoModel against diffusers' own forward pass and plain autograd through it."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from comfyui import find_comfyui, run_in_comfyui
from safetensors.torch import load_file, save_file
from test_sampling_gradient import collect, plain_autograd
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from toys import ToyCodec, draw, toy_score
from wan_engine import KINDS, SIGMA, Stock, X, condition, distance, gradients, layers, model, network

from ipro_core.models.frozen import FrozenLinear, StoredWeight
from ipro_core.models.lora import LowRank
from ipro_core.models.memory import Placement
from ipro_core.models.wan import WanVideoModel
from ipro_core.models.wan_keys import to_official
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.gradient import reward_gradient
from ipro_core.sampling.rollout import sample


@pytest.mark.parametrize("kind", KINDS)
def test_the_velocity_is_diffusers_own(kind):
    wan, given = model(kind), condition(kind)
    ours, expected = wan.velocity(X, SIGMA, given), Stock(wan, given).velocity(X, SIGMA)
    if kind == "TI2V-5B":  # the time's embedding is taken of 3 rows a video, not of 12: sums of another order
        assert distance(ours, expected) <= 1e-6
    else:
        assert torch.equal(ours, expected)
    assert distance(wan.frozen_velocity(X, SIGMA, given), expected) > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_gradients_are_plain_autograds(kind, dtype, tolerance):
    wan, given, x = model(kind, dtype=dtype, placement=Placement(ffn_tokens=5)), condition(kind), X.to(dtype)
    to_x, to_adapter = gradients(lambda x: wan.velocity(x, SIGMA, given), wan, x)
    expected_x, expected_adapter = gradients(lambda x: Stock(wan, given).velocity(x, SIGMA), wan, x)
    # diffusers' norms and gates round to float32 in a float64 network too; the rounding itself is the same.
    assert distance(to_x, expected_x) <= tolerance
    assert distance(to_adapter, expected_adapter) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", ["detached", "exact", "biased"])
@pytest.mark.parametrize("recompute", [True, False])
def test_the_chain_is_plain_autograds(kind, through, recompute):
    codec, sigmas, given = ToyCodec(dtype=torch.float32), shifted_sigmas(3, 5.0), condition(kind)
    wan = model(kind, placement=Placement(recompute=recompute, kept_attentions=1))
    plain_autograd(Stock(wan, given), codec, toy_score, X, sigmas, 2, 1.0, 1.0, "sigma", through)
    expected = collect(wan)
    reward_gradient(
        wan, codec, toy_score, X, given, sigmas, grad_steps=2, reward_weight=1.0, kl_through=through
    )  # fmt: skip
    assert distance(collect(wan), expected) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("kept", [0, 3])
def test_the_chain_of_earlier_steps_is_plain_autograds(kind, recompute, kept):
    codec, sigmas, given = ToyCodec(dtype=torch.float32), shifted_sigmas(4, 5.0), condition(kind)
    wan = model(kind, placement=Placement(recompute=recompute))
    plain_autograd(Stock(wan, given), codec, toy_score, X, sigmas, 2, 1.0, 1.0, "sigma", "detached", first=1)
    expected = collect(wan)
    reward_gradient(
        wan, codec, toy_score, X, given, sigmas,
        grad_steps=2, first_grad_step=1, reward_weight=1.0, kept_passes=kept,
    )  # fmt: skip
    assert distance(collect(wan), expected) <= 1e-5


def test_the_first_frame_moves_straight_to_its_latents_and_the_others_as_if_it_were_put_back():
    wan, given, sigmas = model("TI2V-5B"), condition("TI2V-5B"), shifted_sigmas(4, 5.0)
    ours = sample(wan, X, given, sigmas)
    first, x = given.first_BC1HW, X
    assert first is not None
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x = torch.cat([first, x[:, :, 1:]], dim=2)  # as diffusers' pipeline does before each step
        x = x + (sigma_next - sigma) * Stock(wan, given).velocity(x, sigma)
    torch.testing.assert_close(ours[:, :, 1:], x[:, :, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[:, :, :1], first, rtol=0, atol=1e-6)


def test_both_backward_passes_of_one_graph_are_right():
    wan, given = model(), condition("I2V-A14B")
    x = X.clone().requires_grad_()
    v = wan.velocity(x, SIGMA, given)
    expected = gradients(lambda x: Stock(wan, given).velocity(x, SIGMA), wan, X)
    for again in (True, False):
        x.grad = None
        v.backward(draw(*v.shape, seed=9), retain_graph=again)
        assert x.grad is not None
        assert distance(x.grad, expected[0]) <= 1e-6 and distance(collect(wan), expected[1]) <= 1e-6
    with pytest.raises(RuntimeError, match="second time"):  # torch freed what was kept
        v.backward(draw(*v.shape, seed=9))


def test_a_fork_gives_the_adapter_both_gradients_and_x_its_own_in_one_visit():
    wan, given = model(), condition("I2V-A14B")
    x = X.clone().requires_grad_()
    v, v_fork, v_ref = wan.velocities(x, SIGMA, given, fork=True, through_reference=False)
    assert torch.equal(v, v_fork) and not v_ref.requires_grad
    first, second = draw(*v.shape, seed=9), draw(*v.shape, seed=10)
    wan.stack.visits.clear()
    loads = wan.stack.weights.loads
    ((v * first).sum() + (v_fork * second).sum()).backward()
    assert wan.stack.visits == {"again": 2, "backward": 4} and wan.stack.weights.loads == loads
    ours_x, ours = x.grad, collect(wan)
    stock = Stock(wan, given)
    x_plain = X.clone().requires_grad_()
    ((stock.velocity(x_plain, SIGMA) * first).sum() + (stock.velocity(X, SIGMA) * second).sum()).backward()
    assert ours_x is not None and x_plain.grad is not None
    assert distance(ours_x, x_plain.grad) <= 1e-5 and distance(ours, collect(wan)) <= 1e-5


@pytest.mark.parametrize("adapters_then", ["frozen", "none"])
def test_a_block_is_run_again_under_the_adapters_of_its_first_run(adapters_then):
    wan, given = model(), condition("I2V-A14B")
    wan.place_adapter(layers(wan, seed=14), frozen=True)
    expected = gradients(lambda x: Stock(wan, given).velocity(x, SIGMA), wan, X)
    x = X.clone().requires_grad_()
    v = wan.velocity(x, SIGMA, given)
    with wan.adapters.only(wan.adapters.frozen if adapters_then == "frozen" else ()):
        v.backward(draw(*v.shape, seed=9))
    assert x.grad is not None
    assert distance(x.grad, expected[0]) <= 1e-5 and distance(collect(wan), expected[1]) <= 1e-5


def test_plain_mathematics_serve_where_torch_has_no_kernel():
    wan, given = model(), condition("I2V-A14B")
    with sdpa_kernel(SDPBackend.MATH):
        ours = gradients(lambda x: wan.velocity(x, SIGMA, given), wan, X)
        expected = gradients(lambda x: Stock(wan, given).velocity(x, SIGMA), wan, X)
    assert distance(ours[0], expected[0]) <= 1e-5 and distance(ours[1], expected[1]) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_no_adapter_tensor_is_left_without_a_gradient(kind):
    wan, given = model(kind, adapter=False), condition(kind)
    everywhere = layers(wan) | {  # also on what goes beside the blocks' tokens
        name: LowRank(
            0.1 * draw(2, linear.in_features, seed=1), 0.1 * draw(linear.out_features, 2, seed=2), 2
        )
        for name, linear in wan.linears.items()
        if not name.startswith("blocks.")
    }
    wan.place_adapter(everywhere)
    wan.velocity(X, SIGMA, given).square().sum().backward()  # x is given: it wants no gradient
    trained = wan.adapter_parameters()
    assert len(trained) == 2 * len(wan.linears)
    assert not [name for name, tensor in trained.items() if tensor.grad is None or not tensor.grad.any()]
    ours = collect(wan)
    Stock(wan, given).velocity(X, SIGMA).square().sum().backward()
    assert distance(ours, collect(wan)) <= 1e-5


def test_a_bfloat16_base_trains_a_float32_adapter():
    wan, exact, given = model(dtype=torch.bfloat16), model(), condition("I2V-A14B")
    ours = gradients(lambda x: wan.velocity(x, SIGMA, given), wan, X)[1]
    assert ours.dtype == torch.float32
    stock = gradients(lambda x: Stock(wan, given).velocity(x, SIGMA), wan, X)[1]
    assert distance(ours, stock) <= 1e-5
    expected = gradients(lambda x: exact.velocity(x, SIGMA, given), exact, X)[1]
    assert distance(ours, expected) <= 0.02  # eight bits of mantissa; measured 0.007


STORAGES = {"fp8": 0.05, "int8": 0.015, "Q8_0": 0.01, "Q5_1": 0.06, "Q4_0": 0.15}
"""What each storage's own rounding may cost the gradient; 2.2, 0.9 and 7 % were seen of fp8, int8, 4 bits."""


def quantised(linear: nn.Linear, storage: str) -> FrozenLinear:
    """fp8 and int8 with a scale for each row, the largest weight at the end of the range; or GGUF blocks."""
    matrix = linear.weight.detach().float()
    if storage.startswith("Q"):
        import gguf

        type = gguf.GGMLQuantizationType[storage]
        blocks = torch.from_numpy(gguf.quants.quantize(matrix.numpy(), type))
        weight = StoredWeight(blocks, gguf_type=int(type))
    else:
        dtype = torch.int8 if storage == "int8" else torch.float8_e4m3fn
        limit = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
        scale = matrix.abs().amax(dim=1, keepdim=True) / limit
        stored = (matrix / scale).round() if dtype == torch.int8 else matrix / scale
        weight = StoredWeight(stored.to(dtype), scale)
    return FrozenLinear(weight, None if linear.bias is None else linear.bias.detach(), linear.in_features)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("resident", [None, 0])
def test_gradients_through_a_quantised_base_are_off_by_its_own_error_only(storage, resident):
    exact, given = model(dim=64), condition("I2V-A14B")
    made = network("I2V-A14B", dim=64)
    for block in made.blocks:
        for name, linear in list(block.named_modules()):
            if isinstance(linear, nn.Linear) and linear.in_features % 32 == 0:  # GGUF's blocks are of 32
                parent, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(parent), leaf, quantised(linear, storage))
    wan = WanVideoModel(made, Path("tiny.safetensors"), Placement(resident=resident))
    wan.place_adapter(layers(wan))
    assert sum(isinstance(linear, FrozenLinear) for linear in wan.linears.values()) == 18
    ours = gradients(lambda x: wan.velocity(x, SIGMA, given), wan, X)
    if resident is None:
        stock = gradients(lambda x: Stock(wan, given).velocity(x, SIGMA), wan, X)
        assert distance(ours[0], stock[0]) <= 1e-5 and distance(ours[1], stock[1]) <= 1e-5
    expected = gradients(lambda x: exact.velocity(x, SIGMA, given), exact, X)
    error = distance(ours[1], expected[1])
    assert 1e-4 < error <= STORAGES[storage], error


def test_a_rank_stabilised_adapter_says_so_by_its_alpha():
    wan = model(adapter=False)
    wan.new_adapter(rank=4, alpha=6, rank_stabilised=True)
    layer = wan.adapters.layers["ipro"]["blocks.0.self_attn.q"]
    assert layer.scaling["ipro"] == pytest.approx(3.0)  # 6 / sqrt(4)
    assert wan.adapter()["blocks.0.self_attn.q"].alpha == pytest.approx(12.0)  # 3 · 4, as files have it


@pytest.mark.parametrize(
    "kind, given, told",
    [
        ("I2V-A14B", "T2V", "takes 8 channels of an image beside 4 of noise, and the condition has 0"),
        ("T2V", "I2V-A14B", "takes 0 channels of an image beside 4 of noise, and the condition has 8"),
        ("2.1 I2V", "I2V-A14B", "takes CLIP's embedding"),
        ("I2V-A14B", "2.1 I2V", "does not take CLIP's embedding"),
    ],
)
def test_a_condition_of_another_model_is_told(kind, given, told):
    with pytest.raises(ValueError, match=rf"tiny.safetensors {told}"):
        model(kind, adapter=False).velocity(X, SIGMA, condition(given))


def test_first_frame_latents_of_another_size_are_told():
    given = replace(condition("TI2V-5B"), first_BC1HW=draw(2, 4, 1, 8, 8, seed=6))
    with pytest.raises(ValueError, match=r"here \(2, 4, 1, 8, 8\).* here \(2, 4, 1, 4, 4\)"):
        model("TI2V-5B", adapter=False).velocity(X, SIGMA, given)


IN_COMFYUI = """
import sys
import torch
from safetensors.torch import load_file, save_file
comfyui, folder = sys.argv[1:]
sys.path.insert(0, comfyui)
from comfy.cli_args import args
args.cpu = True
import comfy.ops
from comfy.ldm.wan.model import WanModel
for number, kind in enumerate(("I2V-A14B", "TI2V-5B", "2.1 I2V", "T2V")):
    given = load_file(f"{folder}/{number}.inputs.safetensors")
    network = WanModel(
        "i2v" if kind == "2.1 I2V" else "t2v", in_dim=given["x"].shape[1], dim=32, ffn_dim=48, freq_dim=16,
        text_dim=8, out_dim=4, num_heads=2, num_layers=2, device="cpu", dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    network.load_state_dict(load_file(f"{folder}/{number}.weights.safetensors"), strict=True)
    with torch.no_grad():
        v = network(given["x"], given["t"], given["text"], given.get("clip"))
    save_file({"v": v.contiguous()}, f"{folder}/{number}.v.safetensors")
"""


def test_the_velocity_is_comfyuis(tmp_path):
    host, wans = find_comfyui(), {}
    for number, kind in enumerate(KINDS):
        wans[kind], given = model(kind, adapter=False), condition(kind)
        state = wans[kind].transformer.state_dict()
        save_file(
            {to_official(key): t for key, t in state.items()}, tmp_path / f"{number}.weights.safetensors"
        )
        x, t = X, torch.full((2,), 1000 * SIGMA)
        if given.image_BCTHW is not None:
            x = torch.cat([X, given.image_BCTHW], dim=1)
        if given.first_BC1HW is not None:  # ComfyUI's sampler puts the frame in and has one time step a frame
            x, t = (
                torch.cat([given.first_BC1HW, X[:, :, 1:]], dim=2),
                t[:, None] * torch.tensor([0.0, 1.0, 1.0]),
            )
        inputs = {"x": x.contiguous(), "t": t, "text": given.text_BLD}
        inputs |= {} if given.clip_BLD is None else {"clip": given.clip_BLD}
        save_file(inputs, tmp_path / f"{number}.inputs.safetensors")
    run_in_comfyui(IN_COMFYUI, host, tmp_path)
    for number, (kind, wan) in enumerate(wans.items()):
        theirs = load_file(tmp_path / f"{number}.v.safetensors")["v"]
        ours, given = wan.velocity(X, SIGMA, condition(kind)), condition(kind)
        if given.first_BC1HW is not None:  # and moves that frame along (x − x_0) / sigma, x_0 being the frame
            straight = (X[:, :, :1] - given.first_BC1HW) / SIGMA
            theirs = torch.cat([straight, theirs[:, :, 1:]], dim=2)
        assert distance(ours, theirs) <= 1e-5, kind
