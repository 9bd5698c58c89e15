"""The benches as rows of figures, and how they are printed."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models.memory import BlockStates, Placement
from ..models.vae import WanVae
from ..models.wan import WanVideoModel
from ..sampling.flow import shifted_sigmas
from ..sampling.gradient import KLThrough
from .count import pullback_peak
from .counting import CountedMemory, CountedShelf, Ledger
from .measure import cost, quickest
from .ways import Way, gradient
from .work import Size, StandingFace, Width, draw, random_model, random_vae

_REWARD_WEIGHT = 100.0
"""Random networks: so that the reward's gradient is as long as the anchor's."""
_TEXT = 64
WAYS: tuple[tuple[Way, KLThrough], ...] = (
    ("ours", "detached"),
    ("plain", "detached"),
    ("ours", "biased"),
    ("plain", "biased"),
    ("reference", "biased"),
)


@dataclass(frozen=True)
class Bench:
    """A size on which the ways can be run on a CPU."""

    sizes: tuple[Size, ...]
    width: Width
    repeats: int


BENCHES = {
    "tiny": Bench(
        (
            Size("I2V-A14B", 64, 64, 9),
            Size("TI2V-5B", 128, 128, 9),
            Size("T2V-1.3B", 64, 64, 9),
        ),
        Width(heads=2, head_dim=16, ffn=64, layers=4, decoder=4),
        repeats=7,
    ),
    "moderate": Bench(
        (Size("I2V-A14B", 208, 160, 33),),
        Width(heads=4, head_dim=64, ffn=1024, layers=16, decoder=8),
        repeats=1,
    ),
}


@dataclass(frozen=True)
class Row:
    """One way on one size."""

    size: str
    tokens: int
    way: Way
    kl_through: KLThrough
    seconds: float
    device_bytes: int
    host_bytes: int | None
    """What ours keeps in host memory; None: a GPU's, not counted."""
    forwards: float
    """Arithmetic, in forward passes of the network; the decoder is in it."""
    difference: float
    """||gradient − plain autograd's|| / ||plain autograd's||, the anchor's way through x_t the same."""


def rows(bench: Bench, device: torch.device) -> Iterator[Row]:
    """Every way on every size of a bench: same weights, noise and score."""
    for size in bench.sizes:
        model, vae, ledger = _networks(size, bench.width, device)
        # Timed where copies to the host and back are needed, and not made for the count alone.
        timed = (
            (model, vae)
            if ledger is None
            else (random_model(size.kind, bench.width), random_vae(size.kind, bench.width.decoder))
        )
        forward, results = _forward(model, size, device), {}
        for way, kl_through in WAYS:
            seconds = quickest(_Run(*timed, size, device, way, kl_through), device, bench.repeats)
            run = _Run(model, vae, size, device, way, kl_through)
            results[way, kl_through] = seconds, cost(run, device, ledger), run.gradient
        for (way, kl_through), (seconds, spent, pulled) in results.items():
            plain = results["plain", kl_through][2]
            yield Row(
                str(size),
                size.tokens,
                way,
                kl_through,
                seconds,
                spent.device_bytes,
                spent.host_bytes,
                spent.flops / forward,
                ((pulled - plain).norm() / plain.norm()).item(),
            )


def _networks(size: Size, width: Width, device: torch.device) -> tuple[WanVideoModel, WanVae, Ledger | None]:
    """All weights on the device, all that waits for the way back on the host; and, where that is one memory,
    a ledger that tells the two apart."""
    placement = Placement(device, states_on_host=True)
    if device.type == "cuda":
        vae = random_vae(size.kind, width.decoder)
        vae.network.to(device)
        return random_model(size.kind, width, placement), vae, None
    ledger = Ledger()
    states = BlockStates(placement, memory=CountedMemory(ledger))
    vae = random_vae(size.kind, width.decoder, CountedShelf(ledger))
    return random_model(size.kind, width, placement, states=states), vae, ledger


