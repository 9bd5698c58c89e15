"""What nobody reads is not computed: the feed-forward's last product, where a block is run again."""

import pytest
import torch
from torch import nn

from ipro_core.bench.counting import Ledger
from ipro_core.bench.work import Width, draw, random_model
from ipro_core.models.frozen import FrozenLinear, StoredWeight, product


@pytest.mark.parametrize("storage", ["plain", "int8"])
def test_an_unread_product_is_zero_and_has_the_gradient_of_the_read_one(storage):
    layer = nn.Linear(6, 5).requires_grad_(False)
    if storage == "int8":
        stored = (20 * layer.weight).round().to(torch.int8)
        layer = FrozenLinear(StoredWeight(stored, torch.tensor(0.05)), layer.bias, 6)
    pulled = []
    for read in (True, False):
        x = draw(3, 6, seed=2).requires_grad_()
        y = product(layer, x, read)
        y.backward(draw(3, 5, seed=3))
        pulled.append(x.grad)
    assert torch.equal(*pulled) and not y.any()


@pytest.mark.parametrize("through_time", [False, True])
def test_a_block_run_again_leaves_out_the_last_product_unless_its_gate_reads_it(through_time):
    model = random_model("T2V-1.3B", Width(heads=2, head_dim=16, ffn=48, layers=1, decoder=2))
    stack, block = model.stack, model.transformer.blocks[0]
    modulation = draw(1, 1, 6, 32, seed=3).requires_grad_(through_time)
    x, cotangent = draw(1, 12, 32, seed=4), draw(1, 12, 32, seed=5)
    with model.adapters.only([]), Ledger() as ledger:
        (pulled,) = stack._pull_feed_forward(block, x, modulation, [cotangent])
    product_flops = 2 * 12 * 32 * 48
    # ffn.0 forward and both backward; ffn.2's own product only where the gate's gradient wants it.
    assert ledger.flops == (4 if through_time else 3) * product_flops
    to_time, modulation.grad = modulation.grad, None
    x.requires_grad_()
    with model.adapters.only([]):
        stack.segments.feed_forward(block, x, modulation).backward(cotangent)
    assert torch.equal(pulled, x.grad)
    assert (to_time is None) == (modulation.grad is None) == (not through_time)
    if through_time:
        torch.testing.assert_close(to_time, modulation.grad)


def test_a_ledger_leaves_out_weights_that_were_there_before_though_their_views_are_new():
    layer, x = nn.Linear(100, 100, bias=False), torch.zeros(1, 100)
    with Ledger() as ledger:
        y = layer(x)  # by a transposed view of the weight
        assert ledger.now["cpu"] == y.nbytes == 400
