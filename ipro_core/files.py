"""How the project writes a file: complete, or not at all."""

import os
from pathlib import Path
from uuid import uuid4


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


def _sync_folder(folder: Path) -> None:
    """The rename itself lasts only once its folder is on disk. Windows cannot open a folder, nor needs to."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
