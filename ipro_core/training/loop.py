"""The training loop, a generator: one optimiser step for each record it yields, whatever the objective.

The consumer shows progress, stops it by closing it, or takes two steps and leaves; nothing is printed here.
Every random number is a function of (seed, number of the draw), never of what was computed before, so that a
resumed run needs only the adapter and the optimiser's moments to continue bit for bit; and what an objective
has sampled and goes on using, if it does (`Remembering`).
"""

import hashlib
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from ..runs import Run, State, latest_state
from ..types import StepRecord, check_knobs
from .settings import LoopSettings

MAY_DIFFER = ("loop.updates", "loop.checkpoint_every")
"""For `Run.open`, where config.json keeps LoopSettings as `loop`: these change nothing already done."""


@dataclass(frozen=True, eq=False)
class Draw:
    """One place in a batch: a sample, and the randomness that belongs to this place alone."""

    sample: Any
    """Opaque to the loop."""
    generator: torch.Generator
    """On the CPU, so that all devices see the same noise."""


class Objective(Protocol):
    """What is optimised: IPRO, or any other way to give the adapter a gradient."""

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        """Go through the batch in parts, so that no two parts' graphs are ever alive together.

        Each part adds its share of the batch's mean gradient to the adapter's `.grad`, and yields its share
        of the batch's mean metrics: both add up over the parts.
        """
        ...


@runtime_checkable
class Remembering(Protocol):
    """An objective that takes several updates with what it has sampled once."""

    @property
    def updates_per_batch(self) -> int:
        """So many updates get the same batch, the first of them to sample from."""
        ...

    def memory(self) -> Mapping[str, Tensor]:
        """What the next update needs of those before it; empty if it samples anew."""
        ...

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Take up what `memory` told, whatever was in hand before."""
        ...


class Trainable(Protocol):
    """All that the loop knows of a model."""

    def adapter_parameters(self) -> Mapping[str, Parameter]: ...


class TrainingStopped(ArithmeticError):
    """A number stopped being one; the adapter is still that of the update before."""

    def __init__(self, update: int, metric: str, value: float) -> None:
        super().__init__(
            f"Training stopped in update {update}: {metric} is {value}. The adapter of update {update - 1} "
            "is kept; train again with a lower learning rate, clipped gradients or a higher KL weight."
        )
        self.update, self.metric = update, metric


def train(
    model: Trainable,
    objective: Objective,
    samples: Sequence[Any],
    settings: LoopSettings,
    run: Run | None = None,
) -> Generator[StepRecord, None, None]:
    """Optimise the model's adapter in place with Adam, yielding a record after each update.

    With a run, it continues from the run's last state, or begins at 0, and saves a state every
    `checkpoint_every` updates and whenever it ends: by finishing, by being closed, by a failing reward. Who
    breaks off closes it (`contextlib.closing`) before the run.

    Raises:
        ValueError: nothing to train on, a setting out of its limits, a state of another adapter.
        TrainingStopped: a metric or the gradient is NaN or infinite.
        OSError: the disk is full; the last state stays whole.
    """
    check_knobs(settings)
    if not len(samples):
        raise ValueError("There is nothing to train on: give at least one sample.")
    adapter = dict(model.adapter_parameters())
    assert all(p.dtype in (torch.float32, torch.float64) for p in adapter.values()), "bf16 loses steps"
    optimizer = torch.optim.Adam(adapter.values(), lr=settings.learning_rate)
    average = {name: parameter.detach().clone() for name, parameter in adapter.items() if settings.averaging}

    scalars = {"seed": settings.seed, "learning_rate": settings.learning_rate}
    remembering = objective if isinstance(objective, Remembering) else None
    per_batch = 1
    if remembering:
        remembering.recall({})
        per_batch = remembering.updates_per_batch
    done = saved = 0
    if run:
        done = saved = _resume(run, adapter, average, optimizer, scalars, remembering)

    def save() -> None:
        nonlocal saved
        if run and run.writable and saved < done:
            tensors = _state_tensors(adapter, average, optimizer)
            if remembering:
                tensors |= {f"memory/{name}": tensor for name, tensor in remembering.memory().items()}
            run.save_state(State(done, tensors, scalars))
            saved = done

    whole = True  # adapter, moments and metrics.jsonl are of the same update
    try:
        while done < settings.updates:
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            metrics: dict[str, float] = {}
            for part in objective.gradients(draw_batch(samples, settings, done // per_batch)):
                _refuse_not_finite(done + 1, part)
                metrics |= {name: metrics.get(name, 0.0) + value for name, value in part.items()}
            norm = torch.nn.utils.clip_grad_norm_(adapter.values(), settings.clip_norm or math.inf).item()
            _refuse_not_finite(done + 1, {"grad_norm": norm})
            rate = _rate(settings, done)
            for group in optimizer.param_groups:
                group["lr"] = rate

            whole = False
            optimizer.step()
            done += 1
            for name, mean in average.items():
                mean.lerp_(adapter[name].detach(), 1 - _memory(settings, done))
            record = StepRecord(done, metrics | {"grad_norm": norm, "learning_rate": rate})
            if run:
                run.append(record, time.perf_counter() - started)
            whole = True
            if done % settings.checkpoint_every == 0:
                save()
            yield record
    finally:
        for parameter in adapter.values():
            parameter.grad = None
        if whole:
            save()


def _rate(settings: LoopSettings, done: int) -> float:
    """The learning rate of the update after `done` updates."""
    risen = min(1.0, (done + 1) / max(1, settings.warmup))
    fallen = 1 + (settings.last_rate - 1) * done / max(1, settings.updates - 1)
    return settings.learning_rate * risen * fallen


def _memory(settings: LoopSettings, done: int) -> float:
    """The share of the past in the average after `done` updates: the beginning, where an adapter does nothing
    yet, is forgotten sooner."""
    return min(settings.averaging, done / (done + 9))


def draw_batch(samples: Sequence[Any], settings: LoopSettings, batch: int) -> tuple[Draw, ...]:
    """The batch of this number, from 0: samples in an order reshuffled at every pass."""
    first = batch * settings.batch_size
    draws = []
    for number in range(first, first + settings.batch_size):
        cycle, place = divmod(number, len(samples))
        order = torch.randperm(len(samples), generator=_generator(settings.seed, "order", cycle))
        draws.append(Draw(samples[int(order[place])], _generator(settings.seed, "draw", number)))
    return tuple(draws)


def _generator(*key: object) -> torch.Generator:
    """Hashed, because sums of seed and number coincide; to the 32 bits that the CPU's generator uses."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def _refuse_not_finite(update: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingStopped(update, name, value)


