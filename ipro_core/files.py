"""How the project writes a file, complete or not at all, and how it tells one content from another."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor


def write_atomically(path: Path | str, data: bytes) -> None:
    """Replace the file at `path`: whoever reads it, even after a power cut, finds the old bytes or the new.

    Raises:
        OSError: the folder is missing or the disk is full; nothing is left behind, an older file stays whole.
    """
    path = Path(path)
    # In the same folder, because a rename is atomic only within one disk.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def append_lines(path: Path, *lines: bytes) -> None:
    """Add lines, on disk before this returns; what a kill left of the last one is dropped.

    The file is opened anew each time, so that a full disk leaves no handle with bytes it cannot flush.
    """
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that `append_lines` wrote, without a last one that was torn; no file has none."""
    *whole, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return whole


def sha256(path: Path | str, memo: Path | None = None) -> str:
    """Of a file's bytes; of a folder's files, each with its name. Read once while nobody writes to it.

    Args:
        memo: a file that remembers digests from one process to the next, for networks of many gigabytes.

    Raises:
        OSError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        told = [f"{file.relative_to(path)} {sha256(file, memo)}" for file in files]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()
    # Size and time tell a file that was written anew.
    place = str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns
    if memo is None:
        return _digest(*place)
    name, known = " ".join(map(str, place)), json.loads(memo.read_bytes()) if memo.exists() else {}
    if name not in known:
        known[name] = _digest(*place)
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, json.dumps(known, indent=0).encode())
    return known[name]


@cache
def _digest(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123, a word for the cache above
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes: safetensors notices a cut file, but not a flipped bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """The rename itself lasts only once its folder is on disk. Windows cannot open a folder, nor needs to."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
