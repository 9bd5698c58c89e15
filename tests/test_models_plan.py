"""The planner against the engine's own counts, and what it says where nothing fits."""

from dataclasses import replace

import pytest

from ipro_core.bench.count import STREAMED, count_codec, count_network, sampling_peak
from ipro_core.bench.work import Size
from ipro_core.models.memory import Placement
from ipro_core.models.plan import Plan, plan_update, planned
from ipro_core.models.plan_decoder import decoder_cost
from ipro_core.models.plan_shape import Passes, Shape
from ipro_core.models.rate import Rate
from ipro_core.models.wan_kinds import RELEASED, header, released_file
from ipro_core.sampling.flow import shifted_sigmas

RATE = Rate(flops=80e12, copies=25e9)
SIGMAS = shifted_sigmas(4, 5.0)


def small(kind: str, heads: int, layers: int) -> dict:
    return RELEASED[kind] | {
        "num_attention_heads": heads,
        "num_layers": layers,
        "ffn_dim": 3 * 128 * heads,
    }


@pytest.mark.parametrize(
    "kind, heads, layers, storage, placement, anchored, kept, later",
    [
        ("I2V-A14B", 8, 4, "bf16", STREAMED, [0, 1], 1, 0),
        ("I2V-A14B", 12, 3, "fp8", STREAMED, [], 2, 0),
        ("T2V-1.3B", 6, 5, "bf16", Placement("meta", None, False), [0, 1], 2, 0),
        ("TI2V-5B", 8, 4, "int8", Placement("meta", 2, True), [0, 1], 1, 2),
        ("TI2V-5B", 8, 4, "bf16", Placement("meta", 2, True, kept_attentions=6), [1], 0, 0),
        ("I2V-A14B", 8, 5, "fp8", replace(STREAMED, kept_attentions=4), [0], 1, 0),
    ],
)
def test_the_predicted_peaks_are_the_counted_ones(
    kind, heads, layers, storage, placement, anchored, kept, later
):
    config = small(kind, heads, layers)
    size = Size(kind, 640, 384, 21) if kind != "TI2V-5B" else Size(kind, 1280, 768, 21)
    shape = Shape.of(header(config, kind, storage))
    passes = Passes.of(len(SIGMAS) - 1, 2, len(anchored), True, kept, later)
    plan = planned(shape, size.width, size.height, size.frames, passes, 32, RATE, placement)
    settings = {"grad_steps": 2, "first_grad_step": 2 - later, "anchored": anchored, "kept_passes": kept}
    books = count_network(size, config, storage, placement, 32, SIGMAS, **settings)
    assert plan.network_bytes == pytest.approx(books.device, rel=0.1)
    assert plan.network_host_bytes == pytest.approx(books.host, rel=0.1)
    # The planner leaves out the entrance, the exit and the adapter's thin products.
    assert shape.forward_flops(size.tokens) == pytest.approx(books.forward, rel=0.05)
    assert plan.network_flops == pytest.approx(books.update, rel=0.1)


@pytest.mark.parametrize(
    "kind, heads, layers, storage, placement",
    [
        ("I2V-A14B", 8, 4, "bf16", STREAMED),
        ("T2V-1.3B", 6, 5, "bf16", Placement("meta", None, False)),
        ("TI2V-5B", 8, 4, "int8", Placement("meta", 2, True)),
    ],
)
def test_sampling_takes_what_is_predicted(kind, heads, layers, storage, placement):
    config = small(kind, heads, layers)
    size = Size(kind, 640, 384, 21) if kind != "TI2V-5B" else Size(kind, 1280, 768, 21)
    shape = Shape.of(header(config, kind, storage))
    passes = Passes.sampling(8, decodes=False)
    plan = planned(shape, size.width, size.height, size.frames, passes, 32, RATE, placement)
    assert plan.network_bytes == pytest.approx(sampling_peak(size, config, storage, placement), rel=0.1)


@pytest.mark.parametrize(
    "kind, width, height, frames, drafted, keeps",
    [
        ("I2V-A14B", 576, 320, 9, False, False),
        ("I2V-A14B", 480, 480, 13, True, False),
        ("TI2V-5B", 832, 480, 13, True, True),
        ("TI2V-5B", 960, 544, 9, True, False),
    ],
)
def test_the_decoder_takes_what_is_predicted(kind, width, height, frames, drafted, keeps):
    counted = count_codec(Size(kind, width, height, frames), drafted, keeps)
    cost = decoder_cost(kind == "TI2V-5B", width, height, frames, drafted, keeps)
    assert cost.work == pytest.approx(counted.device, rel=0.1)
    assert cost.waiting == pytest.approx(counted.host, rel=0.1)
    assert cost.flops == pytest.approx(counted.decode + counted.pullback, rel=0.1)


