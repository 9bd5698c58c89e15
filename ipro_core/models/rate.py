"""What a machine has and reaches: memory; arithmetic and copies from the host, by a short probe."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Rate:
    """What a device reaches."""

    flops: float
    """Of matrix products and attention, a second."""
    copies: float
    """Bytes a second from pinned host memory."""
    note: str = "measured by a short probe"


@cache
def measured_rate(device: torch.device, seconds: float = 0.1) -> Rate:
    """What matrix products of a block's size reach on the device, and copies from pinned memory."""
    dtype, size = (torch.bfloat16, 4096) if device.type == "cuda" else (torch.float32, 512)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def probe(work: Callable[[], Any]) -> float:
        work()
        _settle(device)
        began, runs = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            work()
            _settle(device)
            runs += 1
        return (time.perf_counter() - began) / runs

    product = probe(lambda: a @ b)
    q = torch.randn(1, 8, size, 128, device=device).to(dtype)
    attention = probe(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    flops = (2 * size**3 + 4 * 8 * size**2 * 128) / (product + attention)
    host = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty_like(host, device=device)
    copies = host.numel() / probe(lambda: target.copy_(host, non_blocking=True))
    return Rate(flops, copies)


def host_bytes() -> int:
    """The machine's own memory."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil  # Windows has no sysconf; ComfyUI brings psutil there

    return psutil.virtual_memory().total


def device_bytes(device: torch.device) -> int:
    """What of the device is free, or held by torch and so ours; without a GPU, the machine's memory."""
    if device.type != "cuda":
        return host_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
