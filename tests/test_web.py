"""The page's side: its drawing and its memory under node, and that it asks nobody but its own server."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WEB = sorted((ROOT / "web").rglob("*js"))


def test_what_is_drawn_and_remembered():
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node, which runs the page's tests: install nodejs")
    tests = sorted(str(path) for path in (ROOT / "tests" / "web").glob("*.test.mjs"))
    run = subprocess.run([node, "--test", *tests], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert int(re.findall(r"# pass (\d+)", run.stdout)[-1]) >= 16


@pytest.mark.parametrize("source", WEB, ids=lambda path: path.name)
def test_no_address_but_the_servers_own_and_nothing_that_a_strict_page_refuses(source):
    text = source.read_text()
    assert not re.search(r"https?://|//cdn|blob:|eval\(|new Function|innerHTML", text)
    for place in re.findall(r'from "([^"]+)"', text):
        here = (source.parent / place).exists()
        assert here or place in ("../../scripts/app.js", "../../scripts/api.js"), place


@pytest.mark.parametrize("page", sorted((ROOT / "web" / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_a_help_page_opens_with_a_title_and_its_pictures_are_there(page):
    text = page.read_text()
    assert text.startswith("# ") and not re.search(r"https?://", text)
    for about, picture in re.findall(r"!\[(.*)\]\((.*)\)", text):
        assert about and (page.parent / picture).stat().st_size < 300_000, picture


def test_only_the_extension_is_loaded_by_itself():
    assert [path.name for path in WEB if path.suffix == ".js"] == ["ipro.js"]


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_workflow_has_its_picture_its_note_and_a_line_in_the_readme(path):
    assert path.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    (note,) = [node for node in json.loads(path.read_text())["nodes"] if node["type"] == "MarkdownNote"]
    assert note["widgets_values"][0].startswith("## ")
    assert f"`{path.stem}`" in (ROOT / "README.md").read_text()
