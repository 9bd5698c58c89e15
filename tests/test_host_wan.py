"""The workflows for Wan in the real host, with tiny networks under the names that they ask for."""

from pathlib import Path

import pytest
import tiny_wan
from graphs import read, to_api
from host import PACK

pytestmark = pytest.mark.host

SMALL = {"width": 32, "height": 32, "frames": 5, "updates": 2, "batch_size": 1, "rank": 2, "sample_every": 2}
SMALL |= {"boundary_seeds": 2, "max_frames": 12, "seeds": 1, "warmup": 0}
ANY_CLIP = {"least_side": 0, "least_fps": 0, "least_seconds": 0, "least_sharpness": 0, "least_distance": 0}
ANY_CLIP |= {"most_clipped": 0, "most_people": 0}
PLACES = {
    "model": "diffusion_models",
    "high_noise": "diffusion_models",
    "vae": "vae",
    "text_encoder": "text_encoders",
    "lightning": "loras",
    "high_lightning": "loras",
}


def small_graph(host, name, **changed):
    facts = host.get("/object_info")
    prompt = to_api(read(PACK / "workflows" / f"{name}.json"), facts)
    for node in prompt.values():
        inputs = node["inputs"]
        widgets = {knob for knob, value in inputs.items() if not isinstance(value, list)}
        inputs |= {knob: value for knob, value in {**SMALL, **changed}.items() if knob in widgets}
    return prompt


def put_networks(host, prompt, kind, folder: Path):
    """Stand-ins where the loader of the graph looks for its files."""
    files = {flag.replace("-", "_"): file for flag, file in tiny_wan.write_files(folder, kind).items()}
    models = host.base / "models"
    (loader,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "IPRO_LoadWanExpert"]
    for knob, place in PLACES.items():
        if loader[knob] != "none":
            path = models / place / loader[knob]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[knob].read_bytes())
    pack = models / "insightface" / "models" / "antelopev2"
    if not pack.exists():
        pack.parent.mkdir(parents=True, exist_ok=True)
        pack.symlink_to(files["faces"])


@pytest.fixture(scope="module", autouse=True)
def clips(host):
    tiny_wan.write_clips(host.base / "input" / "my_clips")
    tiny_wan.write_clips(host.base / "input" / "other_people", count=1, first=3)


@pytest.mark.parametrize(
    ("name", "kind"), [("2_train_a14b", "I2V-A14B"), ("3_train_ti2v_5b", "TI2V-5B")], ids=["A14B", "5B"]
)
def test_wan_is_tuned_by_its_files_and_leaves_a_lora_for_the_host(host, name, kind, tmp_path):
    prompt = small_graph(host, name)
    put_networks(host, prompt, kind, tmp_path)
    outputs = host.execute(prompt)
    (run,) = [output["ipro_run"][0] for output in outputs.values() if "ipro_run" in output]
    assert run["state"] == "finished" and len(run["records"]) == 2 and run["sample"]
    assert all(record["metrics"]["grad_norm"] > 0 for record in run["records"])
    assert (host.base / "models" / "loras" / "ipro" / "identity.safetensors").exists()
    if kind == "I2V-A14B":
        judging = small_graph(host, "5_evaluate", run=run["run"])
        told = host.execute(judging)
        (compared,) = [output["ipro_compare"][0] for output in told.values() if "ipro_compare" in output]
        assert compared["figures"]["pairs"] == 1 and compared["frames"] == 5
        assert (host.base / "output" / "ipro" / run["run"] / "report.html").exists()


def test_a_persons_clips_become_one_pool_in_a_file(host, tmp_path):
    pack = host.base / "models" / "insightface" / "models" / "antelopev2"
    if not pack.exists():
        pack.parent.mkdir(parents=True, exist_ok=True)
        pack.symlink_to(tiny_wan.write_pack(tmp_path / "pack"))
    graph = small_graph(host, "1_build_face_pools", **ANY_CLIP)
    outputs = host.execute(graph)
    told = [output["ipro_warning"] for output in outputs.values() if output.get("ipro_warning")]
    assert ["Kept 2 of 2 shots; dropped: none. See ipro/curated/my_clips/index.html."] in told
    assert (host.base / "output" / "ipro" / "curated" / "my_clips" / "index.html").exists()
    pools = [output["ipro_pool"][0] for output in outputs.values() if "ipro_pool" in output]
    assert [len(pool["frames"]) for pool in pools] == [12, 12]
    assert (host.base / "output" / "ipro" / "pools" / "person.safetensors").exists()
