"""`ipro bench`: what an update costs, ours beside other ways; or counted at true size without a GPU."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from ..bench.count import STREAMED, Whole, count_reference, count_update
from ..bench.gpu import true_size_rows
from ..bench.table import BENCHES, growth, machine, markdown, ratios, rows
from ..bench.work import Size
from .flags import progress


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Measure time, memory and arithmetic of one update, side by side with other ways on the same work."""
    if options.count:
        counted = [
            {"size": str(size), "weights": storage, "passes": name, **_counted(size, storage, settings)}
            for size, storage, name, settings in progress(COUNTED, "counting", total=len(COUNTED))
        ]
        print(markdown(counted))
        beside = list(_beside_reference())
        print("\n" + markdown(beside))
        return {"counted": counted, "beside the reference": beside}
    device = torch.device(options.device)
    wanted = BENCHES[options.size]
    measured = list(progress(rows(wanted, device), "measuring", total=5 * len(wanted.sizes)))
    outcome: dict[str, Any] = {
        "machine": machine(device),
        "rows": [asdict(row) for row in measured],
        "ratios": ratios(measured),
        "growth": growth(device) if options.size == "tiny" else {},
    }
    print(markdown(outcome["rows"]))
    figures = outcome["ratios"] | outcome["growth"]
    print("\n" + markdown([{"figure": name, "value": value} for name, value in figures.items()]))
    if device.type == "cuda":
        outcome["true size"] = list(progress(true_size_rows(device), "true sizes"))
        print("\n" + markdown(outcome["true size"]))
    return outcome


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=list(BENCHES), default="tiny", help="How large the networks are.")
    parser.add_argument(
        "--count",
        action="store_true",
        help="Count A14B and TI2V-5B at true size, on tensors without numbers.",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cuda also runs random weights in the true shapes, under caps of memory.",
    )


_A14B, _5B = Size("I2V-A14B", 832, 480, 81), Size("TI2V-5B", 1280, 704, 121)
_KEEPING = replace(STREAMED, kept_attentions=48)
"""As many as the planner keeps of A14B, fp8, on a machine of 64 GiB."""
_PASSES: dict[str, dict[str, Any]] = {
    "K = 4": {},
    "K = 4, reference at its first step": {"anchored": [0]},
    "K = 4, reference at a later step": {"anchored": [1]},
    "K = 4, reference at its first step, 48 attentions kept": {"anchored": [0], "placement": _KEEPING},
    "K = 4, reference at a later step, 48 attentions kept": {"anchored": [1], "placement": _KEEPING},
    "K = 4, no reference": {"anchored": []},
    "K = 1": {"grad_steps": 1},
    "K = 1, no reference": {"grad_steps": 1, "anchored": []},
    "K = 8 of 8": {"grad_steps": 8, "first_step": 0},
}
"""A random reference step of four is the first in a quarter of the videos; with a reference_chance of a half,
half of them have none."""
COUNTED = [
    (size, storage, name, _PASSES[name])
    for size, storage, name in (
        *((_A14B, "fp8", name) for name in _PASSES),
        (_A14B, "bf16", "K = 4, reference at a later step"),
        (_5B, "bf16", "K = 4, reference at a later step"),
    )
]


def _counted(size: Size, storage: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return asdict(count_update(size, storage, **settings))


def _beside_reference() -> Iterator[dict[str, Any]]:
    """The same update by us and as the released code does it."""
    ours = count_update(_A14B, "bf16", kl_through="biased")
    passes = ours.update + ours.decode + ours.pullback
    for way, whole in (
        ("ours", Whole(passes, ours.device_bytes)),
        ("reference", count_reference(_A14B, "bf16")),
    ):
        yield {"size": str(_A14B), "weights": "bf16", "way": way, **whole._asdict()}
