"""A run on disk: what was asked, where it ran, what was measured, and the state it goes on from.

    config.json         every setting; a run goes on with the same ones only
    environment.json    versions, platform, device, and the process that writes here
    metrics.jsonl       one line for each update, equal bit for bit whether or not the run was ever broken off
    times.jsonl         the seconds each update took, which differ from run to run
    samples/ adapters/  videos to look at, LoRA files to use
    state/              the two newest states

Whatever moment its process is killed at, the folder continues: files are replaced whole, a torn last line is
dropped, a damaged state gives way to the one before it, and the lock dies with its holder.
"""

import importlib.metadata
import json
import logging
import os
import platform
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import append_lines, fingerprint, whole_lines, write_atomically
from .types import StepRecord

logger = logging.getLogger("ipro")

KEPT_STATES = 2
LIBRARIES = ("torch", "numpy", "safetensors", "diffusers", "peft")


@dataclass(frozen=True, eq=False)
class State:
    """All that the updates after `step` depend on."""

    step: int
    """Updates done."""
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]
    """Whatever JSON holds."""


class Run:
    """A run's folder, with this process as its only writer until `close`; use it in a `with`."""

    def __init__(self, folder: Path, config: dict[str, Any], lock: Any) -> None:
        """Use `Run.create` or `Run.open`."""
        self.folder, self.config, self._lock = folder, config, lock
        self.samples, self.adapters = folder / "samples", folder / "adapters"

    @classmethod
    def create(cls, folder: Path | str, config: Mapping[str, Any], *, device: str = "cpu") -> "Run":
        """Begin a run.

        Raises:
            ValueError: the folder holds a run, or another process is just beginning one there.
        """
        folder = Path(folder)
        for name in ("state", "samples", "adapters"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with ExitStack() as if_it_fails:
            lock = _only_writer(folder)
            if_it_fails.callback(lock.release)
            if (folder / "config.json").exists():
                raise ValueError(f"{folder} holds a run: continue it with --resume, or name another folder.")
            _write_json(folder / "environment.json", environment(device) | {"pid": os.getpid()})
            _write_json(folder / "config.json", config)  # last: a folder without it is no run yet
            run = cls(folder, read_config(folder), lock)
            if_it_fails.pop_all()
        return run

    @classmethod
    def open(
        cls,
        folder: Path | str,
        config: Mapping[str, Any] | None = None,
        *,
        may_differ: Collection[str] = (),
        device: str = "cpu",
    ) -> "Run":
        """Take up a run again.

        Args:
            config: the settings it is to go on with; None: those it was begun with.
            may_differ: settings, by dotted name, that change nothing in the updates already done, such as
                their number.

        Raises:
            ValueError: there is no run, another process writes it, or it was begun with other settings.
        """
        folder = Path(folder)
        begun = read_config(folder)
        with ExitStack() as if_it_fails:
            lock = _only_writer(folder)
            if_it_fails.callback(lock.release)
            if config is not None:
                _refuse_other_settings(folder, begun, json.loads(json.dumps(config)), may_differ)
                _write_json(folder / "config.json", config)
            _warn_of_another_environment(folder, environment(device))
            _write_json(folder / "environment.json", environment(device) | {"pid": os.getpid()})
            run = cls(folder, read_config(folder), lock)
            if_it_fails.pop_all()
        return run

    @property
    def writable(self) -> bool:
        return self._lock.is_locked

    def discard(self) -> None:
        """Take back `create`, where nothing came of it: what it wrote, and each folder that holds nothing
        else."""
        for name in ("config.json", "environment.json"):
            (self.folder / name).unlink()
        self.close()
        (self.folder / "run.lock").unlink(missing_ok=True)
        for folder in (self.folder / "state", self.samples, self.adapters, self.folder):
            with suppress(OSError):  # not empty: somebody else's
                folder.rmdir()

    def append(self, record: StepRecord, seconds: float) -> None:
        """Add an update to metrics.jsonl, and the time it took to times.jsonl."""
        times = {"step": record.step, "seconds": round(seconds, 3)}
        append_lines(self.folder / "times.jsonl", _line(times))
        append_lines(self.folder / "metrics.jsonl", _line(asdict(record)))

    def save_state(self, state: State) -> None:
        """Write a state, complete or not at all; the one before it is kept."""
        assert self.writable, "a closed run is not written to"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        note = {"kind": "run state", "step": state.step, "scalars": dict(state.scalars)}
        note |= {"versions": _versions(), "sha256": fingerprint(tensors)}
        path = self.folder / "state" / f"step-{state.step:08d}.safetensors"
        write_atomically(path, save(tensors, metadata={"ipro": json.dumps(note)}))
        self._drop_old_states()

    def rewind(self, step: int) -> None:
        """Forget what was written after `step`: lines, and states that could not be read."""
        for log in (self.folder / "metrics.jsonl", self.folder / "times.jsonl"):
            kept = [line for line in whole_lines(log) if json.loads(line)["step"] <= step]
            write_atomically(log, b"".join(line + b"\n" for line in kept))
        for path in _state_files(self.folder):
            if path.stem > f"step-{step:08d}":
                path.unlink()
        self._drop_old_states()

    def _drop_old_states(self) -> None:
        for old in _state_files(self.folder)[KEPT_STATES:]:
            old.unlink()

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_config(folder: Path | str) -> dict[str, Any]:
    """The settings a run was begun with.

    Raises:
        ValueError: there is no run in the folder.
    """
    try:
        return json.loads((Path(folder) / "config.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"There is no run in {folder}: name a folder that `ipro train` made.") from None
    except ValueError as error:
        raise ValueError(f"{folder}/config.json cannot be read ({error}): begin a new run.") from None


def read_metrics(folder: Path | str) -> list[StepRecord]:
    """The updates of a run, also while it is being written."""
    lines = whole_lines(Path(folder) / "metrics.jsonl")
    return [StepRecord(**json.loads(line)) for line in lines]


def read_seconds(folder: Path | str) -> list[float]:
    """How long each of the updates in `read_metrics` took."""
    return [json.loads(line)["seconds"] for line in whole_lines(Path(folder) / "times.jsonl")]


def latest_state(folder: Path | str) -> State | None:
    """The newest state that is whole, also while the run is being written; None if none was ever written.

    Raises:
        ValueError: there are states, and all are damaged.
    """
    paths = _state_files(Path(folder))
    for path in paths:
        try:
            return _read_state(path)
        except (ValueError, OSError, SafetensorError) as error:
            logger.warning("%s is damaged (%s): going back to the state before it.", path, error)
    if paths:
        raise ValueError(f"No state in {folder}/state can be read: begin a new run.")
    return None


def environment(device: str = "cpu") -> dict[str, Any]:
    """What, beside the settings, decides the last bits of a number."""
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
    }


@cache
def _versions() -> dict[str, str]:
    """Read from the packages' notes, because importing diffusers takes seconds."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _only_writer(folder: Path) -> Any:
    from filelock import FileLock, Timeout

    # Not per thread: ComfyUI may close a run from another thread than it was opened in.
    lock = FileLock(folder / "run.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # The lock file itself stays empty: older versions of filelock truncate it while they ask.
        holder = _read_json(folder / "environment.json").get("pid", "unknown")
        raise ValueError(
            f"The run in {folder} is being written by another process (pid {holder}): wait for it, stop it, "
            "or name another folder."
        ) from None
    for path in folder.rglob(".*"):  # what write_atomically was at when its process was killed
        if re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name):
            path.unlink()
    return lock


def _refuse_other_settings(
    folder: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any], may_differ: Collection[str]
) -> None:
    old, new = _flat(begun), _flat(wanted)
    different = [
        f"{name} was {json.dumps(old.get(name))}, now {json.dumps(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in may_differ
    ]
    if different:
        raise ValueError(
            f"The run in {folder} was begun with other settings ({'; '.join(different)}): repeat those, "
            "or begin a new run in another folder."
        )


def _warn_of_another_environment(folder: Path, now: dict[str, Any]) -> None:
    before, after = _flat(_read_json(folder / "environment.json")), _flat(now)
    changed = [
        f"{name} {before.get(name)} → {after[name]}" for name in after if before.get(name) != after[name]
    ]
    if before and changed:
        logger.warning("The run was begun elsewhere, its last bits may change: %s.", ", ".join(changed))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"ipro": {"steps": 8}} → {"ipro.steps": 8}."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _state_files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((folder / "state").glob("step-*.safetensors"), reverse=True)


def _read_state(path: Path) -> State:
    with safe_open(str(path), framework="pt") as file:
        note = json.loads((file.metadata() or {}).get("ipro", "{}"))
        # Cloned, because they are a window on the file, which Windows then would not let us delete.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, it is no dict
    if note.get("kind") != "run state" or note["sha256"] != fingerprint(tensors):
        raise ValueError("its checksum does not fit")
    return State(note["step"], tensors, note["scalars"])


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.exists() else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2).encode() + b"\n")