def test_a_draft_is_planned_for_less():
    sizes = {"device_bytes": 24 * 10**9, "host_bytes": 64 * 10**9, "rate": RATE}
    whole, drafted = (
        plan_update("TI2V-5B", 1280, 704, 121, drafted=drafted, **sizes) for drafted in (False, True)
    )
    assert drafted.seconds < 0.9 * whole.seconds
    assert drafted.kept_bytes and not whole.kept_bytes
    little = {"device_bytes": 80 * 10**9, "host_bytes": 8 * 10**9}
    assert not plan_update("TI2V-5B", 1280, 704, 121, drafted=True, **sizes | little).kept_bytes


def test_a_large_device_holds_all_and_a_small_one_streams():
    def placed(gigabytes: int, storage="bf16") -> Placement:
        plan = plan_update(
            "I2V-A14B", 832, 480, 81, storage=storage, device_bytes=gigabytes * 10**9,
            host_bytes=64 * 10**9, rate=RATE,
        )  # fmt: skip
        assert plan.device_bytes <= gigabytes * 1e9 and plan.host_bytes <= 64e9
        return plan.placement

    assert placed(80).resident is None and not placed(80).states_on_host
    assert (placed(16).resident or 0) < (placed(24).resident or 0) < 40


def test_attentions_fill_what_the_rest_leaves_but_for_8_gib():
    settings = {"storage": "fp8", "device_bytes": 13 * 10**9, "rate": RATE}

    def plan(host_bytes: int, attentions: int | None = None) -> Plan:
        return plan_update("I2V-A14B", 832, 480, 81, host_bytes=host_bytes, attentions=attentions, **settings)

    none = plan(64 << 30, 0)
    # A block's: 32760 tokens of 5120 numbers of two bytes, and 40 heads' log-sum-exp of four bytes.
    each = 32760 * (5120 * 2 + 40 * 4)
    filled, kept = plan(64 << 30), plan(64 << 30).placement.kept_attentions
    assert kept == ((64 << 30) - (8 << 30) - none.host_bytes) // each
    assert filled.host_bytes == none.host_bytes + kept * each and filled.device_bytes == none.device_bytes
    assert filled.seconds < none.seconds
    assert plan(none.host_bytes + (8 << 30)).placement.kept_attentions == 0  # it still fits
    assert plan(1 << 40).placement.kept_attentions == 3 * 40  # K = 4, one of which is kept whole


def test_slow_copies_make_a_streamed_plan_slower():
    def seconds(copies: float) -> float:
        return plan_update(
            "I2V-A14B", 480, 480, 17, device_bytes=14 * 10**9, host_bytes=64 * 10**9, rate=Rate(1e15, copies)
        ).seconds

    assert seconds(1e9) > 2 * seconds(25e9)


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(
        ValueError, match=r"takes .* GB of the device .*: (\d+) frames of (\d+)x(\d+) would fit"
    ) as refused:
        plan_update("I2V-A14B", 832, 480, 81, device_bytes=9 * 10**9, host_bytes=64 * 10**9, rate=RATE)
    words = str(refused.value).split(": ")[1].split()
    width, height = map(int, words[3].split("x"))
    plan_update(
        "I2V-A14B", width, height, int(words[0]), device_bytes=9 * 10**9, host_bytes=64 * 10**9, rate=RATE
    )
    with pytest.raises(ValueError, match="choose a smaller model"):
        plan_update("I2V-A14B", 832, 480, 81, device_bytes=10**9, host_bytes=64 * 10**9, rate=RATE)


def test_a_file_says_what_its_kind_says():
    header_5b = released_file("TI2V-5B")
    options = {"device_bytes": 80 * 10**9, "host_bytes": 64 * 10**9, "rate": RATE}
    assert plan_update(header_5b, 832, 480, 33, **options) == plan_update("TI2V-5B", 832, 480, 33, **options)
    assert "not yet measured on a GPU" in plan_update(header_5b, 832, 480, 33, **options).text()
