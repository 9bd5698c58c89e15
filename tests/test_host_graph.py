"""Graphs in the real host: the tiny world whole, Cancel, going on, eviction, clips without a face."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from graphs import read, to_api
from host import PACK
from wan_graphs import forgotten, only

pytestmark = pytest.mark.host

SMALL = {"updates": 3, "batch_size": 2, "microbatch": 2, "sample_every": 2, "checkpoint_every": 10}


@pytest.fixture(scope="module")
def facts(host):
    return host.get("/object_info")


def tiny_graph(facts, **changed):
    """The shipped workflow as the page queues it, with a few small numbers."""
    prompt = to_api(read(PACK / "workflows" / "6_tiny_world.json"), facts)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "IPRO_TinyWorldClips":
            inputs["count"] = 4
        inputs |= {name: value for name, value in {**SMALL, **changed}.items() if name in inputs}
    return prompt


def lines(host, run):
    return (host.base / "output" / "ipro" / run / "metrics.jsonl").read_bytes()


def test_the_tiny_worlds_workflow_runs_from_clips_to_the_report(host, facts):
    prompt = tiny_graph(facts, name="whole")
    _, train = only(prompt, "IPRO_Train")
    # The host's own nodes take what Train gives.
    saver = "SaveLoRA" if "SaveLoRA" in facts else "SaveLoRANode"
    prompt["host saves"] = {"class_type": saver, "inputs": {"lora": [train, 1], "prefix": "loras/host"}}
    prompt["host draws"] = {
        "class_type": "LossGraphNode",
        "inputs": {"loss": [train, 2], "filename_prefix": "loss"},
    }
    outputs = host.execute(prompt)
    (run,) = outputs[train]["ipro_run"]
    assert run["state"] == "finished" and [record["step"] for record in run["records"]] == [1, 2, 3]
    assert host.get(f"/ipro/run?name={run['run']}") == run and host.get("/ipro/active") == {"runs": []}
    folder = host.base / "output" / "ipro" / run["run"]
    for which in ("base", "tuned"):
        assert (
            host.base / "output" / run["sample"][which]["subfolder"] / run["sample"][which]["filename"]
        ).exists()
    assert (folder / "report.html").exists()
    assert (host.base / "models" / "loras" / "ipro" / "identity.safetensors").exists()
    assert list((host.base / "output" / "loras").glob("host*.safetensors"))
    (pool,) = [output["ipro_pool"][0] for output in outputs.values() if "ipro_pool" in output]
    assert len(pool["seen"]) == 9 and pool["coverage"] == sum(pool["seen"]) / 9 and pool["warning"] == ""
    (one, two) = [output["ipro_compare"][0] for output in outputs.values() if "ipro_compare" in output]
    for told in (one, two):
        assert len(told["videos"]) == len(told["similarity"]) == 2 and len(told["similarity"][0]) == 9


def test_a_cancelled_run_is_saved_within_a_step_and_ends_as_the_unbroken_one(host, facts):
    how = {"batch_size": 12, "microbatch": 4, "updates": 3, "sample_every": 0}
    whole, train = only(tiny_graph(facts, name="unbroken", **how), "IPRO_Train")
    (unbroken,) = host.execute(whole)[train]["ipro_run"]
    broken, train = only(tiny_graph(facts, name="broken", **how), "IPRO_Train")
    prompt = host.queue(broken)
    run = unbroken["run"].replace("unbroken", "broken")
    metrics = host.base / "output" / "ipro" / run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 1:
        time.sleep(0.02)
    assert [going["run"] for going in host.get("/ipro/active")["runs"]] == [run]
    pressed = time.monotonic()
    host.post("/interrupt", {})
    status = host.wait(prompt)["status"]
    waited = time.monotonic() - pressed
    assert status["status_str"] == "error" and "execution_interrupted" in [
        name for name, _ in status["messages"]
    ]
    # An update is three parts of 8 steps and 4 backwards: one step is far less than half of it.
    assert waited < max(record["seconds"] for record in unbroken["records"]) / 2
    told = host.get(f"/ipro/run?name={run}")
    assert told["state"] == "saved" and 1 <= len(told["records"]) < 3
    state = sorted((host.base / "output" / "ipro" / run / "state").glob("step-*"))[-1]
    assert state.stem == f"step-{len(told['records']):08d}"
    (ended,) = host.execute(broken)[train]["ipro_run"]
    assert ended["state"] == "finished" and lines(host, run) == lines(host, unbroken["run"])


def test_a_finished_run_that_the_host_forgot_is_taken_up_and_not_trained_again(host, facts):
    prompt, train = only(tiny_graph(facts, name="kept", batch_size=4), "IPRO_Train")
    (first,) = host.execute(prompt)[train]["ipro_run"]
    written = (host.base / "output" / "ipro" / first["run"] / "metrics.jsonl").stat().st_mtime_ns
    assert forgotten(host, prompt, train)["ipro_run"] == [first]
    assert (host.base / "output" / "ipro" / first["run"] / "metrics.jsonl").stat().st_mtime_ns == written


def test_another_setting_is_another_run_and_more_updates_are_the_same(host, facts):
    runs = []
    for change in ({}, {"updates": 4}, {"learning_rate": 1e-4}):
        prompt, train = only(
            tiny_graph(facts, **{"name": "named", "sample_every": 0, **change}), "IPRO_Train"
        )
        runs += host.execute(prompt)[train]["ipro_run"]
    assert runs[0]["run"] == runs[1]["run"] != runs[2]["run"]
    assert [len(run["records"]) for run in runs] == [3, 4, 3] and runs[1]["records"][:3] == runs[0]["records"]


def resuming(prompt, run, updates):
    """A graph without the objective and the numbers that the run was begun with."""
    graph, train = only(prompt, "IPRO_Train")
    given = {name: graph[train]["inputs"][name] for name in ("video_model", "dataset")}
    graph["resume"] = {
        "class_type": "IPRO_ResumeRun",
        "inputs": {**given, "run": run, "updates": updates, "sample_every": 0},
    }
    return only(graph, "IPRO_ResumeRun")[0]


def test_a_run_goes_on_by_its_own_settings_when_its_graph_is_gone(host, facts):
    how = {"sample_every": 0, "last_rate": 1.0}  # whose rates do not hang on where it is to end
    whole, train = only(tiny_graph(facts, name="at once", **how), "IPRO_Train")
    (at_once,) = host.execute(whole)[train]["ipro_run"]
    part, train = only(tiny_graph(facts, name="in parts", updates=2, **how), "IPRO_Train")
    (begun,) = host.execute(part)[train]["ipro_run"]
    (ended,) = host.execute(resuming(part, begun["run"], 3))["resume"]["ipro_run"]
    assert ended["run"] == begun["run"] and ended["state"] == "finished" and ended["updates"] == 3
    assert lines(host, begun["run"]) == lines(host, at_once["run"])
    other = tiny_graph(facts)
    for node in other.values():
        if node["class_type"] == "IPRO_TinyWorldClips":
            node["inputs"]["count"] = 5
    status = host.wait(host.queue(resuming(other, begun["run"], 4)))["status"]
    (error,) = [told for name, told in status["messages"] if name == "execution_error"]
    assert "other settings" in error["exception_message"] and "clips" in error["exception_message"]


def test_a_run_is_tuned_on_a_sum_of_rewards(host, facts):
    prompt, train = only(tiny_graph(facts, name="sum", updates=1, sample_every=0), "IPRO_Train")
    (goal,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "IPRO_Objective"]
    prompt["face"] = {"class_type": "IPRO_ReferenceReward", "inputs": {"missing": "count"}}
    weights = {"weight_1": 1.0, "weight_2": 0.25, "weight_3": 1.0, "weight_4": 1.0}
    prompt["sum"] = {
        "class_type": "IPRO_CombineRewards",
        "inputs": {"reward_1": goal["reward"], "reward_2": ["face", 0], **weights},
    }
    goal["reward"] = ["sum", 0]
    (run,) = host.execute(prompt)[train]["ipro_run"]
    kept = json.loads((host.base / "output" / "ipro" / run["run"] / "config.json").read_text())["reward"]
    assert kept["name"] == "weighted-sum"
    assert [(part["weight"], part["name"]) for part in kept["parts"]] == [
        (1.0, "face-pool"),
        (0.25, "reference"),
    ]
    assert run["records"][0]["metrics"]["grad_norm"] > 0


def test_the_page_is_told_of_every_update(host, facts):
    from aiohttp import ClientSession

    prompt, train = only(tiny_graph(facts, name="told"), "IPRO_Train")

    async def listen():
        told = []
        async with (
            ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{host.port}/ws?clientId=page") as socket,
        ):
            body = {"prompt": prompt, "client_id": "page"}
            queued = await (await session.post(f"http://127.0.0.1:{host.port}/prompt", json=body)).json()
            async for message in socket:
                if message.type.name != "TEXT":
                    continue
                event = json.loads(message.data)
                told.append(event)
                if event["type"] in ("execution_success", "execution_error"):
                    return queued["prompt_id"], told

    prompt_id, told = asyncio.run(asyncio.wait_for(listen(), 120))
    steps = [event["data"] for event in told if event["type"] == "ipro.step"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["node"] == train and step["prompt_id"] == prompt_id and step["updates"] == 3
        assert step["seconds"] > 0 and {"reward", "kl", "grad_norm", "coverage"} <= set(step["metrics"])
    assert steps[0]["sample"] is None and steps[1]["sample"]["tuned"]["filename"] == "update-000002-tuned.mp4"
    assert steps[-1]["left"] == 0
    states = [event["data"]["state"] for event in told if event["type"] == "ipro.state"]
    assert states == ["preparing", "training", "finished"]


def test_a_clip_without_a_face_gives_an_empty_pool_and_a_warning(host):
    prompt = {
        "blank": {
            "class_type": "EmptyImage",
            "inputs": {"width": 48, "height": 48, "batch_size": 9, "color": 0},
        },
        "faces": {"class_type": "IPRO_LoadFaceModels", "inputs": {"pack": "tiny world (embedded)"}},
        "reward": {"class_type": "IPRO_FacePoolReward", "inputs": {"missing": "count"}},
        "pool": {
            "class_type": "IPRO_BuildFacePool",
            "inputs": {"clip": ["blank", 0], "face_models": ["faces", 0], "choose": "tracked", "min_face": 0}
            | {"keep_first": True},
        },
        "score": {
            "class_type": "IPRO_ScoreVideo",
            "inputs": {"video": ["blank", 0], "face_models": ["faces", 0], "pool": ["pool", 0]}
            | {"reward": ["reward", 0]},
        },
        "similarity": {
            "class_type": "IPRO_FaceSimilarity",
            "inputs": {
                "video": ["blank", 0],
                "reference": ["blank", 0],
                "face_models": ["faces", 0],
                "fps": 8,
                "threshold": 0.5,
            },
        },
    }
    outputs = host.execute(prompt)
    (pool,) = outputs["pool"]["ipro_pool"]
    assert pool["frames"] == [] and pool["seen"] == [0] * 9 and pool["coverage"] == 0
    for node in ("pool", "score", "similarity"):
        (warning,) = outputs[node]["ipro_warning"]
        assert "face" in warning or "pool" in warning


def test_a_graph_gates_on_identity(host):
    clips = {"class_type": "IPRO_TinyWorldClips", "inputs": {"people": "held_out", "count": 4, "seed": 0}}
    faces = {"class_type": "IPRO_LoadFaceModels", "inputs": {"pack": "tiny world (embedded)"}}
    prompt = {"clips": clips, "faces": faces}
    for name, index in (("one", 0), ("other", 1)):
        prompt[name] = {
            "class_type": "IPRO_ShowClip",
            "inputs": {"clips": ["clips", 0], "index": index, "max_frames": 9},
        }
        prompt[f"{name} pool"] = {
            "class_type": "IPRO_BuildFacePool",
            "inputs": {"clip": [name, 0], "face_models": ["faces", 0], "choose": "tracked", "min_face": 0}
            | {"keep_first": True},
        }
        prompt[f"{name} sim"] = {
            "class_type": "IPRO_FaceSimilarity",
            "inputs": {"video": [name, 0], "reference": ["one", 1], "face_models": ["faces", 0], "fps": 8}
            | {"threshold": 0.4, "real": ["one", 0], "stranger": ["other pool", 0]},
        }
    prompt["people"] = {
        "class_type": "IPRO_PeopleKept",
        "inputs": {"video": ["one", 0], "face_models": ["faces", 0], "fps": 8, "threshold": 0.4}
        | {"pool_1": ["one pool", 0], "pool_2": ["other pool", 0]},
    }
    outputs = host.execute(prompt)
    (one,), (other,) = (outputs[f"{name} sim"]["ipro_compare"] for name in ("one", "other"))
    assert one["figures"]["kept"] and not other["figures"]["kept"]
    assert one["figures"]["calibrated"] == pytest.approx(1), "the real clip is its own ceiling"
    assert other["figures"]["calibrated"] < 0.5 and "sha256" in other["figures"]["recognizer"]
    assert len(one["similarity"]) == len(one["videos"]) == 2
    (people,) = outputs["people"]["ipro_compare"]
    assert people["figures"]["worst"] == 0 and not people["figures"]["kept"]
    assert outputs["people"]["ipro_warning"] == ["person 2 is missing."]


def test_a_run_is_tuned_on_the_hosts_own_image_and_conditioning(host, facts):
    prompt = tiny_graph(facts, name="stock")
    names = {node["class_type"]: name for name, node in prompt.items()}
    faces, clip, pool = (names[f"IPRO_{kind}"] for kind in ("LoadFaceModels", "ShowClip", "BuildFacePool"))
    crowded = {"people": "tuning", "count": 4, "seed": 0}  # the last of them shows two people
    prompt["crowded"] = {"class_type": "IPRO_TinyWorldClips", "inputs": crowded}
    prompt[clip]["inputs"] |= {"clips": ["crowded", 0], "index": 3}
    prompt["bystander"] = {
        "class_type": "IPRO_BuildFacePool",
        "inputs": prompt[pool]["inputs"] | {"which": 1},
    }
    prompt["words"] = {"class_type": "TestConditioning", "inputs": {}}
    prompt["stock"] = {
        "class_type": "IPRO_DatasetFromImage",
        "inputs": {"first_frames": [clip, 1], "positive": ["words", 0], "face_models": [faces, 0]}
        | {"pool": [pool, 0], "pool_2": ["bystander", 0]},
    }
    prompt[names["IPRO_Train"]]["inputs"]["dataset"] = ["stock", 0]
    graph, train = only(prompt, "IPRO_Train")
    (run,) = host.execute(graph)[train]["ipro_run"]
    assert run["state"] == "finished" and all(record["metrics"]["grad_norm"] > 0 for record in run["records"])
    # Of two people one has less than the mean: both are scored.
    assert all(record["metrics"]["worst"] < record["metrics"]["reward"] for record in run["records"])


def test_a_strangers_workflow_writes_and_reads_only_where_it_may(host, facts):
    prompt = tiny_graph(facts, name="stranger", sample_every=0)
    prompt, save = only(prompt, "IPRO_SaveLora")
    prompt[save]["inputs"]["file"] = "../../escaped"
    history = host.wait(host.queue(prompt))
    (error,) = [told for name, told in history["status"]["messages"] if name == "execution_error"]
    assert "leads out of loras" in error["exception_message"]
    assert not list(Path(host.base).rglob("escaped*"))
    clips = {"class_type": "IPRO_LoadClips", "inputs": {"source": "../../../etc/"}}
    show = {"class_type": "IPRO_ShowClip", "inputs": {"clips": ["clips", 0], "index": 0, "max_frames": 1}}
    look = {"class_type": "PreviewImage", "inputs": {"images": ["show", 0]}}
    answer = host.post("/prompt", {"prompt": {"clips": clips, "show": show, "look": look}})
    if not answer["node_errors"]:  # older hosts do not look into menus: then the node does
        messages = host.wait(answer["prompt_id"])["status"]["messages"]
        (error,) = [told for name, told in messages if name == "execution_error"]
        assert "leads out of input" in error["exception_message"]
    for name in ("../../input", "no-such-run"):
        with pytest.raises(OSError, match="404"):
            host.get(f"/ipro/run?name={name}")
