"""The graph's own MODEL, VAE and CLIP tuned in the real host: the official template with Train in it."""

import json
import time

import pytest
from safetensors import safe_open
from wan_graphs import forgotten, only, put_clips, put_networks, small_graph, the

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", autouse=True)
def clips(host):
    put_clips(host)


def add(prompt, name, kind, /, **inputs):
    prompt[name] = {"class_type": kind, "inputs": inputs}
    return name


def from_sockets(prompt):
    """A graph of Load Wan Expert's, with the host's own loaders in its place."""
    expert = the(prompt, "IPRO_LoadWanExpert")
    files = prompt[expert]["inputs"]
    add(prompt, "unet", "UNETLoader", unet_name=files["model"], weight_dtype="default")
    add(prompt, "vae", "VAELoader", vae_name=files["vae"])
    add(prompt, "clip", "CLIPLoader", clip_name=files["text_encoder"], type="wan")
    add(
        prompt, expert, "IPRO_UseComfyUIModel", model=["unet", 0], vae=["vae", 0], clip=["clip", 0],
        draft="none", judge="none", **{knob: files[knob] for knob in ("width", "height", "frames", "fps")},
    )  # fmt: skip


def failure(host, prompt):
    history = host.wait(host.queue(prompt))
    (error,) = [told for name, told in history["status"]["messages"] if name == "execution_error"]
    return error["exception_message"]


def run_of(host, prompt):
    (run,) = [output["ipro_run"][0] for output in host.execute(prompt).values() if "ipro_run" in output]
    return run, host.base / "output" / "ipro" / run["run"]


@pytest.mark.parametrize("layout", ["fp32", "scaled_fp8"])
def test_the_official_template_is_tuned_and_its_lora_goes_back_into_stock_loaders(host, layout, tmp_path):
    prompt = small_graph(host, "2_train_a14b", name=layout, file=f"ipro/{layout}", learning_rate=0.002)
    put_networks(host, prompt, "I2V-A14B", tmp_path, layout)
    run, folder = run_of(host, prompt)
    assert run["state"] == "finished" and run["sample"]
    assert all(record["metrics"]["grad_norm"] > 0 for record in run["records"])
    # Whom it is of: the low-noise file by name, the MODEL by content.
    config = json.loads((folder / "config.json").read_text())
    with safe_open(host.base / "models" / "loras" / "ipro" / f"{layout}.safetensors", "pt") as file:
        noted = file.metadata()
    assert noted["ipro.base"] == "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"
    assert noted["ipro.base_sha256"] == config["sha256"]["model"] != config["sha256"]["high_noise"]
    # The same graph again, which the host has forgotten: nothing is trained.
    written = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert forgotten(host, *only(prompt, "IPRO_Train"))["ipro_run"] == [run]
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == written
    # Twenty layers of two blocks, taken by the stock loader and by ours.
    low = prompt[the(prompt, "IPRO_UseComfyUIModel")]["inputs"]["model"]
    size = {"width": 32, "height": 32, "length": 5, "batch_size": 1}
    words = [the(prompt, "CLIPTextEncode"), 0]
    add(
        prompt, "i2v", "WanImageToVideo", positive=words, negative=words, vae=[the(prompt, "VAELoader"), 0],
        start_image=[the(prompt, "LoadImage"), 0], **size,
    )  # fmt: skip
    lora = {"lora_name": f"ipro/{layout}.safetensors"}
    told = {"positive": ["i2v", 0], "latent": ["i2v", 2]}
    add(prompt, "trip", "IPRO_RoundTripCheck", model=low, **lora, **told)
    add(prompt, "laid on", "LoraLoaderModelOnly", model=low, strength_model=1.0, **lora)
    add(
        prompt, "sample", "KSampler", model=["laid on", 0], seed=1, steps=2, cfg=1.0, sampler_name="euler",
        scheduler="simple", positive=["i2v", 0], negative=["i2v", 1], latent_image=["i2v", 2], denoise=1.0,
    )  # fmt: skip
    add(prompt, "decode", "VAEDecode", samples=["sample", 0], vae=[the(prompt, "VAELoader"), 0])
    add(prompt, "look", "PreviewImage", images=["decode", 0])
    outputs = host.execute({**only(prompt, "IPRO_RoundTripCheck")[0], **only(prompt, "PreviewImage")[0]})
    (report,) = outputs["trip"]["text"]
    print(layout, report)
    assert report.startswith("20 of 20 layers matched.") and len(outputs["look"]["images"]) == 5


