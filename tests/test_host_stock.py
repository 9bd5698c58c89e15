"""Between our nodes and the host's own: LoRA and loss out, schedules in, generating with what was tuned."""

import json

import pytest
import tiny_wan
from graphs import BYPASSED, read, to_api
from host import PACK
from safetensors.torch import load_file
from wan_graphs import only, put_clips, put_networks, small_graph
from wan_layouts import tiny_state, write_gguf

pytestmark = pytest.mark.host

SIZE = {"width": 32, "height": 32, "length": 5, "batch_size": 1}


@pytest.fixture(scope="module", autouse=True)
def clips(host):
    put_clips(host)


@pytest.fixture(scope="module")
def facts(host):
    return host.get("/object_info")


def latents(host, outputs, node):
    (file,) = outputs[node]["latents"]
    return load_file(host.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def sampled(name, model, **more):
    """Eight steps of the host's own sampler, kept in a file."""
    steps = {"model": model, "steps": 8, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    steps |= {"positive": ["words", 0], "negative": ["words", 0], "latent_image": ["empty", 0]}
    steps |= {"seed": 3, "denoise": 1.0}
    return {
        f"{name} steps": {"class_type": "KSampler", "inputs": {**steps, **more}},
        name: {
            "class_type": "SaveLatent",
            "inputs": {"samples": [f"{name} steps", 0], "filename_prefix": name},
        },
    }


def empty():
    return {
        "words": {"class_type": "TestConditioning", "inputs": {}},
        "empty": {"class_type": "EmptyHunyuanLatentVideo", "inputs": SIZE},
    }


def test_lora_and_loss_of_a_run_go_into_the_hosts_own_nodes(host, facts, tmp_path):
    prompt = small_graph(host, "3_train_ti2v_5b", name="stock", learning_rate=0.02, sample_every=0)
    put_networks(host, prompt, "TI2V-5B", tmp_path)
    (train,) = [name for name, node in prompt.items() if node["class_type"] == "IPRO_Train"]
    (loader,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "IPRO_LoadWanExpert"]
    unet = {"unet_name": loader["model"], "weight_dtype": "default"}
    carried = {"model": ["unet", 0], "lora": [train, 1], "strength_model": 1.0}
    if "bypass" in facts["LoraModelLoader"]["input"]["required"]:
        carried["bypass"] = False
    prompt |= {
        "unet": {"class_type": "UNETLoader", "inputs": unet},
        "carried": {"class_type": "LoraModelLoader", "inputs": carried},
        "plot": {"class_type": "LossGraphNode", "inputs": {"loss": [train, 2], "filename_prefix": "loss"}},
        **empty(),
        **sampled("base", ["unet", 0]),
        **sampled("by-wire", ["carried", 0]),
    }
    outputs = host.execute(prompt)
    base, by_wire = latents(host, outputs, "base"), latents(host, outputs, "by-wire")
    assert (host.base / "temp" / outputs["plot"]["images"][0]["filename"]).stat().st_size > 1000
    # The file that Save LoRA wrote, by the host's loader, and the run that lies on the disk.
    (run,) = outputs[train]["ipro_run"]
    again = {
        "unet": prompt["unet"],
        "file": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["unet", 0], "lora_name": "ipro/identity.safetensors", "strength_model": 1.0},
        },
        "run": {"class_type": "IPRO_LoadRun", "inputs": {"run": run["run"]}},
        "carried": {"class_type": "LoraModelLoader", "inputs": {**carried, "lora": ["run", 1]}},
        **empty(),
        **sampled("by-file", ["file", 0]),
        **sampled("by-run", ["carried", 0]),
    }
    outputs = host.execute(again)
    effect = (by_wire - base).norm()
    assert effect > 1e-3 * base.norm()
    for name in ("by-file", "by-run"):
        assert (latents(host, outputs, name) - by_wire).norm() <= 1e-5 * base.norm(), name


