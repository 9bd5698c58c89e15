"""Files that grow by a JSON object a line: whatever ends the process, at most the line in work is lost."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if there is none; a last line that was cut short counts as not written.

    Raises:
        ValueError: a whole line is no JSON object.
    """
    rows = []
    *whole, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"Line {number} of {path} is damaged ({error}): remove that line.") from None
    return rows


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows; they are on disk before this returns."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a process was killed while it wrote
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())
