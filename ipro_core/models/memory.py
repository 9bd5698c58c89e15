"""Where a block's weights and states lie while the network runs forwards and backwards.

Weights that do not fit wait in host memory in the bytes of their file, each block's in one piece; two slots
on the device take them in turn, and while one block works the next in the direction of travel arrives.
Nothing is ever written back. States (a block's input, its attention's result) leave for the host as they
are made and come back one block ahead of their use.
"""

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_log = logging.getLogger("ipro")
_ALIGNMENT = 256
_SIZES = 2
"""Of states: tokens of all channels, and a number for each token and head."""


@dataclass(frozen=True)
class Placement:
    """What lies where, and in how large pieces the work is done."""

    device: torch.device | str = "cpu"
    resident: int | None = None
    """Blocks whose weights stay on the device, spread evenly; None: all."""
    states_on_host: bool = False
    """Whether what the backward pass needs of each block waits in host memory."""
    kept_attentions: int = 0
    """Blocks whose attention's result waits, where the states do, until their pass is run again for its
    gradient: the second run then costs a third. Counted over all such passes of an update."""
    ffn_tokens: int = 4096
    """Tokens that a feed-forward layer works on at a time; its activations are the widest."""
    recompute: bool = True
    """Whether a block is run again for its gradient. A small network, all resident, is faster without: torch
    then keeps the graph of a whole pass."""
    compile: str | None = None
    """torch.compile's backend ("inductor") for the segments of a block; None: as they are."""


class Copies:
    """Copies beside the computation, on a CUDA stream of their own; elsewhere they are plain copies."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        """Start a copy; call what is returned before the target is read or the source overwritten.

        The copy waits for all work that was given to the device before, and the caller's wait holds up the
        device, not the program. So both tensors may be used up to here and freed after the wait.
        """
        if self._stream is None:
            target.copy_(source)
            return _nothing
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            arrived = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(arrived)


class HostMemory:
    """Host memory that CUDA reaches by itself (pinned), lent out as tensors and taken back when they die.

    torch's own pinned allocator rounds up to powers of two: up to twice the memory.
    """

    def __init__(self, device: torch.device):
        self._pin = device.type == "cuda"
        self._free: dict[int, list[Any]] = {}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of any content."""
        size = max(1, torch.Size(shape).numel()) * dtype.itemsize
        if size not in self._free:
            for old in list(self._free)[: 1 - _SIZES]:  # videos have another size now
                del self._free[old]
            self._free[size] = []
        free = self._free[size]
        memory = free.pop() if free else self._new(size)
        lent = memory[:]  # torch keeps this array as long as the tensor's storage lives
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent)[: torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)

    def _new(self, size: int) -> Any:
        memory = np.frombuffer(mmap(-1, size), np.uint8)  # whole pages: a page is pinned once
        if self._pin:
            runtime: Any = torch.cuda.cudart()
            if runtime.cudaHostRegister(memory.ctypes.data, size, 0) == runtime.cudaError.success:
                weakref.finalize(memory, runtime.cudaHostUnregister, memory.ctypes.data).atexit = False
            else:  # Windows allows about half of the memory
                self._pin = False
                _log.warning("The system pins no more host memory: copies to the device will be slower.")
                with suppress(RuntimeError):  # the next kernel to start reports the failure: let it be this
                    torch.zeros(1, device="cuda")
        return memory


