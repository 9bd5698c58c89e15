"""Tensors that take long to make, kept on disk under what they were made from.

An entry is a safetensors file whose name is the hash of its key, and which holds the key and a checksum. It
is written whole or not at all; one that is damaged counts as missing, with a warning, and is made again.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import write_atomically

log = logging.getLogger("ipro")


class TensorCache:
    """A folder of such files, for any number of runs."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where an entry lies, or would."""
        return self.folder / f"{hashlib.sha256(_spelt(key).encode()).hexdigest()[:32]}.safetensors"

    def load(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
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

    def save(self, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write an entry.

        Raises:
            OSError: the disk is full.
        """
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        noted = {"ipro.key": _spelt(key), "ipro.sha256": fingerprint(whole)}
        write_atomically(self.path(key), save(whole, metadata=noted))

    def load_or_make(
        self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The entry; if it is missing, what `make` gives, which is then kept."""
        kept: Mapping[str, Tensor] | None = self.load(key)
        if kept is None:
            kept = make()
            self.save(key, kept)
        return kept


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _spelt(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
