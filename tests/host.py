"""The real host with the pack in it: a ComfyUI server on loopback, on the CPU, in a folder of its own.

A checkout is $COMFYUI_DIR, or the host whose custom_nodes this pack lies in, or ~/ComfyUI. The packages that
it wants are in its requirements.txt; `make test-host` makes an environment with them.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
SECONDS_TO_START = 120
WATCH = """
import sys, traceback

class Watch:
    def find_spec(self, name, path=None, target=None):
        room, _, file = name.partition(".ipro_core.models.")
        if file not in ("", "base") or name.endswith((".ipro_core.studio", ".faces.detector")):
            print("IMPORTED BY THE PACK:", name, flush=True)
        if name in ("diffusers", "peft", "onnxruntime", "insightface", "cv2"):
            if any("ComfyUI-IPRO" in frame.filename for frame in traceback.extract_stack()):
                print("IMPORTED BY THE PACK:", name, flush=True)

sys.meta_path.insert(0, Watch())
"""
"""Runs before all packs are loaded: the host itself may import some of these."""


def find_host() -> Path | None:
    """The first checkout there is."""
    places = [Path(os.environ["COMFYUI_DIR"])] if os.environ.get("COMFYUI_DIR") else []
    places += [PACK.parents[1], Path.home() / "ComfyUI"]
    return next((place for place in places if (place / "execution.py").exists()), None)


class Host:
    """A server that runs; use it in a `with`."""

    def __init__(self, checkout: Path, base: Path) -> None:
        self.checkout, self.base, self.log = checkout, base, base / "host.log"
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> "Host":
        for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / "ComfyUI-IPRO"
        if not link.exists():
            link.symlink_to(PACK)
        where = ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        if not importlib.util.find_spec("comfyui_frontend_package"):
            where += ["--front-end-root", str(self.base)]  # no page, but all that a page asks for
        main = [sys.executable, str(Path(__file__).with_name("host_main.py")), "--port", str(self.port)]
        command = [*main, "--cpu", "--disable-api-nodes", *where]
        watch = self.base / "custom_nodes" / "watch"
        watch.mkdir(exist_ok=True)
        (watch / "prestartup_script.py").write_text(WATCH)
        shutil.copy(PACK / "tests" / "host_pack.py", watch / "__init__.py")
        # One thread, because networks this small only wait for each other's; bytecode as every user has it.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment |= {"PYTHONPYCACHEPREFIX": str(self.base / "bytecode")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.checkout, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                told = self.log.read_text()
                self.imported_at_start = re.findall("IMPORTED BY THE PACK: (.*)", told)
                took = re.findall(r"([\d.]+) seconds: .*ComfyUI-IPRO", told)
                assert took, f"the host did not load the pack: {told[-3000:]}"
                self.start_up = float(took[-1])
                return self
            except OSError:
                time.sleep(0.2)
        told = self.log.read_text()
        self.__exit__()
        missing = re.findall(r"^ModuleNotFoundError: No module named '([^']+)'", told, re.MULTILINE)
        if missing:
            raise HostLacksPackage(f"{self.checkout} needs {missing[-1]}: see its requirements.txt")
        raise AssertionError(told[-3000:])

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, message: Mapping[str, Any]) -> Any:
        """What the host answers, also where it refuses."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(message).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as refused:
            return json.loads(refused.read())

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Queue a graph in the API's form; its id."""
        answer = self.post("/prompt", {"prompt": prompt})
        assert answer.get("prompt_id") and not answer.get("node_errors"), json.dumps(answer, indent=1)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 300) -> dict[str, Any]:
        """The history of a queued graph, once it is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)
        raise AssertionError(f"not over after {seconds} s: {self.log.read_text()[-2000:]}")

    def execute(self, prompt: Mapping[str, Any], seconds: float = 300) -> dict[str, Any]:
        """The outputs of a graph that succeeds, by node."""
        history = self.wait(self.queue(prompt), seconds)
        assert history["status"]["status_str"] == "success", json.dumps(history["status"], indent=1)
        return history["outputs"]


class HostLacksPackage(Exception):
    """The running environment cannot start the host."""


if __name__ == "__main__":
    print(find_host() or sys.exit("There is no ComfyUI checkout: set COMFYUI_DIR."))
