"""The pack in the host's real page, in headless Chromium: a reload in mid-run, and its words in Chinese."""

import shutil
import time

import pytest
from graphs import read, to_page
from host import PACK

pytestmark = pytest.mark.host

FLAGS = ["--no-sandbox", "--disable-gpu", "--use-gl=swiftshader", "--hide-scrollbars"]
UPDATES = 40


@pytest.fixture(scope="module")
def browser():
    """Chromium, by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the page")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium, in which the page is opened: install chromium")
    pytest.importorskip("comfyui_frontend_package", reason="needs the host's page: see its requirements.txt")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(host, browser):
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    open_page(page, host)
    yield page
    page.close()


def open_page(page, host):
    page.goto(f"http://127.0.0.1:{host.port}/")
    page.wait_for_function("window.app?.extensionManager && window.app.graph", timeout=60_000)
    page.wait_for_timeout(1000)
    page.keyboard.press("Escape")  # the choice of templates


def shrunk():
    """The tiny world's workflow, with updates of a second or so."""
    workflow = read(PACK / "workflows" / "6_tiny_world.json")
    small = {200: 6, 60: UPDATES}  # clips to tune on, updates
    for node in workflow["nodes"]:
        if node["type"] in ("IPRO_TinyWorldClips", "IPRO_Train"):
            node["widgets_values"] = [small.get(v, v) for v in node["widgets_values"]]
    return workflow


def headline(page):
    """What the panel of Train says."""
    return page.evaluate(
        """() => app.graph._nodes.find((node) => node.comfyClass === "IPRO_Train")
             .iproPanels?.run?.element.firstChild.textContent ?? "" """
    )


def until(page, say, wanted, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        told = say(page)
        if wanted(told):
            return told
        page.wait_for_timeout(100)
    raise AssertionError(f"the page says: {told}")


def done(told):
    """Updates that a headline tells of."""
    return int(told.split(" updates")[0].split(" · ")[-1].split(" of ")[0]) if " updates" in told else 0


def test_a_page_that_is_reloaded_in_mid_run_draws_the_run_again(host, page):
    page.evaluate("(workflow) => app.loadGraphData(workflow)", shrunk())
    page.wait_for_timeout(1000)
    page.evaluate("app.queuePrompt(0, 1)")
    before = done(until(page, headline, lambda told: done(told) >= 2))
    # The reloaded page hears no event of ours: what it knows it asked for.
    page.route_web_socket("**/ws*", without_our_events)
    page.reload()
    page.wait_for_function("window.app?.extensionManager && window.app.graph?._nodes?.length", timeout=60_000)
    told = until(page, headline, lambda told: done(told) >= before)
    assert "training" in told and done(told) < UPDATES, told
    (active,) = host.get("/ipro/active")["runs"]
    assert told.startswith(active["run"])
    host.post("/interrupt", {})
    deadline = time.monotonic() + 60
    while host.get("/ipro/active")["runs"] and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert host.get("/ipro/active")["runs"] == []


def test_a_page_that_is_reloaded_afterwards_draws_what_its_nodes_gave(host, page):
    prompt = {
        "clips": {"class_type": "IPRO_TinyWorldClips", "inputs": {"people": "held_out", "count": 1}},
        "clip": {"class_type": "IPRO_ShowClip", "inputs": {"clips": ["clips", 0]}},
        "faces": {"class_type": "IPRO_LoadFaceModels", "inputs": {}},
        "pool": {
            "class_type": "IPRO_BuildFacePool",
            "inputs": {"clip": ["clip", 0], "face_models": ["faces", 0], "min_face": 0},
        },
    }
    page.evaluate("(workflow) => app.loadGraphData(workflow)", to_page(prompt, host.get("/object_info")))
    page.wait_for_timeout(1000)
    page.evaluate("app.queuePrompt(0, 1)")
    before = until(page, pool_line, lambda told: "faces" in told)
    page.reload()
    page.wait_for_function("window.app?.extensionManager && window.app.graph?._nodes?.length", timeout=60_000)
    assert until(page, pool_line, bool) == before
    # In another workflow the same number is another node: it knows of nothing.
    page.evaluate("(workflow) => app.loadGraphData(workflow)", to_page(prompt, host.get("/object_info")))
    page.wait_for_timeout(1500)
    assert pool_line(page) == ""


def pool_line(page):
    """What the panel of Build Face Pool says."""
    return page.evaluate(
        """() => app.graph._nodes.find((node) => node.comfyClass === "IPRO_BuildFacePool")
             ?.iproPanels?.pool?.element.firstChild.textContent ?? "" """
    )


def test_the_page_speaks_chinese_where_it_is_asked_to(host, page):
    page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    page.wait_for_timeout(1000)
    page.reload()
    open_page(page, host)
    try:
        page.evaluate("(workflow) => app.loadGraphData(workflow)", shrunk())
        told = page.evaluate(
            """() => app.graph._nodes.filter((node) => node.comfyClass === "IPRO_Train")
                 .map((node) => [node.title, ...node.widgets.map((widget) => widget.label)])[0]"""
        )
        assert told[0] == "IPRO · 训练" and "学习率" in told, told
    finally:
        page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")
        page.wait_for_timeout(500)


def without_our_events(socket):
    server = socket.connect_to_server()
    server.on_message(lambda message: b"ipro." in as_bytes(message)[:40] or socket.send(message))


def as_bytes(message):
    return message if isinstance(message, bytes) else message.encode()
