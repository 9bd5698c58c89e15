"""One piece of work run for its time, its peak memory and its arithmetic; on the CPU and on a CUDA device."""

import gc
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .counting import Ledger


@dataclass(frozen=True)
class Cost:
    device_bytes: int
    """The most that were alive at once beside what was there before."""
    host_bytes: int | None
    """The same of what a ledger was told waits on the host; None: no ledger was."""
    flops: int


def cost(work: Callable[[], Any], device: torch.device, ledger: Ledger | None = None) -> Cost:
    """Of the work, done once.

    ledger: one that the work knows, where it tells the host's memory from the device's.
    """
    gc.collect()
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    books = ledger or Ledger()
    books.restart()
    rest = Counter(books.now)
    with books:
        work()
    peak = books.peak[device.type] - rest[device.type]
    if device.type == "cuda":  # what the kernels take for themselves counts there too
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
    return Cost(peak, books.peak["host"] - rest["host"] if ledger else None, books.flops)


def quickest(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of the work, the least of that many runs: processor time on the CPU, which other programs
    hardly lengthen; elapsed time on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    return min(_timed(work, device, clock) for _ in range(repeats))


def _timed(work: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began
