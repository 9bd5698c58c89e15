"""Who votes in a study, and how: two files of JSON lines that only ever grow, whole after any kill."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import Any, Literal

Side = Literal["left", "none", "right"]
MOST_VOTERS = 10_000
"""Nobody who knows the address can fill the disk."""


@dataclass(frozen=True)
class Vote:
    """What one voter said of one trial. No name and no address is kept."""

    voter: str
    trial: str
    left: str
    """The method that lay there."""
    right: str
    answers: Mapping[str, Side]
    """By question; "none" is no preference."""
    seconds: float = 0.0
    """From the first frame to the vote."""
    plays: int = 0
    """How often both videos ran to their end."""
    time: int = 0
    """Of day, in whole seconds since 1970."""


class Ballots:
    """The voters and votes of one study's folder; also for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._voters, self._votes = _Lines(folder / "voters.jsonl"), _Lines(folder / "votes.jsonl")
        self._lock = Lock()

    def join(self) -> str:
        """A new voter's id, which nobody can guess.

        Raises:
            ValueError: there are too many.
        """
        with self._lock:
            if len(self._voters.rows()) >= MOST_VOTERS:
                raise ValueError(f"The study has {MOST_VOTERS} voters, and takes no more.")
            voter = token_hex(16)
            self._voters.append({"voter": voter, "time": int(time.time())})
            return voter

    def voters(self) -> dict[str, int]:
        """Each voter's number, in the order of joining."""
        with self._lock:
            return {row["voter"]: number for number, row in enumerate(self._voters.rows())}

    def cast(self, vote: Vote) -> bool:
        """Keep a vote, on disk before this returns; False if there is one of this voter on this trial, which
        stays."""
        with self._lock:
            if any(row["voter"] == vote.voter and row["trial"] == vote.trial for row in self._votes.rows()):
                return False
            self._votes.append(asdict(vote))
            return True

    def votes(self) -> list[Vote]:
        """The first of each voter on each trial."""
        with self._lock:
            first: dict[tuple[str, str], Vote] = {}
            for row in self._votes.rows():
                first.setdefault((row["voter"], row["trial"]), Vote(**row))
            return list(first.values())

    @property
    def damaged(self) -> int:
        """Lines that a kill or a full disk cut short."""
        with self._lock:
            return self._voters.damaged() + self._votes.damaged()


class _Lines:
    """A file of JSON objects, one a line."""

    def __init__(self, path: Path) -> None:
        self.path, self._size, self._rows, self._damaged = path, 0, list[dict[str, Any]](), 0

    def rows(self) -> list[dict[str, Any]]:
        """All that is whole. Another process may add lines: the file's size tells."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._size:
            self._size, self._rows, self._damaged = size, [], 0
            for line in filter(None, self.path.read_bytes().splitlines() if size else ()):
                try:
                    self._rows.append(dict(json.loads(line)))
                except (ValueError, TypeError):
                    self._damaged += 1
        return self._rows

    def damaged(self) -> int:
        self.rows()
        return self._damaged

    def append(self, row: Mapping[str, Any]) -> None:
        # Each begins a line of its own: nothing is ever taken away, and what somebody else's process was cut
        # short in would swallow this one.
        with self.path.open("ab") as file:
            file.write(b"\n" + json.dumps(row, allow_nan=False).encode())
            file.flush()
            os.fsync(file.fileno())
