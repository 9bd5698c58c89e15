"""Pictures of the workflows in the host's real page, classic and (from 1.49 on) Nodes 2.0; their thumbnails.

    .venv-host/bin/python docs/screens.py [6_tiny_world …]

Needs the environment that `make test-host` makes, and chromium. The tiny world's workflow is run before its
picture is taken, with fewer people and updates than it ships, and its panels are cut out for the help pages;
the others are shown as they open, where empty files stand for what they ask for.
"""

import io
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from graphs import read  # noqa: E402
from host import Host, find_host  # noqa: E402
from test_host_page import FLAGS, open_page  # noqa: E402

HELP = ("Train", "BuildFacePool", "CompareRuns")
"""Nodes whose panels the help pages show."""
QUIET = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.UseNewMenu": "Top"}
QUIET |= {"LiteGraph.Canvas.MinFontSizeForLOD": 0, "Comfy.Workflow.ShowMissingModelsWarning": False}
SMALL = {"IPRO_TinyWorldClips": {"count": 40}, "IPRO_Train": {"updates": 12, "sample_every": 4}}
RUN = ("6_tiny_world",)
LOOKS = ("classic", False), ("nodes2", True)
SIZE = {"width": 1900, "height": 1100}
LEFT, TOP, MARGIN = 110, 110, 30
"""Pixels that the page's own bars take."""
FIT = """([left, top, margin]) => {
  const canvas = app.canvas, nodes = app.graph._nodes;
  const west = Math.min(...nodes.map((n) => n.pos[0])), north = Math.min(...nodes.map((n) => n.pos[1])) - 40;
  const east = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
  const south = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
  const wide = (innerWidth - left - margin) / (east - west);
  const scale = Math.min(wide, (innerHeight - top - margin) / (south - north), 1);
  const box = canvas.canvas.getBoundingClientRect();
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = (left - box.left) / scale - west;
  canvas.ds.offset[1] = (top - box.top) / scale - north;
  canvas.setDirty(true, true);
}"""
LOOK_AT = """(kind) => {
  const node = app.graph._nodes.find((one) => one.comfyClass === kind), canvas = app.canvas;
  const box = canvas.canvas.getBoundingClientRect();
  canvas.ds.scale = 1;
  canvas.ds.offset[0] = 200 - box.left - node.pos[0];
  canvas.ds.offset[1] = 160 - box.top - node.pos[1];
  canvas.setDirty(true, true);
  return { x: 195, y: 125, width: node.size[0] + 10, height: node.size[1] + 40 };
}"""
SHRINK = """(small) => {
  for (const node of app.graph._nodes)
    for (const [name, value] of Object.entries(small[node.comfyClass ?? node.type] ?? {}))
      for (const widget of node.widgets) if (widget.name === name) widget.value = value;
}"""


def stand_ins(base: Path) -> None:
    """Empty files where the workflows look for theirs, so that the page has nothing to miss."""
    for path in (ROOT / "workflows").glob("*.json"):
        for node in read(path)["nodes"]:
            for model in node["properties"].get("models", []):
                _touch(base / "models" / model["directory"] / model["name"])
    for place in ("my_clips/one.mp4", "other_people/two.mp4"):
        _touch(base / "input" / place)
    _touch(base / "models/loras/ipro/identity.safetensors")
    _touch(base / "models/insightface/models/antelopev2/w600k.onnx")
    _touch(base / "output/ipro/identity-14b/config.json", '{"loop": {"updates": 100}}')
    from PIL import Image

    Image.new("RGB", (832, 480), (120, 110, 100)).save(base / "input" / "person.png")


def _touch(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def photograph(page: Any, host: Host, name: str, nodes2: bool) -> bytes:
    open_page(page, host)
    for setting, value in {**QUIET, "Comfy.VueNodes.Enabled": nodes2}.items():
        page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [setting, value])
    page.evaluate(
        "([graph, name]) => app.loadGraphData(graph, true, true, name)",
        [read(ROOT / f"workflows/{name}.json"), name],
    )
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")
    if name in RUN:
        page.evaluate(SHRINK, SMALL)
        before = len(host.get("/history"))
        page.evaluate("app.queuePrompt(0, 1)")
        deadline = time.monotonic() + 400
        while len(host.get("/history")) == before and time.monotonic() < deadline:
            page.wait_for_timeout(500)
        *_, last = host.get("/history").values()
        assert last["status"]["status_str"] == "success", json.dumps(last["status"])[-2000:]
        page.wait_for_timeout(8000)  # until the page has told that it is done
    page.evaluate(FIT, [LEFT, TOP, MARGIN])
    page.wait_for_timeout(1500)
    return page.screenshot(type="png")


def cut_out(page: Any) -> None:
    """The nodes of the help pages, at their own size."""
    for kind in HELP:
        where = page.evaluate(LOOK_AT, f"IPRO_{kind}")
        page.wait_for_timeout(1000)
        keep(page.screenshot(type="png", clip=where), ROOT / "web" / "docs" / f"IPRO_{kind}.png")


def keep(png: bytes, path: Path) -> None:
    """With 256 colours: half as large, and nobody sees it."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as shot:
        shot.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)


def main() -> None:
    from PIL import Image
    from playwright.sync_api import sync_playwright

    newer = tuple(map(int, version("comfyui-frontend-package").split(".")[:2])) >= (1, 49)
    names = sys.argv[1:] or [path.stem for path in sorted((ROOT / "workflows").glob("*.json"))]
    checkout = find_host()
    assert checkout, "there is no ComfyUI checkout"
    folder = ROOT / "docs" / "screens"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, Host(checkout, Path(base)) as host, sync_playwright() as play:
        stand_ins(Path(base))
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for name in names:
            for look, nodes2 in LOOKS[: 1 + newer]:
                page = browser.new_page(viewport=SIZE)
                page.on("pageerror", lambda error: print("page:", error))
                keep(photograph(page, host, name, nodes2), folder / f"{name}_{look}.png")
                if name in RUN and not nodes2:
                    cut_out(page)
                page.close()
            with Image.open(folder / f"{name}_classic.png") as shot:
                small = shot.convert("RGB").resize((640, 640 * shot.height // shot.width))
                small.save(ROOT / "workflows" / f"{name}.jpg", quality=80)
        browser.close()


if __name__ == "__main__":
    main()
