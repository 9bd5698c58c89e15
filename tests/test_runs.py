"""A run on disk: one writer, whole files, and going on after any kind of death."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from toy_runs import SETTINGS, TARGETS, Distance, Point, in_a_child, outcome, train_in

import ipro_core.files
from ipro_core.runs import Run, State, latest_state, read_config, read_metrics
from ipro_core.training.loop import MAY_DIFFER, train
from ipro_core.types import StepRecord

PROGRAM = Path(__file__).with_name("toy_runs.py")
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


def state(step: int, value: float = 0.5) -> State:
    return State(step, {"adapter/up": torch.full((2, 3), value), "step/up": torch.tensor(1.0)}, {"seed": 7})


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place: these tests write and sync hundreds of small files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@posix
@pytest.mark.parametrize(("mode", "least"), [(["die"], 20), (["kill", "10"], 10)])
def test_killed_at_any_moment_and_resumed_it_leaves_the_bytes_of_an_unbroken_run(folder, mode, least):
    # "die": SIGKILL at the 1st, 2nd, … sync to disk of one run, so before and after each single write.
    arguments = [sys.executable, str(PROGRAM), mode[0], str(folder), *mode[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert next(iter(json.loads(done.stdout).values())) >= least


def test_a_second_writer_is_refused_and_told_who_writes(folder):
    with Run.create(folder / "run", {}):
        for attempt in (
            lambda: Run.open(folder / "run"),
            lambda: in_another_process(f"Run.open({str(folder / 'run')!r})"),
        ):
            with pytest.raises(ValueError, match=rf"written by another process \(pid {os.getpid()}\)"):
                attempt()
    Run.open(folder / "run").close()


def in_another_process(expression: str) -> None:
    code = f"from ipro_core.runs import Run\ntry: {expression}\nexcept ValueError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROGRAM.parents[1], capture_output=True, text=True, check=True
    )
    raise ValueError(done.stdout)


@posix
def test_the_lock_dies_with_a_killed_holder(folder):
    assert not in_a_child(folder / "run", die_at=20)
    assert (folder / "run" / "run.lock").exists()
    Run.open(folder / "run").close()


def test_a_folder_that_holds_a_run_is_not_begun_again_and_an_empty_one_not_resumed(folder):
    Run.create(folder / "run", {"loop": {"seed": 1}}).close()
    with pytest.raises(ValueError, match="holds a run"):
        Run.create(folder / "run", {})
    assert read_config(folder / "run") == {"loop": {"seed": 1}}
    with pytest.raises(ValueError, match="no run in"):
        Run.open(folder / "elsewhere")


def test_other_settings_are_refused_by_name_unless_they_may_differ(folder):
    Run.create(folder, {"loop": {"seed": 1, "updates": 5}, "preset": "tiny", "sizes": (1, 2)}).close()
    same = {"loop": {"seed": 1, "updates": 5}, "preset": "tiny", "sizes": (1, 2)}
    Run.open(folder, same).close()
    with pytest.raises(ValueError, match=r'loop\.seed was 1, now 2; preset was "tiny", now "paper"\)'):
        Run.open(folder, same | {"loop": {"seed": 2, "updates": 9}, "preset": "paper"}, may_differ=MAY_DIFFER)
    longer = same | {"loop": {"seed": 1, "updates": 9}}
    with pytest.raises(ValueError, match=r"loop\.updates was 5, now 9"):
        Run.open(folder, longer)
    Run.open(folder, longer, may_differ=MAY_DIFFER).close()
    assert read_config(folder)["loop"]["updates"] == 9


def test_a_state_comes_back_and_only_two_are_kept(folder):
    with Run.create(folder, {}) as run:
        for step in (0, 9, 10, 100):
            run.save_state(state(step))
    assert sorted(path.name for path in (folder / "state").iterdir()) == [
        "step-00000010.safetensors",
        "step-00000100.safetensors",
    ]
    newest = latest_state(folder)
    assert newest and newest.step == 100 and newest.scalars == {"seed": 7}
    assert torch.equal(newest.tensors["adapter/up"], torch.full((2, 3), 0.5))
    assert newest.tensors["step/up"].shape == ()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_state_gives_way_to_the_one_before(folder, caplog, damage):
    with Run.create(folder, {}) as run:
        run.save_state(state(1, 0.25))
        run.save_state(state(2))
        path = folder / "state" / "step-00000002.safetensors"
        whole = path.read_bytes()
        flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        path.write_bytes({"cut": whole[:-5], "flipped": flipped, "empty": b""}[damage])
        older = latest_state(folder)
        assert older and older.step == 1 and older.tensors["adapter/up"][0, 0] == 0.25
        assert "step-00000002.safetensors is damaged" in caplog.text
        run.rewind(1)
        assert not path.exists()
        (folder / "state" / "step-00000001.safetensors").write_bytes(b"?")
        with pytest.raises(ValueError, match=r"No state in .* can be read"):
            latest_state(folder)


def test_lines_after_the_state_and_a_torn_last_line_are_dropped(folder):
    with Run.create(folder, {}) as run:
        for step in (1, 2, 3):
            run.append(StepRecord(step, {"reward": 0.1 * step}), seconds=step)
        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 4, "metr')
        assert [record.step for record in read_metrics(folder)] == [1, 2, 3]
        run.rewind(2)
    assert read_metrics(folder) == [StepRecord(1, {"reward": 0.1}), StepRecord(2, {"reward": 0.2})]
    assert (folder / "times.jsonl").read_text().count("\n") == 2


def test_a_damaged_state_costs_time_but_no_bit(folder, caplog):
    train_in(folder / "unbroken")
    train_in(folder / "damaged", replace(SETTINGS, updates=3))
    (folder / "damaged" / "state" / "step-00000003.safetensors").write_bytes(b"damaged")
    train_in(folder / "damaged")
    assert outcome(folder / "damaged") == outcome(folder / "unbroken")
    assert "going back to the state before it" in caplog.text


def test_a_full_disk_leaves_the_last_state_and_the_run_goes_on_when_there_is_room(folder, monkeypatch):
    train_in(folder / "unbroken")
    real, written = os.fsync, iter(range(100))

    def full_after_some(handle: int) -> None:
        if next(written) >= 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(ipro_core.files.os, "fsync", full_after_some)
    with pytest.raises(OSError, match="No space left"):
        train_in(folder / "run")
    monkeypatch.undo()
    assert latest_state(folder / "run")
    train_in(folder / "run")
    assert outcome(folder / "run") == outcome(folder / "unbroken")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_really_full_disk_does_the_same(folder):
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        model = Point()
        with Run.create(disk / "run", {"loop": asdict(SETTINGS)}) as run:
            records = train(model, Distance(model, part=2, spread=0.5), TARGETS, SETTINGS, run)
            next(records), next(records)
            ballast = disk / "ballast"
            with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(1024)):
                    pass
            with pytest.raises(OSError, match="No space left"):
                list(records)
        ballast.unlink()
        last = latest_state(disk / "run")
        assert last and last.step >= 2
        train_in(disk / "run")
        train_in(folder / "unbroken")
        assert outcome(disk / "run") == outcome(folder / "unbroken")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_a_killed_write_left_is_swept_away(folder):
    Run.create(folder, {}).close()
    rest = folder / "state" / f".step-00000001.safetensors.{'0f' * 16}"
    rest.write_bytes(b"half")
    Run.open(folder).close()
    assert not rest.exists()


def test_another_version_is_warned_of(folder, caplog):
    Run.create(folder, {}).close()
    path = folder / "environment.json"
    path.write_text(path.read_text().replace(torch.__version__, "2.4.0"))
    Run.open(folder).close()
    assert f"versions.torch 2.4.0 → {torch.__version__}" in caplog.text


def test_a_run_closed_before_its_training_is_not_written_to(folder):
    model = Point()
    with Run.create(folder, {}) as run:
        records = train(model, Distance(model), TARGETS, replace(SETTINGS, checkpoint_every=100), run)
        with closing(records):
            list(islice(records, 2))
            run.close()
    last = latest_state(folder)
    assert last and last.step == 0
    shutil.rmtree(folder / "state")
    assert latest_state(folder) is None
