"""True sizes on a CUDA device: random weights in the shapes of the released networks, under caps of memory.

Not run so far by anybody: no GPU was at hand.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..models.plan import Plan, plan_update
from ..models.rate import Rate, host_bytes, measured_rate
from ..models.vae import WanVae
from ..models.wan import WanVideoModel
from ..models.wan_files import load_transformer
from ..models.wan_kinds import released_file
from ..sampling.flow import shifted_sigmas
from ..sampling.gradient import reward_gradient
from .counting import Ledger
from .work import Size, StandingFace, true_vae

CAPS = (24, 48, 80)
"""GB of the device that the process may use."""
SIZES = (Size("TI2V-5B", 1280, 704, 121), Size("I2V-A14B", 832, 480, 81), Size("I2V-A14B", 480, 480, 49))


def true_size_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """One update for each size and cap that the card has, as the planner places it; time, peak, and the share
    of the rate that plain matrix products reach."""
    rate, total = measured_rate(device), torch.cuda.get_device_properties(device).total_memory
    for cap in CAPS:
        if cap * 1e9 > total:
            continue
        torch.cuda.set_per_process_memory_fraction(cap * 1e9 / total, device)
        for size in SIZES:
            try:
                plan = plan_update(
                    size.kind, size.width, size.height, size.frames,
                    device_bytes=cap * 10**9, host_bytes=host_bytes(), rate=rate, device=device,
                )  # fmt: skip
            except ValueError as refusal:
                yield {"size": str(size), "cap GB": cap, "refused": str(refusal)}
                continue
            yield {"size": str(size), "cap GB": cap, **_one(size, plan, rate, device)}
            torch.cuda.empty_cache()


def _one(size: Size, plan: Plan, rate: Rate, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(0)

    def make(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, device=device).normal_(std=0.02, generator=generator)
        return made.to(dtype).to("cpu" if plan.placement.resident is not None else device)

    file = released_file(size.kind, "bf16", make)
    network = load_transformer(file, "cpu" if plan.placement.resident is not None else device)
    model = WanVideoModel(network, file.path, plan.placement)
    model.new_adapter()
    codec = WanVae(true_vae(size.kind).to(device), kept_bytes=plan.kept_bytes)
    options: Any = {"generator": generator, "device": device}
    condition = size.condition(4096, lambda *shape: torch.randn(shape, **options))
    x = torch.randn(size.latents, **options)

    def update() -> None:
        sigmas = shifted_sigmas(8, 5.0)[3:]
        reward_gradient(model, codec, StandingFace.of(size), x, condition, sigmas, anchored=[1])

    update()  # kernels are chosen, memory is pinned
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    update()
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device)
    with Ledger() as ledger:
        update()
    return {
        "tokens": size.tokens,
        "seconds": seconds,
        "planned seconds": plan.seconds,
        "peak bytes": peak,
        "planned bytes": plan.device_bytes,
        "PFLOP": ledger.flops / 1e15,
        "share of the card's rate": ledger.flops / seconds / rate.flops,
    }
