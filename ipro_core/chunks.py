"""A network over a batch, a few items at a time: the graph of the whole is never in memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(network: Callable[[Tensor], Tensor], batch: Tensor, chunk: int) -> Tensor:
    """`network(batch)`, for a network that looks at each item alone.

    With gradients each chunk is computed again on the way back: only one chunk's activations are alive.
    """
    chunks = batch.split(chunk)
    if len(chunks) == 1 or not (torch.is_grad_enabled() and batch.requires_grad):
        return torch.cat([network(items) for items in chunks])
    # The networks draw no random numbers: their state need not be kept.
    return torch.cat(
        [
            checkpoint(network, items, use_reentrant=False, preserve_rng_state=False)  # type: ignore
            for items in chunks
        ]
    )
