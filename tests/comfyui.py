"""Where a ComfyUI checkout is, for the tests that compare with the real host."""

import os
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
