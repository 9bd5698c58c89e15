"""Other methods' nodes in the real host: the tiny world, without an anchor, on votes; what is refused."""

import json

import pytest
from graphs import read, to_api
from host import PACK
from small_study import video, vote_for
from test_host_graph import tiny_graph
from wan_graphs import only

from ipro_core.evaluation.preferred import voted_place
from ipro_core.evaluation.study import Study, VideoSet
from ipro_core.evaluation.study_design import StudySettings
from ipro_core.evaluation.study_videos import Take

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def facts(host):
    return host.get("/object_info")


def method_graph(facts, kind, **changed):
    """The tiny world's graph as far as Train, with another objective in the place of IPRO's."""
    prompt, train = only(tiny_graph(facts, updates=2, sample_every=0), "IPRO_Train")
    objective, _ = prompt[train]["inputs"]["objective"]
    node = prompt[objective]
    wanted = facts[kind]["input"]["required"]
    given = {name: options[0]["default"] for name, (_, *options) in wanted.items() if name != "reward"}
    kept = {name: value for name, value in node["inputs"].items() if name in wanted}
    prompt[objective] = {"class_type": kind, "inputs": given | kept | changed}
    return prompt, train, objective


@pytest.mark.parametrize(
    "kind, changed, told",
    [
        ("IPRO_SftObjective", {}, {"flow", "reward"}),
        ("IPRO_DpoObjective", {"candidates": 2, "levels": 1}, {"accuracy", "margin", "kl"}),
        ("IPRO_Objective", {"estimator": "refl"}, {"reward", "kl"}),
        ("IPRO_Objective", {"placement": "high-noise", "grad_steps": 2}, {"reward", "kl"}),
    ],
)
def test_each_method_tunes_in_a_graph_and_tells_its_loss(host, facts, kind, changed, told):
    prompt, train, _ = method_graph(facts, kind, **changed)
    (run,) = host.execute(prompt)[train]["ipro_run"]
    assert run["state"] == "finished" and len(run["records"]) == 2
    for record in run["records"]:
        assert record["metrics"].keys() > told | {"loss", "grad_norm"} and record["metrics"]["grad_norm"] > 0


def test_without_kl_and_without_the_pool_are_settings_of_the_graph(host, facts):
    prompt, train, objective = method_graph(facts, "IPRO_Objective", kl_weight=0.0)
    prompt["first frame"] = {"class_type": "IPRO_ReferenceReward", "inputs": {"missing": "count"}}
    prompt[objective]["inputs"]["reward"] = ["first frame", 0]
    (run,) = host.execute(prompt)[train]["ipro_run"]
    assert all("kl" not in record["metrics"] for record in run["records"])


def test_dpo_learns_a_studys_votes_and_nothing_else_does(host, facts):
    study = Study.create(
        host.base / "user" / "ipro" / "studies" / "voted", "Which?", ["identity"], StudySettings(controls=0)
    )
    takes = {method: Take(video(method, 0, frames=9, size=(48, 48)), 8.0) for method in ("base", "tuned")}
    study.add(VideoSet("bar", takes, takes["base"].frames_TCHW[0], "a person smiles"))
    voter = study.ballots.join()
    for showing in study.showings(voter):
        study.ballots.cast(vote_for(study, voter, showing, "tuned"))
    prompt, train, _ = method_graph(facts, "IPRO_DpoObjective", levels=2)
    faces = next(name for name, node in prompt.items() if node["class_type"] == "IPRO_LoadFaceModels")
    inputs = {"name": "voted", "question": "identity", "face_models": [faces, 0]}
    prompt["voted"] = {"class_type": "IPRO_DatasetFromStudy", "inputs": inputs}
    prompt[train]["inputs"]["dataset"] = ["voted", 0]
    (run,) = host.execute(prompt)[train]["ipro_run"]
    assert [record["metrics"]["margin"] > 0 for record in run["records"]] == [False, True]
    config = json.loads((host.base / "output" / "ipro" / run["run"] / "config.json").read_text())
    assert config["clips"] == [voted_place(study.folder, "identity")]
    stranger, train, _ = method_graph(facts, "IPRO_Objective")
    stranger["voted"], stranger[train]["inputs"]["dataset"] = prompt["voted"], ["voted", 0]
    history = host.wait(host.queue(stranger))
    assert "connect a DPO Objective" in json.dumps(history["status"])


def test_the_baselines_run_side_by_side_and_are_judged(host, facts):
    prompt = to_api(read(PACK / "workflows" / "8_baselines.json"), facts)
    small = {"updates": 1, "batch_size": 2, "microbatch": 2, "sample_every": 0, "count": 2, "seeds": 1}
    small |= {"candidates": 2, "levels": 1, "group_size": 2}
    for node in prompt.values():
        node["inputs"] |= {name: value for name, value in small.items() if name in node["inputs"]}
    judged = [name for name, node in prompt.items() if node["class_type"] == "IPRO_CompareRuns"]
    for name in judged[:-1]:  # that one is judged is enough
        del prompt[name]
    outputs = host.execute(prompt)
    runs = [output["ipro_run"][0] for output in outputs.values() if "ipro_run" in output]
    configs = {}
    for run in runs:
        assert run["state"] == "finished" and run["records"][0]["metrics"]["grad_norm"] > 0
        config = json.loads((host.base / "output" / "ipro" / run["run"] / "config.json").read_text())
        configs[run["run"].rpartition("-")[0]] = config["method"], config["files"]["face_encoder"]
    assert configs == {
        "ipro": ("ipro", ""), "clip": ("ipro", "scorer"),
        "sft": ("sft", ""), "dpo": ("dpo", ""), "grpo": ("grpo", ""),
    }  # fmt: skip
    assert outputs[judged[-1]]["ipro_compare"][0]["figures"]["pairs"] == 2
