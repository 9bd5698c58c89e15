"""What files of tests share: the real host, with a loud word where there is none; small jobs of Wan."""

import os
from contextlib import contextmanager

import pytest
import torch
from host import Host, HostLacksPackage, find_host

_missing: list[str] = []


@pytest.fixture(scope="session")
def host_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("host")


@pytest.fixture(scope="session")
def host(host_folder):
    """A server with the pack, for all tests."""
    checkout = find_host()
    if checkout is None:
        _without("there is no ComfyUI checkout: set COMFYUI_DIR")
    host = Host(checkout, host_folder)
    try:
        host.__enter__()
    except HostLacksPackage as reason:
        _without(str(reason))
    yield host
    host.__exit__()


@pytest.fixture(scope="session")
def browser():
    from study_voter import real_browser

    with real_browser() as opened:
        yield opened


@pytest.fixture
def server(monkeypatch):
    """Of a vision-language model; whoever asks it waits for nothing and has no key."""
    from vision_server import Server

    from ipro_core.clips import settings, vision

    monkeypatch.delenv(settings.KEY, raising=False)
    monkeypatch.setattr(vision, "WAIT", 0.0)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def one_thread():
    """Networks this small only wait for each other's threads; and their sums are the same bit for bit."""
    with _one_thread():
        yield


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    """By kind of model; whoever uses them changes nothing in them."""
    from wan_jobs import BOTH, Job

    with _one_thread():
        return {kind: Job(tmp_path_factory.mktemp(kind), kind) for kind in BOTH}


@contextmanager
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _without(reason: str):
    _missing.append(reason)
    if os.environ.get("IPRO_HOST_WANTED"):
        pytest.exit(f"No host: {reason}", returncode=1)
    pytest.skip(reason)


def pytest_sessionfinish(session):
    """A worker of pytest-xdist hands over what it missed; only the first process prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["missing"] = _missing


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _missing.extend(getattr(node, "workeroutput", {}).get("missing", []))


def pytest_terminal_summary(terminalreporter):
    if _missing:
        terminalreporter.section("NOTHING OF COMFYUI WAS TESTED", sep="!")
        terminalreporter.line(f"{_missing[0]}. `make test-host` makes an environment for it.")
