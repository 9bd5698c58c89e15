"""What a piece of work costs: bytes alive at once on each device, and arithmetic. For real tensors and fake.

Under torch's FakeTensorMode nothing is computed and nothing is allocated, but every tensor has its true
shape, so that models far larger than this machine are counted from the code as it is.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """The bytes of all tensors made while it is on and still alive, by device; and the most there ever were.

    Views count once, with what they are views of.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        """given: what is there already and counts."""
        super().__init__()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._known: set[int] = set()
        self._place: str | None = None
        for tensor in given:
            self._see(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return made

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Call the place of what is made within so, whatever its device."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def restart(self) -> None:
        """Let the peak begin again from what is alive now."""
        self.peak = Counter(self.now)

    def _see(self, tensor: Tensor) -> None:
        storage, device = tensor.untyped_storage(), self._place or tensor.device.type
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now[device] += size
            self.peak[device] = max(self.peak[device], self.now[device])
            weakref.finalize(storage, self._free, key, device, size).atexit = False

    def _free(self, key: int, device: str, size: int) -> None:
        self._known.discard(key)
        self.now[device] -= size


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of all matrix products, convolutions and attentions, backward passes too."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        work()
    return counter.get_total_flops()


def _attention(q_shape: Any, k_shape: Any, v_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    batch, heads, rows, width = q_shape
    return 4 * batch * heads * rows * k_shape[2] * width  # q kᵀ and · v, two operations each


def _attention_backward(_: Any, q: Any, k: Any, v: Any, *__: Any, out_shape: Any = None, **___: Any) -> int:
    return _attention(q, k, v) * 5 // 2  # five products where the forward pass has two


_CPU_ATTENTION = {  # torch's counter knows CUDA's kernels only
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
