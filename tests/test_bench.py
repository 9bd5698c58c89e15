"""What the benches count and measure, on cases whose answer is known."""

import pytest
import torch

from ipro_core.bench.count import count_network
from ipro_core.bench.counting import Ledger, without_arithmetic
from ipro_core.bench.measure import cost
from ipro_core.bench.table import BENCHES, Row, markdown, ratios
from ipro_core.bench.ways import decode_tiled, decode_whole, gradient
from ipro_core.bench.work import KINDS, Size, StandingFace, Width, draw, random_model, random_vae
from ipro_core.commands.bench import bench_arguments
from ipro_core.models.memory import Placement
from ipro_core.models.wan_kinds import RELEASED
from ipro_core.sampling.flow import shifted_sigmas

CPU = torch.device("cpu")
WIDTH = Width(heads=2, head_dim=16, ffn=64, layers=2, decoder=2)


def test_a_ledger_counts_what_is_alive_and_not_its_views():
    with Ledger() as ledger:
        a = torch.zeros(10)
        b = a.view(2, 5)[1:] + 1  # 5 numbers more
        assert ledger.now["cpu"] == 40 + 20
        del a
        with ledger.at("host"):
            c = torch.zeros(3, dtype=torch.float64)
        del b
        assert ledger.now == {"cpu": 0, "host": 24} and ledger.peak["cpu"] == 60
        del c
    assert ledger.now["host"] == 0


def test_arithmetic_is_two_for_each_product_and_sum_backward_passes_too():
    a, b = torch.zeros(2, 3, requires_grad=True), torch.zeros(3, 5)
    with Ledger() as ledger:
        (a @ b).sum().backward()  # b wants no gradient: one product forward, one back
    assert ledger.flops == 2 * (2 * 2 * 3 * 5)


def test_cpu_attention_counts_as_attention():
    q = torch.zeros(1, 2, 7, 4, requires_grad=True)
    with Ledger() as ledger:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert ledger.flops == 4 * 2 * 7 * 7 * 4 * (1 + 2.5)


def test_without_arithmetic_the_books_are_those_of_real_tensors():
    real = []
    for context in (torch.no_grad, without_arithmetic):
        with context(), Ledger() as ledger:
            x = torch.empty(1, 2, 64, 16)
            y = torch.nn.functional.scaled_dot_product_attention(x, x, x)
            z = torch.nn.functional.linear(y, torch.empty(8, 16))
            del x, y
            real.append((ledger.flops, *ledger.peak.values(), *ledger.now.values(), z.shape))
    assert real[0] == real[1]


@pytest.mark.parametrize("kind", KINDS)
def test_ours_is_plain_autograds_gradient_and_takes_less_memory(kind):
    size = Size(kind, 64, 64, 5)
    model, vae, gradients, peaks = random_model(kind, WIDTH), random_vae(kind, 2), {}, {}
    given = draw(*size.latents), size.condition(64, draw), shifted_sigmas(3, 5.0)
    for way in ("ours", "plain"):

        def work(way=way):
            for parameter in model.adapter_parameters().values():
                parameter.grad = None
            gradient(way, model, vae, StandingFace.of(size), *given, grad_steps=2, reward_weight=100.0)

        peaks[way] = cost(work, CPU).device_bytes
        gradients[way] = torch.cat([p.grad.flatten() for p in model.adapter_parameters().values()])
    difference = (gradients["ours"] - gradients["plain"]).norm() / gradients["plain"].norm()
    assert difference <= 1e-5 and gradients["plain"].norm() > 0
    assert peaks["ours"] < peaks["plain"]


def test_one_tile_is_the_whole_and_several_differ():
    vae, latents = random_vae("I2V-A14B", 2), draw(1, 16, 1, 2, 2)
    torch.testing.assert_close(decode_tiled(vae, latents), decode_whole(vae, latents))
    wide = draw(1, 16, 1, 4, 6)
    whole, tiled = decode_whole(vae, wide), decode_tiled(vae, wide)
    assert whole.shape == tiled.shape and not torch.allclose(whole, tiled)


def test_blocks_from_the_third_on_cost_the_same():
    # What `count_update` relies on when it carries three and four blocks on to forty.
    size, sigmas = Size("T2V-1.3B", 64, 64, 5), shifted_sigmas(3, 5.0)
    base = RELEASED["T2V-1.3B"] | {"num_attention_heads": 2, "ffn_dim": 256}
    placement = Placement("meta", resident=0, states_on_host=True)
    three, four, six = (
        count_network(size, base | {"num_layers": n}, "bf16", placement, 4, sigmas, grad_steps=2)
        for n in (3, 4, 6)
    )
    for a, b, c in zip(three, four, six, strict=True):
        assert c == pytest.approx(a + 3 * (b - a), rel=1e-3)


def test_sizes_are_wans():
    assert Size("I2V-A14B", 832, 480, 81).tokens == 32760  # 21 · 30 · 52
    assert Size("TI2V-5B", 1280, 704, 121).tokens == 27280  # 31 · 22 · 40


def test_rows_become_ratios_and_a_table():
    rows = [
        Row("s", 1, "ours", "detached", 3.0, 10, 7, 1.0, 1e-7),
        Row("s", 1, "plain", "detached", 4.0, 40, 0, 1.0, 0.0),
        Row("s", 1, "ours", "biased", 3.0, 8, 7, 1.0, 1e-7),
        Row("s", 1, "reference", "biased", 5.0, 80, 0, 1.0, 0.5),
    ]
    assert list(ratios(rows).values()) == [0.1, 0.25, 0.75, 1e-7]
    assert markdown([{"a": 0.5, "n bytes": 2_500_000}]) == "| a | n bytes |\n| --- | --- |\n| 0.5 | 2.5 MB |"


def test_every_bench_is_a_choice_of_the_command():
    import argparse

    parser = argparse.ArgumentParser()
    bench_arguments(parser)
    for name in BENCHES:
        assert parser.parse_args(["--size", name]).size == name
