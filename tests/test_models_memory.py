"""The engine beneath WanVideoModel against diffusers' own forward pass and plain autograd through it."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from comfyui import find_comfyui, run_in_comfyui
from safetensors.torch import load_file, save_file
from test_sampling_gradient import collect, plain_autograd, saved_bytes
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from toys import ToyCodec, draw, toy_score

from ipro_core.models import attention, wan_network
from ipro_core.models.frozen import FrozenLinear, StoredWeight
from ipro_core.models.lora import LowRank
from ipro_core.models.memory import BlockStates, BlockWeights, Copies, HostMemory, Placement
from ipro_core.models.wan import WanCondition, WanVideoModel
from ipro_core.models.wan_keys import to_official
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.gradient import reward_gradient
from ipro_core.sampling.rollout import sample

KINDS = ("I2V-A14B", "TI2V-5B", "2.1 I2V", "T2V")
X = draw(2, 4, 3, 4, 4, seed=1)  # three latent frames of four tokens each
SIGMA = 0.625


def network(kind: str, layers: int = 2, dtype: torch.dtype = torch.float32, dim: int = 32):
    """diffusers' network in the shape of that model, small; drawn in float32, so that a dtype rounds it."""
    from diffusers import WanTransformer3DModel

    clip = {"image_dim": 1280, "added_kv_proj_dim": dim} if kind == "2.1 I2V" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=dim // 2,
            in_channels=12 if kind in ("I2V-A14B", "2.1 I2V") else 4, out_channels=4, text_dim=8, freq_dim=16,
            ffn_dim=48, num_layers=layers, cross_attn_norm=True, **clip,
        )  # fmt: skip
        for parameter in made.parameters():  # biases and norms start at values that hide mistakes
            parameter.data += 0.1 * torch.randn_like(parameter)
    return nn.Module.to(made, dtype).eval()


def condition(kind: str, batch: int = 2) -> WanCondition:
    image, clip, first = (
        draw(batch, 8, 3, 4, 4, seed=3),
        draw(batch, 5, 1280, seed=5),
        draw(batch, 4, 1, 4, 4, seed=6),
    )
    text_BLD = draw(batch, 512, 8, seed=2)  # the number that diffusers takes for granted beside CLIP
    return {
        "I2V-A14B": WanCondition(text_BLD, image),
        "TI2V-5B": WanCondition(text_BLD, first_BC1HW=first),
        "2.1 I2V": WanCondition(text_BLD, image, clip),
        "T2V": WanCondition(text_BLD),
    }[kind]


def model(kind: str = "I2V-A14B", *, adapter: bool = True, placement: Placement | None = None, **settings):
    parts = {name: settings.pop(name) for name in ("weights", "states") if name in settings}
    made = network(kind, **settings)
    parts = {name: part(made) if callable(part) else part for name, part in parts.items()}
    wan = WanVideoModel(made, Path("tiny.safetensors"), placement, **parts)
    if adapter:
        wan.place_adapter(layers(wan))
    return wan


def layers(wan: WanVideoModel, seed: int = 4, rank: int = 2) -> dict[str, LowRank]:
    return {
        name: LowRank(
            0.1 * draw(rank, linear.in_features, seed=seed),
            0.1 * draw(linear.out_features, rank, seed=seed + 1),
            rank,
        )
        for name, linear in wan.linears.items()
        if name.startswith("blocks.")
    }


class Stock:
    """The same network by diffusers' own forward pass, under autograd as it is."""

    def __init__(self, wan: WanVideoModel, given: WanCondition):
        self.wan, self.given = wan, given
        self.adapter_parameters = wan.adapter_parameters

    def velocity(self, x: Tensor, sigma: float, _=None) -> Tensor:
        given, t, first = self.given, torch.full((len(x),), 1000 * sigma), self.given.first_BC1HW
        x_in = x
        if given.image_BCTHW is not None:
            x_in = torch.cat([x, given.image_BCTHW.to(x)], dim=1)
        if first is not None:  # one time step for each token: 4 of the first frame, 8 of the rest
            x_in, t = torch.cat([first.to(x), x[:, :, 1:]], dim=2), t[:, None].repeat(1, 12)
            t[:, :4] = 0
        dtype = self.wan.dtype
        clip = None if given.clip_BLD is None else given.clip_BLD.to(dtype)
        v = self.wan.transformer(x_in.to(dtype), t, given.text_BLD.to(dtype), clip, return_dict=False)[0].to(
            x
        )
        return v if first is None else torch.cat([(x[:, :, :1] - first.to(x)) / sigma, v[:, :, 1:]], dim=2)

    def frozen_velocity(self, x: Tensor, sigma: float, _=None) -> Tensor:
        with self.wan.adapters.only(self.wan.adapters.frozen):
            return self.velocity(x, sigma)


