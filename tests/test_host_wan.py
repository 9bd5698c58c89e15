"""The workflows for Wan in the real host, with tiny networks under the names that they ask for."""

import pytest
import tiny_wan
from wan_graphs import ANY_CLIP, put_clips, put_networks, small_graph

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", autouse=True)
def clips(host):
    put_clips(host)


@pytest.mark.parametrize(
    ("name", "kind"), [("2_train_a14b", "I2V-A14B"), ("3_train_ti2v_5b", "TI2V-5B")], ids=["A14B", "5B"]
)
def test_wan_is_tuned_and_leaves_a_lora_for_the_host(host, name, kind, tmp_path):
    prompt = small_graph(host, name)
    put_networks(host, prompt, kind, tmp_path)
    outputs = host.execute(prompt)
    (run,) = [output["ipro_run"][0] for output in outputs.values() if "ipro_run" in output]
    assert run["state"] == "finished" and len(run["records"]) == 2 and run["sample"]
    assert all(record["metrics"]["grad_norm"] > 0 for record in run["records"])
    assert (host.base / "models" / "loras" / "ipro" / "identity.safetensors").exists()
    if kind == "I2V-A14B":
        judging = small_graph(host, "5_evaluate", run=run["run"])
        put_networks(host, judging, kind, tmp_path)
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
