"""Curate Clips in the real host: what it keeps is tuned on shot by shot, what it drops is told."""

import json

import pytest
import tiny_clips
from graphs import widgets

pytestmark = pytest.mark.host

LIMITS = {"looks": 8.0, "least_side": 90, "least_fps": 8.0, "least_seconds": 2.0, "largest_face": 0.0}
LIMITS |= {"smallest_face": 8.0, "least_sharpness": 0.1, "same_person": 0.8, "evaluation_share": 0.3}
SMALL = {"updates": 1, "batch_size": 2, "microbatch": 2, "sample_every": 0, "name": "curated"}


@pytest.fixture(scope="module")
def graph(host):
    """From films in the input folder to one update of the tiny world's model on what is kept of them."""
    tiny_clips.write_clips(host.base / "input" / "films")
    facts = host.get("/object_info")

    def node(kind, **inputs):
        filled = {name: options.get("default") for name, options in widgets(facts[f"IPRO_{kind}"])}
        return {"class_type": f"IPRO_{kind}", "inputs": filled | inputs}

    return {
        "clips": node("LoadClips", source="films/"),
        "faces": node("LoadFaceModels"),
        "curated": node("CurateClips", clips=["clips", 0], face_models=["faces", 0], **LIMITS),
        "model": node("LoadTinyWorld"),
        "dataset": node("BuildDataset", clips=["curated", 0], face_models=["faces", 0]),
        "reward": node("FacePoolReward"),
        "objective": node("Objective", reward=["reward", 0]),
        "train": node(
            "Train", video_model=["model", 0], dataset=["dataset", 0], objective=["objective", 0], **SMALL
        ),
    }


def with_limits(graph, **limits):
    curated = graph["curated"]
    return {**graph, "curated": {**curated, "inputs": {**curated["inputs"], **limits}}}


def test_what_is_kept_of_films_is_tuned_on_shot_by_shot(host, graph):
    outputs = host.execute(graph)
    (told,) = outputs["curated"]["ipro_warning"]
    assert told.startswith("Kept 6 of 8 shots; dropped: resolution 1, coverage 1.")
    (run,) = outputs["train"]["ipro_run"]
    assert run["state"] == "finished" and run["records"][0]["metrics"]["grad_norm"] > 0
    config = json.loads((host.base / "output" / "ipro" / run["run"] / "config.json").read_text())
    manifest = host.base / "output" / "ipro" / "curated" / "clips" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    wanted = [row for row in rows if row["split"] == "tuning"]
    assert len(config["clips"]) == len(wanted) > 0
    for clip, row in zip(config["clips"], wanted, strict=True):
        stretch = f"#t={row['start']:.3f},{row['end']:.3f}" if row["shots"] > 1 else ""
        assert clip == row["video"] + stretch


def test_where_nothing_is_kept_the_reasons_are_the_sentence_and_the_page_is_there(host, graph):
    history = host.wait(host.queue(with_limits(graph, name="none", least_side=2000)))
    (error,) = [told for name, told in history["status"]["messages"] if name == "execution_error"]
    assert (
        "Of 8 shots none is kept to tune on (resolution 8): see ipro/curated/none/index.html"
        in (error["exception_message"])
    )
    assert (host.base / "output" / "ipro" / "curated" / "none" / "index.html").exists()


def test_no_address_and_no_key_is_a_widget(host):
    inputs = host.get("/object_info")["IPRO_CurateClips"]["input"]
    names = {*inputs.get("required", {}), *inputs.get("optional", {})}
    assert "vision_model" in names and not any("key" in name or "endpoint" in name for name in names)
