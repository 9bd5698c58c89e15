"""What a device reaches, by a probe of half a second: arithmetic, and copies from the host."""

import time
from collections.abc import Callable
from dataclasses import dataclass
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


def measured_rate(device: torch.device, seconds: float = 0.5) -> Rate:
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


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
