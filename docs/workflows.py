"""Writes workflows/*.json: each graph told in a few lines, settings from the core's presets.

    python docs/workflows.py          with a ComfyUI checkout at hand, see tests/host.py

Run it after a node has got another widget; the tests then queue what it wrote.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from graphs import to_page  # noqa: E402
from host import Host, find_host  # noqa: E402

from ipro_core.training.presets import PRESETS, Preset  # noqa: E402

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A link is ("name of the node", output)."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": kind, "inputs": given}


def training(preset: Preset, **loop: Any) -> Graph:
    """From `model` and `dataset` to a run and its LoRA."""
    return {
        "reward": node("IPRO_FacePoolReward", **asdict(preset.reward)),  # type: ignore[call-overload]
        "objective": node("IPRO_Objective", reward=("reward", 0), **asdict(preset.ipro)),
        "train": node(
            "IPRO_Train",
            video_model=("model", 0),
            dataset=("dataset", 0),
            objective=("objective", 0),
            rank=preset.rank,
            **{**asdict(preset.loop), **loop},
        ),
        "lora": node("IPRO_SaveLora", run=("train", 0)),
    }


def tiny_world() -> Graph:
    return {
        "clips": node("IPRO_TinyWorldClips", people="tuning", count=200),
        "others": node("IPRO_TinyWorldClips", people="held_out", count=16),
        "faces": node("IPRO_LoadFaceModels"),
        "model": node("IPRO_LoadTinyWorld"),
        "dataset": node("IPRO_BuildDataset", clips=("clips", 0), face_models=("faces", 0)),
        **training(PRESETS["tiny"], updates=60, checkpoint_every=10, name="tiny-world", sample_every=10),
        "clip": node("IPRO_ShowClip", clips=("others", 0), index=2),
        "pool": node("IPRO_BuildFacePool", clip=("clip", 0), face_models=("faces", 0), min_face=0.0),
        "video": node(
            "IPRO_SampleVideo",
            video_model=("model", 0),
            first_frame=("clip", 1),
            prompt=("clip", 2),
            run=("train", 0),
        ),
        "similarity": node(
            "IPRO_FaceSimilarity",
            video=("video", 0),
            reference=("clip", 1),
            face_models=("faces", 0),
            fps=8.0,
            other=("video", 1),
        ),
        "score": node(
            "IPRO_ScoreVideo",
            video=("video", 0),
            face_models=("faces", 0),
            pool=("pool", 0),
            reward=("reward", 0),
        ),
        "compare": node(
            "IPRO_CompareRuns",
            video_model=("model", 0),
            run=("train", 0),
            clips=("others", 0),
            face_models=("faces", 0),
        ),
        "report": node("IPRO_Report", comparison=("compare", 0)),
    }


TINY_WORLD = """## The tiny world

The whole pipeline on a CPU, in minutes, with what the pack brings: people of an embedded world, its face
networks, its video model. Queue it: **Train** tunes a LoRA on 200 scenes and shows reward, KL and videos.

Cancel whenever you like: queueing again goes on. Then people who were never tuned on are judged, base against
tuned from the same noise, and a report is written to output/ipro."""

WORKFLOWS = {"6_tiny_world": (tiny_world, TINY_WORLD)}


def main() -> None:
    checkout = find_host()
    assert checkout, "a ComfyUI checkout is wanted: set COMFYUI_DIR"
    with tempfile.TemporaryDirectory() as base, Host(checkout, Path(base)) as host:
        facts = host.get("/object_info")
    for name, (graph, text) in WORKFLOWS.items():
        page = to_page(graph(), facts, {"text": text})
        (ROOT / "workflows" / f"{name}.json").write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