class BlockWeights:
    """The weights of a stack of blocks, on the device when a block's turn comes."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        placement: Placement,
        copies: Copies | None = None,
        memory: HostMemory | None = None,
    ):
        self.blocks = blocks
        self.device = torch.device(placement.device)
        self.loads = 0
        """Blocks copied to the device so far."""
        count = len(blocks)
        resident = count if placement.resident is None else min(max(placement.resident, 0), count)
        streamed = count - resident
        # i is streamed where i · streamed / count passes a whole number: evenly spread.
        self._streamed = [i for i in range(count) if (i + 1) * streamed // count > i * streamed // count]
        self._copies = copies or Copies(self.device)
        self._memory = memory or HostMemory(self.device)
        self._host: dict[int, tuple[Tensor, list[tuple[Tensor, Tensor]]]] = {}
        self._slots: list[_Slot] = []
        for index, block in enumerate(blocks):
            if index not in self._streamed:
                block.to(self.device)
        self._gather()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within, frozen tensors of the blocks may be changed or added; after it they are gathered anew."""
        for slot in self._slots:
            if slot.block is not None:
                self._release(slot)
        try:
            yield
        finally:
            self._gather()

    def _gather(self) -> None:
        for index in self._streamed:
            self._host[index] = _gathered(self.blocks[index], self._memory)
        size = max((len(stored) for stored, _ in self._host.values()), default=0)
        self._slots = [_Slot(self._room(size)) for _ in range(2 if self._host else 0)]

    def travel(self, order: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
        """The blocks in this order, each with its weights on the device until the next is asked for."""
        ahead = [index for index in order if index in self._host]
        for index in order:
            if index in self._host:
                self._load(index)
                self._slot_of(index).wait()
                ahead.pop(0)
                if ahead:
                    self._load(ahead[0], beside=index)
            yield index, self.blocks[index]

    def _load(self, index: int, beside: int | None = None) -> None:
        """Start to bring a block's weights into a slot, unless they are there; not into `beside`'s."""
        if any(slot.block == index for slot in self._slots):
            return
        slot = next(slot for slot in self._slots if slot.block is None or slot.block != beside)
        if slot.block is not None:
            self._release(slot)
        stored, tensors = self._host[index]
        slot.block, slot.wait = index, self._copies.begin(slot.room[: len(stored)], stored)
        for tensor, home in tensors:
            tensor.data = _view(slot.room, home)
        self.loads += 1

    def _release(self, slot: "_Slot") -> None:
        """Point a slot's block back to host memory, which a kernel cannot mistake for the device's."""
        for tensor, home in self._host[slot.block][1]:  # type: ignore[index]
            tensor.data = home
        slot.block = None

    def _room(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def _slot_of(self, index: int) -> "_Slot":
        return next(slot for slot in self._slots if slot.block == index)


@dataclass(eq=False)
class _Slot:
    room: Tensor
    block: int | None = None
    wait: Callable[[], None] = lambda: None


class BlockStates:
    """What the backward pass needs of each block, kept where it is or on the host."""

    def __init__(self, placement: Placement, copies: Copies | None = None, memory: HostMemory | None = None):
        device = torch.device(placement.device)
        self._device, self._copies = device, copies or Copies(device)
        self._memory = (memory or HostMemory(device)) if placement.states_on_host else None
        self._leaving: deque[tuple[Callable[[], None], Tensor]] = deque()

    def keep(self, state: Tensor) -> Tensor:
        """The state for later: give it to `travel`."""
        if self._memory is None:
            return state
        kept = self._memory.empty(state.shape, state.dtype)
        self._leaving.append((self._copies.begin(kept, state), state))
        self.settle(6)  # else a program ahead of its device would hold the states of all blocks
        return kept

    def settle(self, at_most: int = 0) -> None:
        """Let go of the states on the device but for so many of the last, as soon as they have left."""
        while len(self._leaving) > at_most:
            wait, _ = self._leaving.popleft()
            wait()

    def travel(self, kept: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """The states of one block after another, on the device; the next ones arrive meanwhile."""
        self.settle()
        coming = self._bring(kept[0]) if kept else []
        for following in (*kept[1:], ()):
            states, coming = coming, self._bring(following)
            for wait, _ in states:
                wait()
            yield [state for _, state in states]

    def _bring(self, kept: Sequence[Tensor]) -> list[tuple[Callable[[], None], Tensor]]:
        if self._memory is None:
            return [(_nothing, state) for state in kept]
        arrived = [torch.empty_like(state, device=self._device) for state in kept]
        return [
            (self._copies.begin(target, state), target) for target, state in zip(arrived, kept, strict=True)
        ]


def _gathered(block: nn.Module, memory: HostMemory) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """All of a block's frozen tensors in one piece of host memory, and each tensor with its place in it."""
    tensors = [t for t in (*block.parameters(), *block.buffers()) if t.numel() and not t.requires_grad]
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    stored, homes = memory.empty((end,), torch.uint8), []
    for tensor, start in zip(tensors, starts, strict=True):
        size = tensor.numel() * tensor.element_size()
        home = stored[start : start + size].view(tensor.dtype).view(tensor.shape)
        home.copy_(tensor.detach())
        tensor.data = home
        homes.append(home)
    return stored, list(zip(tensors, homes, strict=True))


def _view(room: Tensor, home: Tensor) -> Tensor:
    """The place in `room` that corresponds to `home`'s in its own piece."""
    start, size = home.storage_offset() * home.element_size(), home.numel() * home.element_size()
    return room[start : start + size].view(home.dtype).view(home.shape)


def _nothing() -> None:
    pass
