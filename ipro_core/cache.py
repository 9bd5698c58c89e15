"""Tensors that take long to make, kept under what they were made from, and the stages that make them.

An entry on disk is a safetensors file whose name is the hash of its key, and which holds the key and a
checksum. It is written whole or not at all; one that is damaged counts as missing, with a warning, and is
made again. A stage opens its network when the first entry is missing, and lets it go when the last is made.
"""

import gc
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import fingerprint, write_atomically

log = logging.getLogger("ipro")

Key = Mapping[str, Any]
Item = TypeVar("Item")


class Cache(Protocol):
    def load(self, key: Key) -> Mapping[str, Tensor] | None:
        """The entry's tensors; None if there is none."""
        ...

    def save(self, key: Key, tensors: Mapping[str, Tensor]) -> None: ...


class TensorCache:
    """A folder of such files, for any number of runs."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, key: Key) -> Path:
        """Where an entry lies, or would."""
        return self.folder / f"{name_of(key)}.safetensors"

    def load(self, key: Key) -> dict[str, Tensor] | None:
        """The entry's tensors; None if there is none, or a damaged one."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                noted = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s): it is made again.", path, error)
            return None
        if noted.get("ipro.key") != _spelt(key) or noted.get("ipro.sha256") != fingerprint(tensors):
            log.warning("%s does not hold what was written: it is made again.", path)
            return None
        return tensors

    def save(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry.

        Raises:
            OSError: the disk is full.
        """
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        noted = {"ipro.key": _spelt(key), "ipro.sha256": fingerprint(whole)}
        write_atomically(self.path(key), save(whole, metadata=noted))


class MemoryCache:
    """For entries that cost less to make than to write."""

    def __init__(self) -> None:
        self._entries: dict[str, Mapping[str, Tensor]] = {}

    def load(self, key: Key) -> Mapping[str, Tensor] | None:
        return self._entries.get(_spelt(key))

    def save(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        self._entries[_spelt(key)] = tensors


@dataclass(frozen=True)
class Stage(Generic[Item]):
    """One way of making entries out of items."""

    name: str
    """For people who wait."""
    key: Callable[[Item], Key]
    """All that an item's entry depends on, the network's weights among it."""
    open: Callable[[], Callable[[Item], Mapping[str, Tensor]]]
    """Opens the network and gives what makes an entry with it."""

    def load(self, cache: Cache, item: Item) -> Mapping[str, Tensor] | None:
        """What was kept of this item; None if the stage has not got to it."""
        return cache.load(self.key(item))

    def run(self, cache: Cache, items: Sequence[Item]) -> Iterator[Item]:
        """Make what is missing, yielding each item once its entry is there.

        Raises:
            ValueError: an item cannot be made; what was done before is kept.
        """
        make = None
        try:
            for item in items:
                if self.load(cache, item) is None:
                    make = make or self.open()
                    cache.save(self.key(item), make(item))
                yield item
        finally:
            if make is not None:
                make = None
                let_go()


def let_go() -> None:
    """Free what nobody uses any more, before the next network comes: networks hold themselves in circles."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def name_of(key: Key) -> str:
    """A short name for all that the key says."""
    return hashlib.sha256(_spelt(key).encode()).hexdigest()[:32]


def _spelt(key: Key) -> str:
    return json.dumps(key, sort_keys=True)