def test_a_model_of_the_graph_learns_as_the_same_file_does(host, tmp_path):
    """TI2V-5B in float32, on an image and a CONDITIONING: first the file, then the host's MODEL."""
    records = []
    for sockets in (False, True):
        prompt = small_graph(host, "3_train_ti2v_5b", name="file", learning_rate=1e-3)
        put_networks(host, prompt, "TI2V-5B", tmp_path)
        if sockets:
            from_sockets(prompt)
        else:
            add(prompt, "clip", "CLIPLoader", type="wan", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors")
        faces = [the(prompt, "IPRO_LoadFaceModels"), 0]
        add(prompt, "image", "LoadImage", image="person.png")
        add(prompt, "words", "CLIPTextEncode", clip=["clip", 0], text="a person smiles")
        add(
            prompt, "pool", "IPRO_BuildFacePool", clip=["image", 0], face_models=faces, choose="tracked",
            min_face=0.0, keep_first=True,
        )  # fmt: skip
        add(
            prompt, "stock", "IPRO_DatasetFromImage", first_frames=["image", 0], positive=["words", 0],
            pool=["pool", 0], face_models=faces,
        )  # fmt: skip
        prompt[the(prompt, "IPRO_Train")]["inputs"]["dataset"] = ["stock", 0]
        records.append(run_of(host, only(prompt, "IPRO_Train")[0])[0]["records"])
    for update, near in ((0, 1e-5), (1, 1e-3)):  # Adam divides the first gradient's rounding by its size
        for name in ("reward", "grad_norm", "drift", "kl"):
            file, model = (record[update]["metrics"][name] for record in records)
            print(update, name, file, model)
            assert model == pytest.approx(file, rel=near, abs=0)


def test_a_tuned_model_of_the_graph_is_sampled_and_judged(host, tmp_path):
    prompt = small_graph(host, "3_train_ti2v_5b", name="sockets")
    put_networks(host, prompt, "TI2V-5B", tmp_path)
    from_sockets(prompt)
    model, train = the(prompt, "IPRO_UseComfyUIModel"), the(prompt, "IPRO_Train")
    add(prompt, "image", "LoadImage", image="person.png")
    add(
        prompt, "video", "IPRO_SampleVideo", video_model=[model, 0], first_frame=["image", 0], run=[train, 0],
        prompt="a person smiles", seed=0,
    )  # fmt: skip
    add(prompt, "look", "PreviewImage", images=["video", 0])
    add(prompt, "others", "IPRO_LoadClips", source="other_people/")
    add(
        prompt, "compare", "IPRO_CompareRuns", video_model=[model, 0], run=[train, 0], clips=["others", 0],
        face_models=[the(prompt, "IPRO_LoadFaceModels"), 0], seeds=1,
    )  # fmt: skip
    outputs = host.execute(prompt)
    assert len(outputs["look"]["images"]) == 5
    assert outputs["compare"]["ipro_compare"][0]["figures"]["pairs"] == 1


def test_a_cancelled_run_on_the_graphs_model_goes_on_as_if_it_had_not_been(host, tmp_path):
    how = {"batch_size": 4, "updates": 2, "sample_every": 0, "checkpoint_every": 10}
    runs = {}
    for name in ("unbroken", "broken"):
        prompt = small_graph(host, "2_train_a14b", name=name, **how)
        put_networks(host, prompt, "I2V-A14B", tmp_path)
        prompt, _ = only(prompt, "IPRO_Train")
        if name == "unbroken":
            runs[name], folder = run_of(host, prompt)
            continue
        metrics = folder.with_name(folder.name.replace("unbroken", "broken")) / "metrics.jsonl"
        queued = host.queue(prompt)
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 1:
            time.sleep(0.02)
        pressed = time.monotonic()
        host.post("/interrupt", {})
        status, waited = host.wait(queued)["status"], time.monotonic() - pressed
        assert "execution_interrupted" in [name for name, _ in status["messages"]]
        # An update is four videos of 5 steps and 4 backwards: a step is far less than half of it.
        assert waited < max(record["seconds"] for record in runs["unbroken"]["records"]) / 2
        assert host.get(f"/ipro/run?name={metrics.parent.name}")["state"] == "saved"
        runs[name], _ = run_of(host, prompt)
    assert metrics.read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_what_does_not_go_together_or_cannot_be_tuned_is_told_in_a_sentence(host, tmp_path):
    def graph():
        prompt = small_graph(host, "2_train_a14b", name="refused")
        return prompt, prompt[the(prompt, "IPRO_UseComfyUIModel")]["inputs"]

    prompt, sockets = graph()
    put_networks(host, prompt, "I2V-A14B", tmp_path)
    low, high = sockets["model"], sockets.pop("high_noise")
    assert "connect the other to high_noise" in failure(host, prompt)
    prompt, sockets = graph()
    sockets["high_noise"] = low
    assert "is connected twice" in failure(host, prompt)
    prompt, sockets = graph()
    sockets["model"], sockets["high_noise"] = high, low
    assert "is the high-noise expert, which is never tuned" in failure(host, prompt)
    prompt, sockets = graph()
    sockets["width"] = 40
    assert "sides that 16 divides" in failure(host, prompt)
    prompt, sockets = graph()
    add(prompt, "compiled", "TorchCompileModel", model=low, backend="inductor")
    sockets["model"] = ["compiled", 0]
    told = failure(host, prompt)
    assert "torch.compile is laid on it" in told and "IPRO · Load Wan Expert" in told
