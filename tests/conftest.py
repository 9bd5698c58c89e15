"""The real host as a fixture, and a loud word where there is none."""

import os

import pytest
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


def _without(reason: str):
    _missing.append(reason)
    if os.environ.get("IPRO_HOST_WANTED"):
        pytest.exit(f"No host: {reason}", returncode=1)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter):
    if _missing:
        terminalreporter.section("NOTHING OF COMFYUI WAS TESTED", sep="!")
        terminalreporter.line(f"{_missing[0]}. `make test-host` makes an environment for it.")