def test_the_lightning_schedule_is_the_hosts_own_split_at_the_boundary(host, facts, tmp_path):
    folder = host.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    tiny_wan.network(folder / "schedule.safetensors", "T2V-1.3B", seed=5)
    half = {"sampler": ["euler", 0], "cfg": 1.0, "noise_seed": 3, "model": ["unet", 0]}
    half |= {"positive": ["words", 0], "negative": ["words", 0]}
    prompt = {
        "unet": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "schedule.safetensors", "weight_dtype": "default"},
        },
        "shifted": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["unet", 0], "shift": 5.0}},
        "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "schedule": {
            "class_type": "IPRO_LightningSchedule",
            "inputs": {"model": "I2V-A14B", "steps": 8, "shift": 5.0},
        },
        "high": {
            "class_type": "SamplerCustom",
            "inputs": {**half, "add_noise": True, "sigmas": ["schedule", 0], "latent_image": ["empty", 0]},
        },
        "low": {
            "class_type": "SamplerCustom",
            "inputs": {**half, "add_noise": False, "sigmas": ["schedule", 1], "latent_image": ["high", 0]},
        },
        "ours": {"class_type": "SaveLatent", "inputs": {"samples": ["low", 0], "filename_prefix": "ours"}},
        "half way": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["high", 0], "filename_prefix": "half"},
        },
        **empty(),
        **sampled("whole", ["shifted", 0]),
    }
    # Three of eight steps begin above 0.9: what KSamplerAdvanced leaves at step 3 is what we hand over.
    advanced = {
        **{
            name: value
            for name, value in prompt["whole steps"]["inputs"].items()
            if name not in ("seed", "denoise")
        },
        **{"noise_seed": 3, "add_noise": "enable", "start_at_step": 0, "end_at_step": 3},
        "return_with_leftover_noise": "enable",
    }
    prompt["advanced steps"] = {"class_type": "KSamplerAdvanced", "inputs": advanced}
    prompt["advanced"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["advanced steps", 0], "filename_prefix": "advanced"},
    }
    outputs = host.execute(prompt)
    ours, whole = latents(host, outputs, "ours"), latents(host, outputs, "whole")
    half_way, advanced = latents(host, outputs, "half way"), latents(host, outputs, "advanced")
    assert (half_way - advanced).norm() <= 1e-5 * advanced.norm()
    assert (half_way - whole).norm() > 0.1 * whole.norm()
    assert (ours - whole).norm() <= 1e-5 * whole.norm()


def test_a_schedule_that_leaves_the_low_noise_expert_nothing_is_refused(host):
    schedule = {
        "class_type": "IPRO_LightningSchedule",
        "inputs": {"model": "I2V-A14B", "steps": 1, "shift": 5.0},
    }
    euler = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    show = {"class_type": "PreviewAny", "inputs": {"source": ["schedule", 1]}}
    status = host.wait(host.queue({"schedule": schedule, "euler": euler, "show": show}))["status"]
    (error,) = [told for name, told in status["messages"] if name == "execution_error"]
    assert "leave nothing to the low-noise expert" in error["exception_message"]


def test_gguf_files_of_wan_are_tuned_like_any_other(host, tmp_path):
    prompt = small_graph(host, "3_train_ti2v_5b", name="gguf", sample_every=0)
    put_networks(host, prompt, "TI2V-5B", tmp_path)
    write_gguf(tiny_state("TI2V-5B", 1), host.base / "models/diffusion_models/wan2.2.Q8_0.gguf", "Q8_0")
    for node in prompt.values():
        if node["class_type"] == "IPRO_LoadWanExpert":
            node["inputs"]["model"] = "wan2.2.Q8_0.gguf"
    outputs = host.execute(prompt)
    (run,) = [output["ipro_run"][0] for output in outputs.values() if "ipro_run" in output]
    assert run["state"] == "finished" and all(record["metrics"]["grad_norm"] > 0 for record in run["records"])
    config = json.loads((host.base / "output" / "ipro" / run["run"] / "config.json").read_text())
    assert config["files"]["model"].endswith("wan2.2.Q8_0.gguf")