def gradients(velocity, wan: WanVideoModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of ⟨velocity, a random direction⟩: to x, and to the adapter as one vector."""
    x = x.clone().requires_grad_()
    v = velocity(x)
    v.backward(draw(*v.shape, seed=9).to(v))
    assert x.grad is not None
    return x.grad, collect(wan)


def distance(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


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
    wan = model(kind, placement=Placement(recompute=recompute))
    plain_autograd(Stock(wan, given), codec, toy_score, X, sigmas, 2, 1.0, 1.0, "sigma", through)
    expected = collect(wan)
    reward_gradient(
        wan, codec, toy_score, X, given, sigmas, grad_steps=2, reward_weight=1.0, kl_through=through
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


class Late(Copies):
    """Copies that come as late as they may: the target is NaN until it is waited for."""

    def begin(self, target, source):
        _poison(target)
        arrived = []

        def wait():
            if not arrived:
                target.copy_(source)
                arrived.append(True)

        return wait


class Poisoned(BlockWeights):
    """What leaves a slot becomes NaN, and stays what the released block holds."""

    def _release(self, slot):
        _poison(slot.room)
        slot.room, slot.block = self._room(len(slot.room)), None

    def intact(self) -> int:
        """How many of the streamed blocks hold weights that are none of them NaN."""
        held = [[t for t, _ in self._host[index][1]] for index in self._streamed]
        home = [[t.data_ptr() == h.data_ptr() for t, h in self._host[index][1]] for index in self._streamed]
        return sum(
            not all(at_home) and not any(t.isnan().any() for t in block)
            for block, at_home in zip(held, home, strict=True)
        )


def _poison(tensor: Tensor) -> None:
    tensor.view(-1).view(torch.uint8).fill_(255)  # all bits set is NaN in every floating type


@pytest.mark.parametrize(
    "resident, on_host, through", [(0, False, "detached"), (0, True, "detached"), (2, True, "exact")]
)
def test_streamed_weights_and_states_give_the_same_bits(resident, on_host, through):
    placement = Placement(resident=resident, states_on_host=on_host)
    late = Late(torch.device("cpu"))
    streamed = model(
        layers=5,
        placement=placement,
        weights=lambda made: Poisoned(made.blocks, placement, late),
        states=BlockStates(placement, late),
    )
    codec, sigmas, given = ToyCodec(dtype=torch.float32), shifted_sigmas(3, 5.0), condition("I2V-A14B")
    results = []
    for wan in (model(layers=5), streamed):
        rollout, _ = reward_gradient(
            wan, codec, toy_score, X, given, sigmas, grad_steps=2, reward_weight=1.0, kl_through=through
        )
        results.append((rollout.latents, collect(wan)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    weights = streamed.stack.weights
    assert isinstance(weights, Poisoned)
    assert len(weights._slots) == 2 >= weights.intact()


def test_blocks_are_loaded_once_a_visit_and_not_at_the_turn():
    # Five blocks, two slots. The first pass brings all 5. What it leaves in the slots, 3 and 4, is where the
    # backward pass begins: it brings 3. That leaves 0 and 1: the next pass brings 3.
    wan, given = model(layers=5, placement=Placement(resident=0)), condition("I2V-A14B")
    weights = wan.stack.weights
    v = wan.velocity(X, SIGMA, given)
    assert weights.loads == 5
    v.sum().backward()
    assert weights.loads == 8
    wan.velocities(X, SIGMA, given, fork=False, through_reference=False)  # two passes, one visit
    assert weights.loads == 11


def test_resident_blocks_are_spread_and_the_rest_is_streamed():
    made = network("T2V", layers=6)
    assert BlockWeights(made.blocks, Placement(resident=2))._streamed == [1, 2, 4, 5]
    assert BlockWeights(made.blocks, Placement(resident=9))._streamed == []


def test_layers_that_work_on_pieces_give_what_they_give_whole(monkeypatch):
    given, results = condition("I2V-A14B"), []
    for pieces in (1 << 24, 2 * 32 * 5):  # 5 of 12 tokens of 32 channels, for a batch of 2
        monkeypatch.setattr(wan_network, "_PIECE", pieces)
        monkeypatch.setattr(attention, "_NUMBERS", pieces)  # all heads; one head at a time
        wan = model()
        results.append(gradients(lambda x, wan=wan: wan.velocity(x, SIGMA, given), wan, X))
    for whole, pieces in zip(*results, strict=True):
        assert distance(pieces, whole) <= 1e-6


def test_host_memory_is_lent_again_once_its_last_view_is_gone():
    memory = HostMemory(torch.device("cpu"))
    first = memory.empty((3, 5), torch.bfloat16)
    address, view = first.data_ptr(), first[1:]
    del first
    assert memory.empty((3, 5), torch.bfloat16).data_ptr() != address
    del view
    assert memory.empty((15,), torch.bfloat16).data_ptr() == address
    assert memory.empty((2, 3), torch.float32).shape == (2, 3) and list(memory._free) == [30, 24]
    memory.empty((1,), torch.float32)  # a third size: the oldest is given back
    assert list(memory._free) == [24, 4]


def test_frozen_adapters_travel_with_their_block():
    given = condition("I2V-A14B")
    velocities, placement = [], Placement(resident=0)
    for where, change in (
        (None, {}),
        (placement, {"weights": lambda made: Poisoned(made.blocks, placement)}),
    ):
        wan = model(layers=4, adapter=False, placement=where, **change)
        wan.place_adapter(layers(wan, seed=14), frozen=True)
        wan.place_adapter(layers(wan))
        velocities.append(wan.velocity(X, SIGMA, given))
    assert torch.equal(*velocities)
    gathered = [tensor for tensor, _ in wan.stack.weights._host[0][1]]
    # A block's own: 10 linear layers with bias, 4 norms of q and k, norm2 with bias, the table; 20 LoRA
    # halves.
    assert len(gathered) == 20 + 4 + 2 + 1 + 20


def update(wan: WanVideoModel, grad_steps: int = 4, kl_through="detached") -> None:
    codec, sigmas = ToyCodec(dtype=torch.float32), shifted_sigmas(8, 5.0)[3:]
    reward_gradient(
        wan, codec, toy_score, X, condition("I2V-A14B"), sigmas, grad_steps=grad_steps, kl_through=kl_through
    )


def test_what_autograd_keeps_is_the_block_inputs_and_flat_in_depth_without_them():
    class Counting(BlockStates):
        """A host that autograd's count does not see: it keeps a number, the key to a tensor."""

        def __init__(self, placement):
            super().__init__(placement)
            self.host, self.live = {}, 0

        def keep(self, state):
            key = torch.tensor(len(self.host))
            self.host[len(self.host)] = state.clone()
            return key

        def travel(self, kept):
            yield from ([self.host[int(key)] for key in keys] for keys in kept)

    def peak(depth: int, states: BlockStates) -> int:
        wan = model(layers=depth, states=states)
        return saved_bytes(lambda: update(wan))

    plain = [peak(depth, BlockStates(Placement())) for depth in (2, 4, 8)]
    apart = [peak(depth, Counting(Placement())) for depth in (2, 4, 8)]
    # 24 tokens of 32 channels in float32 are 3072 bytes; a block keeps two such states, and a log-sum-exp of
    # 24 tokens and 2 heads, 192 bytes. A key is 8 bytes, and stands for each of the three.
    assert plain[1] - plain[0] == 2 * (2 * 3072 + 192) and plain[2] - plain[1] == 4 * (2 * 3072 + 192)
    assert apart[1] - apart[0] == 2 * (3 * 8) and apart[2] - apart[1] == 4 * (3 * 8)


@pytest.mark.parametrize(
    "through, backward", [("detached", 4 + 3), ("biased", 4), ("exact", 4 + 3)], ids=lambda value: str(value)
)
def test_an_update_visits_each_block_the_promised_number_of_times(through, backward):
    # 5 steps of rollout, the last of which serves the gradient too; 3 more of v_θ and 4 of v_ref with what
    # the backward pass needs. Backward each step is run again once; pulled back once, or twice where the
    # anchor's way ends at x_t, but for the first, whose x_t is given. "exact" runs v_ref again too, where x_t
    # wants its gradient.
    wan = model()
    wan.stack.visits.clear()
    update(wan, kl_through=through)
    blocks = 2
    again = 4 + (3 if through == "exact" else 0)
    assert wan.stack.visits == {
        "forward": 12 * blocks,
        "again": again * blocks,
        "backward": backward * blocks,
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks for one at every input
def test_compiled_segments_give_the_same_gradients_and_one_graph_serves_all_blocks():
    from torch._dynamo.utils import counters

    results = []
    for backend in (None, "aot_eager"):
        counters.clear()
        # 24 tokens in pieces of 10: the last piece, of 4, makes one graph more.
        wan = model("T2V", layers=3, placement=Placement(ffn_tokens=10, compile=backend))
        x = X.clone().requires_grad_()
        passes = wan.velocities(x, SIGMA, condition("T2V"), fork=True, through_reference=False)
        sum((v * draw(*v.shape, seed=9 + i)).sum() for i, v in enumerate(passes)).backward()
        assert x.grad is not None
        results.append((*(v.detach() for v in passes), x.grad, collect(wan)))
    for ours, expected in zip(results[1], results[0], strict=True):
        assert distance(ours, expected) <= 1e-5
    # Were there a graph for each block: 4 segments · 3 blocks · 3 runs (v_θ, v_ref, v_θ again).
    assert counters["stats"]["unique_graphs"] < 36 and not counters["graph_break"]


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
