"""What a piece of work costs: bytes alive at once in each place, and arithmetic. For real tensors and fake.

On torch's meta device nothing is computed and nothing is allocated, but every tensor has its true shape and
type, so that models far larger than this machine are counted from the code as it is.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models import attention, wan_network
from ..models.frozen import StoredWeight
from ..models.memory import HostMemory
from ..models.vae_box import Shelf
from ..models.wan_files import WanFile

aten = torch.ops.aten


class Ledger(TorchDispatchMode):
    """Keeps the books of all that is done while it is on.

    A place is a tensor's device type unless it is named by `at`. Views count once, with what they are views
    of; not at all if that was there before, as a network's weights are. The arithmetic is that of matrix
    products, convolutions and attentions, backward passes too, a multiplication and an addition counted as
    two.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        """given: what is there already and counts."""
        super().__init__()
        from torch.utils.flop_counter import flop_registry

        self._flops_of = {**flop_registry, **_CPU_ATTENTION}
        self.flops = 0
        self.now: Counter[str] = Counter()
        """Bytes alive, by place."""
        self.peak: Counter[str] = Counter()
        """The most that were alive at once since `restart`."""
        self._known: set[int] = set()
        self._place: str | None = None
        for tensor in given:
            self._see(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor, there=True)
        made = function(*args, **(kwargs or {}))
        if function._overloadpacket in self._flops_of:
            self.flops += self._flops_of[function._overloadpacket](*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return made

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Name the place of what is made within."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def restart(self) -> None:
        """Let the peak begin again from what is alive now, and the arithmetic from nothing."""
        self.peak, self.flops = Counter(self.now), 0

    def _see(self, tensor: Tensor, *, there: bool = False) -> None:
        """there: if it is new to the ledger it was there before, and does not count."""
        storage = tensor.untyped_storage()
        key, place = storage._cdata, self._place or tensor.device.type
        if key not in self._known:
            size = 0 if there else storage.nbytes()
            self._known.add(key)
            self.now[place] += size
            self.peak[place] = max(self.peak[place], self.now[place])
            weakref.finalize(storage, self._free, key, place, size).atexit = False

    def _free(self, key: int, place: str, size: int) -> None:
        self._known.discard(key)
        self.now[place] -= size


def _attention(q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    batch, heads, rows, width = q.shape
    return 4 * batch * heads * rows * k.shape[2] * width  # q kᵀ and · v, two operations each


def _attention_backward(_: Tensor, q: Tensor, k: Tensor, *__: Any, **___: Any) -> int:
    return _attention(q, k) * 5 // 2  # five products where the forward pass has two


_CPU_ATTENTION = {  # torch's own table knows CUDA's kernels only
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@contextmanager
def without_arithmetic() -> Iterator[None]:
    """Within, tensors are made on torch's meta device: shapes and types, no numbers.

    There torch has no attention kernels but plain mathematics; flash's, which has a shape there too, stands
    in for what a GPU would choose.
    """

    def flash(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]

    with (
        torch.device("meta"),
        patch.object(attention, "_kernel", lambda *_: attention._FLASH),
        patch.object(wan_network, "scaled_dot_product_attention", flash),
        patch.object(torch.nn.functional, "scaled_dot_product_attention", flash),
    ):
        yield


class CountedShelf(Shelf):
    """A shelf whose tensors a ledger puts down under "host", copied there and back as from a device."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def put(self, tensor: Tensor) -> Tensor:
        with self._ledger.at("host"):
            return tensor.clone()

    def take(self, tensor: Tensor, device: torch.device) -> Tensor:
        return tensor.clone()


class CountedMemory(HostMemory):
    """Host memory whose tensors a ledger puts down under "host"."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        with self._ledger.at("host"):
            return torch.empty(shape, dtype=dtype)


class NumberlessFile(WanFile):
    """A header whose weights are never looked at."""

    def weight(self, name: str) -> StoredWeight:
        weight = super().weight(name)
        return _Numberless(weight.stored, weight.scale, weight.gguf_type, weight.rotated)


class _Numberless(StoredWeight):
    def is_finite(self) -> bool:
        return True

    def to(self, device: torch.device | str) -> StoredWeight:
        return self
