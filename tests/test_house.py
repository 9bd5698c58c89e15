"""The house rules that a reader relies on: arrows, start-up, files, words."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "ipro_core"
SOURCES = sorted(CORE.rglob("*.py"))

# ARCHITECTURE.md, "Arrows": what each room may import. Everything else may import everything.
ARROWS = {
    "files": set(),
    "cache": {"files"},
    "chunks": set(),
    "scorer_files": set(),
    "scorer": {"files", "chunks", "scorer_files"},
    "types": {"files"},
    "runs": {"files", "types"},
    "faces": {"files", "types", "chunks", "scorer"},
    "clips": {"files", "cache", "types", "faces"},
    "rewards": {"files", "types", "faces", "scorer"},
    "models": {"files", "types"},
    "sampling": {"cache", "types", "models"},
    "training": {"types", "faces", "rewards", "models", "sampling", "runs", "scorer"},
    "bench": {"types", "models", "sampling", "training"},
    "evaluation": {"files", "types", "faces", "clips", "scorer"},
}


def room_of(source: Path) -> str:
    parts = source.relative_to(CORE).with_suffix("").parts
    return parts[0]


def rooms_imported(source: Path) -> set[str]:
    """Rooms that a file of ipro_core imports, relative imports resolved."""
    package = source.relative_to(CORE).parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + tuple((node.module or "").split("."))
        path = [part for part in base if part]
        rooms |= {path[0]} if path else {name.name for name in node.names}
    return rooms


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CORE)))
def test_arrows_point_one_way(source):
    room = room_of(source)
    if room in ARROWS:
        forbidden = rooms_imported(source) - ARROWS[room] - {room}
        assert not forbidden, f"{room} may not import {', '.join(sorted(forbidden))}"


def test_the_core_imports_itself_relatively_and_nothing_of_the_host():
    outside = {"ipro_core", "comfy", "comfy_api", "folder_paths", "server", "nodes", "pickle"}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not outside & {name.split(".")[0] for name in names}, source


def test_importing_every_room_loads_no_heavy_library():
    modules = [".".join(source.relative_to(ROOT).with_suffix("").parts) for source in SOURCES]
    rooms = [module for module in modules if not module.endswith(("__main__", "train_models"))]
    heavy = ["av", "cv2", "onnxruntime", "onnx", "insightface", "diffusers", "peft", "transformers", "PIL"]
    code = (
        "import importlib, sys\n"
        f"for name in {rooms!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


NODES = sorted((ROOT / "nodes").glob("*.py"))


@pytest.mark.parametrize("source", NODES, ids=lambda path: path.name)
def test_nodes_know_the_core_and_what_they_share_but_not_each_other(source):
    tree = ast.parse(source.read_text())
    assert ast.get_docstring(tree) and len(source.read_text().splitlines()) <= 350
    assert not re.search(r"^(from|import) (ipro_core|nodes)\b", source.read_text(), re.MULTILINE)
    if source.name == "__init__.py":  # the list of rooms; it imports them when the host asks
        assert not [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        return
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for name in ([node.module] if node.module else [alias.name for alias in node.names])
    }
    assert all(name.startswith("_") for name in imported), f"{source.name} imports another room's nodes"
    if source.name.startswith("_"):
        return
    # The host is asked through _comfy, but for the words that a node is told in.
    hosts = {"comfy", "folder_paths", "server", "execution", "comfy_execution"}
    asked = {
        (node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not asked & hosts


def test_the_door_imports_nothing_before_the_host_asks():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_requirements_are_the_projects_dependencies_and_never_pin_torch():
    project = (ROOT / "pyproject.toml").read_text()
    declared = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert declared
    dependencies = re.findall(r'"([^"]+)"', declared[1])
    assert (ROOT / "requirements.txt").read_text().split() == dependencies
    assert not any(name.startswith(("torch", "opencv")) for name in dependencies)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CORE)))
def test_every_module_opens_with_a_sentence_and_stays_readable(source):
    text = source.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says in its first line what lives here"
    assert len(text.splitlines()) <= 350, "a file this long wants to be two"


def test_the_core_never_unpickles_and_never_prints():
    for source in SOURCES:
        speaks = room_of(source) in ("__main__", "commands") or source.name == "train_models.py"
        calls = [node.func for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
        called = {ast.unparse(call) for call in calls}
        # train_video.py takes up its own checkpoint, weights_only; what users run does not even that.
        assert "torch.load" not in called or source.name == "train_video.py", source
        assert speaks or "print" not in called, source
