"""A training run whose optimum is known, as a module for tests and as a program that can be killed.

    python tests/toy_runs.py die <folder>       dies at each of its writes in turn, and is resumed
    python tests/toy_runs.py kill <folder> N    is killed from outside at N random moments, and resumed

Both print a JSON object that says how many deaths ended in files equal to an unbroken run's.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn import Parameter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ipro_core.runs import Run
from ipro_core.training.loop import MAY_DIFFER, Draw, LoopSettings, train


class Point:
    """A model that is its adapter: one vector, and a second one that nothing depends on."""

    def __init__(self, dim: int = 3, dtype: torch.dtype = torch.float32):
        self.theta = Parameter(torch.zeros(dim, dtype=dtype))
        self.idle = Parameter(torch.ones(2, dtype=dtype))

    def adapter_parameters(self) -> Mapping[str, Parameter]:
        return {"point.theta": self.theta, "point.idle": self.idle}


@dataclass
class Distance:
    """½ ||θ − (target + spread · noise)||², mean over the batch: best at the targets' mean."""

    model: Point
    part: int = 1
    spread: float = 0.0

    def gradients(self, batch: Sequence[Draw]) -> Iterator[Mapping[str, float]]:
        theta = self.model.theta
        for first in range(0, len(batch), self.part):
            draws = batch[first : first + self.part]
            goals = torch.stack(
                [
                    draw.sample + self.spread * torch.randn(len(theta), generator=draw.generator)
                    for draw in draws
                ]
            ).to(theta)
            loss = 0.5 * (theta - goals).square().sum() / len(batch)
            loss.backward()
            yield {"loss": loss.item()}


TARGETS = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 2.0, -7.0])]
SETTINGS = LoopSettings(
    updates=4, batch_size=4, learning_rate=0.1, warmup=3, clip_norm=2.0, checkpoint_every=1
)


def train_in(folder: Path, settings: LoopSettings = SETTINGS) -> None:
    """Begin or resume a run in the folder and take it to its end."""
    config = {"loop": asdict(settings)}
    begun = (folder / "config.json").exists()
    with Run.open(folder, config, may_differ=MAY_DIFFER) if begun else Run.create(folder, config) as run:
        model = Point()
        for _ in train(model, Distance(model, part=2, spread=0.5), TARGETS, settings, run):
            pass


def outcome(folder: Path) -> dict[str, bytes]:
    """Every file that may not depend on whether the run was broken off."""
    files = [folder / "metrics.jsonl", *(folder / "state").iterdir()]
    return {file.name: file.read_bytes() for file in files}


def in_a_child(
    folder: Path, settings: LoopSettings = SETTINGS, *, die_at: int = 0, kill_after: float = 0.0
) -> bool:
    """Train in a process of its own; returns whether it came to the end.

    Args:
        die_at: the write (fsync) at which the child kills itself.
        kill_after: seconds after which it is killed.
    """
    child = os.fork()
    if not child:
        if die_at:
            real, count = os.fsync, iter(range(1, sys.maxsize))
            os.fsync = lambda handle: (
                os.kill(os.getpid(), signal.SIGKILL) if next(count) == die_at else real(handle)
            )
        train_in(folder, settings)
        os._exit(0)
    if kill_after:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def die_at_every_write(folder: Path) -> dict[str, int]:
    train_in(folder / "unbroken")
    wanted = outcome(folder / "unbroken")
    deaths = 0
    while not in_a_child(folder / f"{deaths + 1}", die_at=deaths + 1):
        deaths += 1
        assert in_a_child(folder / f"{deaths}")
        assert outcome(folder / f"{deaths}") == wanted, f"differs after a death at write {deaths}"
    return {"deaths": deaths}


def kill_at_random(folder: Path, wanted_kills: int) -> dict[str, int]:
    longer = replace(SETTINGS, updates=30)
    train_in(folder / "warm")  # torch's optimisers import much at their first use
    started = time.perf_counter()
    in_a_child(folder / "unbroken", longer)
    length = time.perf_counter() - started
    wanted = outcome(folder / "unbroken")
    kills = runs = 0
    while kills < wanted_kills:
        runs += 1
        while not in_a_child(folder / f"{runs}", longer, kill_after=random.uniform(0.1, 0.6) * length):
            kills += 1
        assert outcome(folder / f"{runs}") == wanted, f"differs in run {runs}"
    return {"kills": kills, "runs": runs}


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, folder = sys.argv[1], Path(sys.argv[2])
    report = die_at_every_write(folder) if mode == "die" else kill_at_random(folder, int(sys.argv[3]))
    print(json.dumps(report))