class _Run:
    """One update; the gradient is left in `gradient`."""

    def __init__(
        self,
        model: WanVideoModel,
        vae: WanVae,
        size: Size,
        device: torch.device,
        way: Way,
        kl_through: KLThrough = "detached",
        grad_steps: int = 4,
        steps: int = 8,
        first_step: int = 3,
    ) -> None:
        self.model, self.vae, self.size = model, vae, size
        self.way: Way = way
        self.x, self.condition = draw(*size.latents).to(device), size.condition(_TEXT, _on(device))
        self.options: Any = {"grad_steps": grad_steps, "kl_through": kl_through}
        self.sigmas, self.score = shifted_sigmas(steps, 5.0)[first_step:], StandingFace.of(size)
        self.gradient = torch.empty(0)

    def __call__(self) -> None:
        parameters = self.model.adapter_parameters().values()
        for parameter in parameters:
            parameter.grad = None
        gradient(
            self.way, self.model, self.vae, self.score, self.x, self.condition, self.sigmas,
            reward_weight=_REWARD_WEIGHT, **self.options,
        )  # fmt: skip
        self.gradient = torch.cat([p.grad.flatten().cpu() for p in parameters if p.grad is not None])


def _on(device: torch.device) -> Any:
    return lambda *shape: draw(*shape).to(device)


def _forward(model: WanVideoModel, size: Size, device: torch.device) -> int:
    """Operations of one pass of the network."""
    x, condition = draw(*size.latents).to(device), size.condition(_TEXT, _on(device))

    @torch.no_grad()
    def once() -> None:
        model.velocity(x, 0.5, condition)

    return cost(once, device).flops


def growth(device: torch.device) -> dict[str, float]:
    """What peak memory does when K or the frames grow, on the tiny A14B and in the true decoder."""
    size, width = BENCHES["tiny"].sizes[0], BENCHES["tiny"].width
    model, vae, ledger = _networks(size, width, device)
    peaks: dict[str, int] = {}
    ways: tuple[Way, ...] = ("ours", "plain")
    for way in ways:
        for k in (1, 8):
            run = _Run(model, vae, size, device, way, grad_steps=k, first_step=0)
            peaks[f"{way} K={k}"] = cost(run, device, ledger).device_bytes
    for frames in (21, 81):
        peaks[f"decoder {frames} frames"] = pullback_peak(Size(size.kind, 832, 480, frames))
    return {
        **{f"{name}, bytes": float(peak) for name, peak in peaks.items()},
        "K=8 over K=1, ours": peaks["ours K=8"] / peaks["ours K=1"],
        "K=8 over K=1, plain": peaks["plain K=8"] / peaks["plain K=1"],
        "decoder's gradient at 832×480, 81 over 21 frames (counted)": peaks["decoder 81 frames"]
        / peaks["decoder 21 frames"],
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were made on, in general terms."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def ratios(given: Sequence[Row]) -> dict[str, float]:
    """The figures that are held against the goals, by size."""
    figures = {}
    for size in dict.fromkeys(row.size for row in given):
        of = {(row.way, row.kl_through): row for row in given if row.size == size}
        ours, plain, reference = of["ours", "detached"], of["plain", "detached"], of["reference", "biased"]
        figures[f"{size}: memory, ours over reference"] = (
            of["ours", "biased"].device_bytes / reference.device_bytes
        )
        figures[f"{size}: memory, ours over plain"] = ours.device_bytes / plain.device_bytes
        figures[f"{size}: time, ours over plain"] = ours.seconds / plain.seconds
        figures[f"{size}: gradient, ours against plain"] = ours.difference
    return figures


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mappings of the same keys as a table."""
    if not rows:
        return ""
    keys = list(rows[0])
    lines = [keys, ["---"] * len(keys), *([_shown(key, row[key]) for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(key: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and key.endswith("bytes"):
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
    return "-" if value is None else str(value)
