"""Pictures of the workflows in the host's real page, classic and (from 1.49 on) Nodes 2.0; their thumbnails.

    .venv-host/bin/python docs/screens.py [6_tiny_world …]

Needs `make test-host`'s environment with playwright and comfyui-frontend-package beside it, and chromium. The
tiny world's workflow is run before its picture is taken, with fewer people and updates than it ships; the
others are shown as they open.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from host import Host, find_host  # noqa: E402

FLAGS = ["--no-sandbox", "--disable-gpu", "--use-gl=swiftshader", "--hide-scrollbars"]
SMALL = {"IPRO_TinyWorldClips": {"count": 40}, "IPRO_Train": {"updates": 12, "sample_every": 4}}
RUN = ("6_tiny_world",)
LOOKS = ("classic", False), ("nodes2", True)
SIZE = {"width": 1900, "height": 1100}
FIT = """() => {
  const canvas = app.canvas, nodes = app.graph._nodes;
  const left = Math.min(...nodes.map((n) => n.pos[0])), top = Math.min(...nodes.map((n) => n.pos[1])) - 60;
  const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
  const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
  const scale = Math.min((innerWidth - 140) / (right - left), (innerHeight - 120) / (bottom - top), 1);
  canvas.ds.scale = scale;
  canvas.ds.offset = [90 / scale - left, 70 / scale - top];
  canvas.setDirty(true, true);
}"""
SHRINK = """(small) => {
  for (const node of app.graph._nodes)
    for (const [name, value] of Object.entries(small[node.comfyClass ?? node.type] ?? {}))
      for (const widget of node.widgets) if (widget.name === name) widget.value = value;
}"""


def photograph(page: Any, host: Host, name: str, nodes2: bool) -> bytes:
    page.goto(f"http://127.0.0.1:{host.port}/")
    page.wait_for_function("window.app?.graph && window.app?.extensionManager", timeout=60_000)
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")
    page.evaluate(f"app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {str(nodes2).lower()})")
    page.evaluate(
        "(graph) => app.loadGraphData(graph)", json.loads((ROOT / f"workflows/{name}.json").read_text())
    )
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")  # what models are missing
    if name in RUN:
        page.evaluate(SHRINK, SMALL)
        before = len(host.get("/history"))
        page.evaluate("app.queuePrompt(0, 1)")
        deadline = time.monotonic() + 400
        while len(host.get("/history")) == before and time.monotonic() < deadline:
            page.wait_for_timeout(500)
        *_, last = host.get("/history").values()
        assert last["status"]["status_str"] == "success", json.dumps(last["status"])[-2000:]
        page.wait_for_timeout(2000)
    page.evaluate(FIT)
    page.wait_for_timeout(1500)
    return page.screenshot(type="png")


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
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for name in names:
            for look, nodes2 in LOOKS[: 1 + newer]:
                page = browser.new_page(viewport=SIZE)
                page.on("pageerror", lambda error: print("page:", error))
                page.on("console", lambda m: m.type == "error" and print("console:", m.text[:300]))
                (folder / f"{name}_{look}.png").write_bytes(photograph(page, host, name, nodes2))
                page.close()
            with Image.open(folder / f"{name}_classic.png") as shot:
                small = shot.convert("RGB").resize((640, 640 * shot.height // shot.width))
                small.save(ROOT / "workflows" / f"{name}.jpg", quality=80)
        browser.close()


if __name__ == "__main__":
    main()
