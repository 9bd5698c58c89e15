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


def face_pools() -> Graph:
    return {
        "clips": node("IPRO_LoadClips", source=CLIPS),
        "faces": node("IPRO_LoadFaceModels", pack=PACK),
        "curated": node(
            "IPRO_CurateClips",
            clips=("clips", 0),
            face_models=("faces", 0),
            name="my_clips",
            largest_face=0.0,
        ),
        "one": node("IPRO_ShowClip", clips=("curated", 0), index=0, max_frames=81),
        "two": node("IPRO_ShowClip", clips=("curated", 0), index=1, max_frames=81),
        "pool one": node("IPRO_BuildFacePool", clip=("one", 0), face_models=("faces", 0)),
        "pool two": node(
            "IPRO_BuildFacePool", clip=("two", 0), face_models=("faces", 0), person=("pool one", 0)
        ),
        "pool": node("IPRO_MergeFacePools", pool_1=("pool one", 0), pool_2=("pool two", 0)),
        "save": node("IPRO_SaveFacePool", pool=("pool", 0)),
        "sheet": node("IPRO_ShowFaces", clip=("one", 0), pool=("pool one", 0)),
        "look": node("PreviewImage", images=("sheet", 0)),
    }


def wan(name: str) -> dict[str, Any]:
    """The loader of a 14B expert pair, or of the 5B model, in the size of its preset."""
    framing = asdict(PRESETS[f"local-{name}"].framing)
    loader = node("IPRO_LoadWanExpert", text_encoder=UMT5, **FILES[name], **framing)
    models = [
        {"name": file, "url": f"{URL[kind]}/{kind}/{file}", "directory": kind}
        for kind, file in {
            (FOLDERS[knob], file) for knob, file in loader["inputs"].items() if knob in FOLDERS
        }
    ]
    return {**loader, "properties": {"models": sorted(models, key=lambda model: model["name"])}}


def wan_training(name: str) -> Graph:
    return {
        "clips": node("IPRO_LoadClips", source=CLIPS),
        "faces": node("IPRO_LoadFaceModels", pack=PACK),
        "model": wan(name),
        "dataset": node("IPRO_BuildDataset", clips=("clips", 0), face_models=("faces", 0)),
        **training(PRESETS[f"local-{name}"], name=f"identity-{name}", sample_every=10),
    }


def evaluation() -> Graph:
    return {
        "clips": node("IPRO_LoadClips", source="other_people/"),
        "faces": node("IPRO_LoadFaceModels", pack=PACK),
        "model": wan("14b"),
        "run": node("IPRO_LoadRun", run="identity-14b"),
        "compare": node(
            "IPRO_CompareRuns",
            video_model=("model", 0),
            run=("run", 0),
            clips=("clips", 0),
            face_models=("faces", 0),
        ),
        "report": node("IPRO_Report", comparison=("compare", 0)),
    }


CLIPS, PACK = "my_clips/", "antelopev2"
UMT5 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
FILES = {
    "14b": {
        "model": "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
        "high_noise": "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
        "vae": "wan_2.1_vae.safetensors",
        "lightning": "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors",
        "high_lightning": "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors",
    },
    "5b": {"model": "wan2.2_ti2v_5B_fp16.safetensors", "vae": "wan2.2_vae.safetensors"},
}
FOLDERS = {
    **{"model": "diffusion_models", "high_noise": "diffusion_models", "vae": "vae"},
    **{"text_encoder": "text_encoders", "lightning": "loras", "high_lightning": "loras"},
}
WAN_22 = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
WAN_21 = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
URL = {"diffusion_models": WAN_22, "vae": WAN_22, "loras": WAN_22, "text_encoders": WAN_21}

POOLS = """## Build face pools

Put clips of one person into input/my_clips, and an InsightFace pack into
models/insightface/models/antelopev2.

**Curate Clips** cuts them into shots and keeps those that show one person well; why a shot is dropped is on
the page output/ipro/curated/my_clips/index.html. largest_face 0 allows any size: the paper's limit is 100.

A pool is all faces of a clip. Look at **self_similarity**: 0.8 and more is one person, 0.2 to 0.35 are
several people mixed. The second clip is followed by the first one's person; both pools are merged and
kept in output/ipro/pools."""
WAN_TEXT = """## Tune {model}

Put clips into input/my_clips, clip.txt with its prompt beside clip.mp4, and a face pack into
models/insightface/models/antelopev2.

Each of the networks is opened in its turn: prompts, first frames, faces{boundary}, then tuning. What is
made of clips once is kept in output/ipro/cache. Cancel whenever you like: queueing again goes on.

Save LoRA writes to models/loras; press R to see it in the host's loaders{where}."""
TINY_WORLD = """## The tiny world

The whole pipeline on a CPU, in minutes, with what the pack brings: people of an embedded world, its
face networks, its video model. Queue it: **Train** tunes a LoRA on 200 scenes and shows reward, KL and
videos.

Cancel whenever you like: queueing again goes on. Then people who were never tuned on are judged, base
against tuned from the same noise, and a report is written to output/ipro."""
JUDGING = """## Base against tuned

Clips of **other** people in input/other_people, each with a face in its first frame: who is judged on
what was tuned on measures memory. 32 clips with 3 seeds are a fair test.

Choose your run and, in the loader, a second face pack as the judge."""

BOUNDARY = ", what the high-noise expert makes of each clip"
WORKFLOWS: dict[str, tuple[Graph, str]] = {
    "1_build_face_pools": (face_pools(), POOLS),
    "2_train_a14b": (
        wan_training("14b"),
        WAN_TEXT.format(model="Wan 2.2 I2V-A14B", boundary=BOUNDARY, where=" for the low-noise model"),
    ),
    "3_train_ti2v_5b": (wan_training("5b"), WAN_TEXT.format(model="Wan 2.2 TI2V-5B", boundary="", where="")),
    "5_evaluate": (evaluation(), JUDGING),
    "6_tiny_world": (tiny_world(), TINY_WORLD),
}


def main() -> None:
    checkout = find_host()
    assert checkout, "a ComfyUI checkout is wanted: set COMFYUI_DIR"
    with tempfile.TemporaryDirectory() as base, Host(checkout, Path(base)) as host:
        facts = host.get("/object_info")
    for name, (graph, text) in WORKFLOWS.items():
        page = to_page(graph, facts, {"text": text})
        (ROOT / "workflows" / f"{name}.json").write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
