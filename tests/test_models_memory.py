"""Where weights and states lie while the engine works: streamed, resident, lent and given back."""

import pytest
import torch
from test_sampling_gradient import collect, saved_bytes
from torch import Tensor
from toys import ToyCodec, draw, toy_score
from wan_engine import SIGMA, X, condition, distance, gradients, layers, model, network

from ipro_core.models import attention, stack, wan_network
from ipro_core.models.memory import BlockStates, BlockWeights, Copies, HostMemory, Placement
from ipro_core.models.wan import WanVideoModel
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.gradient import reward_gradient


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
    "resident, on_host, through, attentions",
    [
        (0, False, "detached", 0),
        (0, True, "detached", 0),
        (2, True, "exact", 3),
        (0, True, "detached", 7),
        (0, False, "biased", 99),
    ],
)
def test_streamed_weights_and_states_give_the_same_bits(resident, on_host, through, attentions):
    placement = Placement(resident=resident, states_on_host=on_host, kept_attentions=attentions)
    late = Late(torch.device("cpu"))
    streamed = model(
        layers=5,
        placement=placement,
        weights=lambda made: Poisoned(made.blocks, placement, late),
        states=BlockStates(placement, late),
    )
    codec, sigmas, given = ToyCodec(dtype=torch.float32), shifted_sigmas(4, 5.0), condition("I2V-A14B")
    results = []
    for wan in (model(layers=5), streamed):
        rollout, _ = reward_gradient(
            wan, codec, toy_score, X, given, sigmas, grad_steps=3, reward_weight=1.0, kl_through=through
        )
        results.append((rollout.latents, collect(wan)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert streamed.stack.visits["recalled"] == min(attentions, 2 * 5)  # two passes are run twice
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


def update(wan: WanVideoModel, **settings) -> None:
    codec, sigmas = ToyCodec(dtype=torch.float32), shifted_sigmas(8, 5.0)[3:]
    reward_gradient(wan, codec, toy_score, X, condition("I2V-A14B"), sigmas, **settings)


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


@pytest.mark.parametrize("kept, recalled", [(4, 0), (1, 5), (0, 5)])
def test_attentions_are_kept_for_passes_that_are_run_twice_and_for_no_others(kept, recalled, monkeypatch):
    # 5 steps, K = 4 of v_θ, one v_ref: M passes are kept whole. There is room for 5 blocks' attentions, two
    # passes and a half of two blocks; each spares a block of the second run its attention.
    wan = model(placement=Placement(kept_attentions=5))
    attend, attended = stack.attend, []
    monkeypatch.setattr(stack, "attend", lambda *qkv: attended.append(1) or attend(*qkv))
    update(wan, anchored=[1], kept_passes=kept)
    forward = 2 * (5 + 4 - kept + 1)
    assert wan.stack.visits["recalled"] == recalled
    assert wan.stack.visits["forward"] == len(attended) == forward - recalled


def test_an_update_that_is_cancelled_leaves_no_attention_to_the_next():
    def cancelled(*_):
        raise KeyboardInterrupt

    wan, plain = model(placement=Placement(kept_attentions=6)), model()
    codec, sigmas, given = ToyCodec(dtype=torch.float32), shifted_sigmas(4, 5.0), condition("I2V-A14B")
    with pytest.raises(KeyboardInterrupt):
        reward_gradient(wan, codec, cancelled, X + 1, given, sigmas)
    for each in (wan, plain):
        reward_gradient(each, codec, toy_score, X, given, sigmas)
    assert torch.equal(collect(wan), collect(plain))


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
