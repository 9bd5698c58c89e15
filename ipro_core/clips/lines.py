"""Files that grow by a JSON object a line: whatever ends the process, at most the line in work is lost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import append_lines, whole_lines


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if there is none; a last line that was cut short counts as not written.

    Raises:
        ValueError: a whole line is no JSON object.
    """
    rows = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"Line {number} of {path} is damaged ({error}): remove that line.") from None
    return rows


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows; they are on disk before this returns."""
    append_lines(path, *(json.dumps(row).encode() for row in rows))