def test_boundary_latents_made_ahead_are_what_training_takes(host, tmp_path):
    graph = small_graph(host, "3_train_ti2v_5b", name="ahead", sample_every=0)
    (pair,) = [node for node in small_graph(host, "5_evaluate").values() if "high_noise" in node["inputs"]]
    (loader,) = [node for node in graph.values() if node["class_type"] == pair["class_type"]]
    loader["inputs"] = pair["inputs"]
    put_networks(host, graph, "I2V-A14B", tmp_path)
    (train,) = [node["inputs"] for node in graph.values() if node["class_type"] == "IPRO_Train"]
    given = {name: train[name] for name in ("video_model", "dataset", "objective")}
    prompt = {
        name: node
        for name, node in graph.items()
        if node["class_type"] not in ("IPRO_Train", "IPRO_SaveLora")
    }
    prompt["ahead"] = {"class_type": "IPRO_BoundaryLatents", "inputs": given}
    prompt["count"] = {"class_type": "PreviewAny", "inputs": {"source": ["ahead", 1]}}
    outputs = host.execute(prompt)
    # Two clips, each with a face, and two noises of each.
    assert outputs["count"]["text"] == ["4"] and "ahead" not in outputs
    made = {
        path: path.stat().st_mtime_ns for path in (host.base / "output/ipro/cache").rglob("*.safetensors")
    }
    train["dataset"] = ["ahead", 0]
    graph["ahead"] = prompt["ahead"]
    host.execute(graph)
    now = {path: path.stat().st_mtime_ns for path in (host.base / "output/ipro/cache").rglob("*.safetensors")}
    assert made and now == made


def test_what_memory_does_not_hold_ends_in_a_sentence_that_names_the_knob(host, facts):
    graph = to_api(read(PACK / "workflows" / "6_tiny_world.json"), facts)
    graph["large"] = {"class_type": "TestTooLarge", "inputs": {}}
    wanted = {
        "IPRO_BuildFacePool": ("clip", 0, "give a shorter or smaller clip"),
        "IPRO_Train": ("video_model", 1, "fewer frames or a smaller size"),
    }
    for kind, (socket, output, advice) in wanted.items():
        _, node = only(graph, kind)
        graph[node]["inputs"][socket] = ["large", output]
        kept, _ = only(graph, kind)
        status = host.wait(host.queue(kept))["status"]
        (error,) = [told for name, told in status["messages"] if name == "execution_error"]
        assert error["node_id"] == node and error["exception_type"].endswith("OutOfMemoryError")
        assert error["exception_message"].startswith("There is not enough memory: ")
        assert advice in error["exception_message"] and "Tried to allocate" in error["exception_message"]
    assert "unloading all loaded models" in host.log.read_text()  # the host must know it for what it is


@pytest.fixture(scope="module")
def generating(host, facts, tmp_path_factory):
    """The shipped graph with tiny networks under the names that it asks for."""
    workflow = read(PACK / "workflows" / "4_generate_with_lora.json")
    chosen = [node["id"] for node in workflow["nodes"] if node["mode"] == BYPASSED]
    chosen += [node["id"] for node in workflow["nodes"] if node["type"] == "IPRO_ApplyLoRA"]
    folder = tmp_path_factory.mktemp("generating")
    put_networks(host, to_api(workflow, facts), "I2V-A14B", folder / "files")
    tuned = tiny_wan.few_step_lora(folder / "tuned.safetensors", "I2V-A14B", seed=9)
    place = host.base / "models" / "loras" / "ipro" / "identity.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(tuned.read_bytes())

    def run(exact=True, stock=False):
        for node in workflow["nodes"]:
            if node["id"] in chosen:
                node["mode"] = 0 if {"IPRO_ApplyLoRA": exact}.get(node["type"], stock) else BYPASSED
        prompt = to_api(workflow, facts)
        (frames,) = [name for name, node in prompt.items() if node["class_type"] == "VAEDecode"]
        for node in prompt.values():
            if node["class_type"] == "WanImageToVideo":
                node["inputs"] |= SIZE
        prompt["kept"] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": prompt[frames]["inputs"]["samples"], "filename_prefix": "kept"},
        }
        outputs = host.execute(prompt)
        (video,) = [output["images"][0] for output in outputs.values() if "animated" in output]
        return latents(host, outputs, "kept"), host.base / "output" / video["subfolder"] / video["filename"]

    return run


def test_the_hosts_own_graph_generates_with_the_tuned_lora_by_either_loader(generating):
    from ipro_core.clips.video import probe

    base, _ = generating(exact=False)
    exact, video = generating()
    stock, _ = generating(exact=False, stock=True)
    assert probe(video).fps == 16 and video.stat().st_size > 500
    assert (exact - base).norm() > 0.01 * base.norm()
    assert (exact - stock).norm() <= 1e-5 * base.norm()  # of floats both are right