def _state_tensors(
    adapter: Mapping[str, Parameter], average: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """`adapter/<name>`, `average/<name>` if one is kept, and Adam's `step/`, `exp_avg/` and `exp_avg_sq/`."""
    tensors: dict[str, Tensor] = {f"adapter/{name}": parameter for name, parameter in adapter.items()}
    tensors |= {f"average/{name}": mean for name, mean in average.items()}
    for name, parameter in adapter.items():
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}/{name}"] = tensor
    return tensors


def _resume(
    run: Run,
    adapter: Mapping[str, Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scalars: Mapping[str, float],
    remembering: Remembering | None = None,
) -> int:
    """Go back to the run's last state; returns the updates it has done."""
    state = latest_state(run.folder)
    run.rewind(state.step if state else 0)
    if not state:
        # Its first values may be random.
        run.save_state(State(0, _state_tensors(adapter, average, optimizer), scalars))
        return 0
    kept = _group(state, "adapter")
    if {n: t.shape for n, t in kept.items()} != {n: p.shape for n, p in adapter.items()}:
        raise ValueError(
            "The run's state is of another adapter (other layers or rank): use the model it began with."
        )
    with torch.no_grad():
        for name, parameter in adapter.items():
            parameter.copy_(kept[name])
        for name, mean in average.items():
            mean.copy_(_group(state, "average")[name])
    numbers = {name: number for number, name in enumerate(adapter)}
    moments: dict[int, dict[str, Tensor]] = {}
    for path, tensor in state.tensors.items():
        kind, _, name = path.partition("/")
        if kind not in ("adapter", "average", "memory"):
            moments.setdefault(numbers[name], {})[kind] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if remembering:
        remembering.recall(_group(state, "memory"))
    return state.step


def adapter_of(state: State) -> dict[str, Tensor]:
    """The adapter that a run's state gives, by the model's names: the average where one is kept."""
    return _group(state, "average") or _group(state, "adapter")


def _group(state: State, kind: str) -> dict[str, Tensor]:
    start = f"{kind}/"
    return {path[len(start) :]: tensor for path, tensor in state.tensors.items() if path.startswith(start)}
