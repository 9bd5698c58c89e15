"""The pack in the real host: what it registers, what it costs, what it says of itself."""

import re

import pytest
from host import PACK, Host

from ipro_core.rewards.base import reward_catalogue
from ipro_core.training.base import method_catalogue

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def facts(host):
    """Our nodes as the host tells them to the page."""
    return {name: about for name, about in host.get("/object_info").items() if name.startswith("IPRO_")}


def test_every_node_that_the_rooms_hold_is_registered(facts):
    rooms = [path.read_text() for path in (PACK / "nodes").glob("[a-z]*.py")]
    told = {name for text in rooms for name in re.findall(r'_comfy\.schema\(\s*"(\w+)"', text)}
    told |= {kind.__name__ for kind in reward_catalogue().values()}
    told |= {objective_id(kind) for kind in method_catalogue().values()}
    assert len(told) > 15 and set(facts) == {f"IPRO_{name}" for name in told}


def objective_id(settings: type) -> str:
    """IPRO's is as old as the pack."""
    start = settings.__name__.removesuffix("Settings")
    return "Objective" if start == "Ipro" else f"{start}Objective"


def test_every_input_and_output_explains_itself(facts):
    for name, about in facts.items():
        assert about["description"], name
        for inputs in (about["input"].get("required", {}), about["input"].get("optional", {})):
            for socket, (_, *options) in inputs.items():
                assert options and options[0].get("tooltip"), f"{name}: {socket}"
        assert all(about["output_tooltips"]) and len(about["output_tooltips"]) == len(about["output"]), name


def test_every_help_page_is_of_a_node(facts):
    assert {path.stem for path in (PACK / "web" / "docs").glob("*.md")} <= set(facts)


def test_no_seed_that_decides_a_run_is_drawn_anew_by_the_page(facts):
    required = facts["IPRO_Train"]["input"]["required"]
    assert required["seed"][1]["control_after_generate"] is False
    assert facts["IPRO_Objective"]["input"]["required"]["noise_seed"][1]["control_after_generate"] is False


def test_nothing_heavy_is_imported_before_a_node_is_run(host):
    assert host.imported_at_start == []


def test_the_pack_costs_a_tenth_of_a_second_of_the_hosts_very_first_start(host, tmp_path):
    """Without bytecode; the quickest of four, on a machine that others use."""
    took = [host.start_up]
    while min(took) > 0.1 and len(took) < 4:
        with Host(host.checkout, tmp_path / str(len(took))) as again:
            took.append(again.start_up)
    assert min(took) <= 0.1, took
