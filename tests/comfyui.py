"""Where a ComfyUI checkout is, for the tests that compare with the real host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def find_comfyui(file: str = "comfy/ops.py") -> Path:
    """The first of $COMFYUI_DIR, else ~/ComfyUI*, that has this file; skips the test if none does."""
    given = os.environ.get("COMFYUI_DIR")
    places = [Path(given)] if given else sorted(Path.home().glob("ComfyUI*"), reverse=True)
    found = next((place for place in places if (place / file).exists()), None)
    if found is None:
        pytest.skip(f"needs a ComfyUI checkout with {file}: set COMFYUI_DIR")
    return found


def run_in_comfyui(script: str, host: Path, *arguments: Path) -> None:
    """Run a script, which gets the host's folder first, in a process of its own.

    Skips the test if this environment lacks a package that the host needs.
    """
    command = [sys.executable, "-c", script, str(host), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"needs what {host}/requirements.txt lists: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
