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

from graphs import BYPASSED, to_page  # noqa: E402
from host import Host, find_host  # noqa: E402
from workflow_notes import (  # noqa: E402
    BASELINES,
    GENERATING,
    JUDGING,
    PERSON,
    POOLS,
    STOCK,
    TINY_WORLD,
    WAN_TEXT,
)

from ipro_core.paper_tables.plan import BATCH, ROWS, passes_of  # noqa: E402
from ipro_core.sampling.flow import expert_switch  # noqa: E402
from ipro_core.training.presets import PRESETS, Preset  # noqa: E402
from ipro_core.wan_settings import A14B_FRAMING, BOUNDARY, SCORER  # noqa: E402

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A link is ("name of the node", output)."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
    return {"class_type": kind, "inputs": given}


def objective(preset: Preset) -> dict[str, Any]:
    """The node of the preset's method, for the reward of the name `reward`."""
    kind = type(preset.method).__name__.replace("Settings", "Objective").removeprefix("Ipro")
    return node(f"IPRO_{kind}", reward=("reward", 0), **asdict(preset.method))


def train(
    preset: Preset, *, dataset: str = "dataset", goal: str = "objective", **loop: Any
) -> dict[str, Any]:
    """`model`, tuned on a dataset after an objective."""
    sources = {"video_model": ("model", 0), "dataset": (dataset, 0), "objective": (goal, 0)}
    return node("IPRO_Train", **sources, rank=preset.rank, **{**asdict(preset.loop), **loop})


def training(preset: Preset, *, file: str = "ipro/identity", **loop: Any) -> Graph:
    """From `model` and `dataset` to a run and its LoRA."""
    return {
        "reward": node("IPRO_FacePoolReward", **asdict(preset.reward)),  # type: ignore[call-overload]
        "objective": objective(preset),
        "train": train(preset, **loop),
        "lora": node("IPRO_SaveLora", run=("train", 0), file=file),
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


def loader(kind: str, **given: Any) -> dict[str, Any]:
    """A node that loads files; the page then offers those that are missing."""
    files = {
        (FOLDERS[knob], file) for knob, file in given.items() if knob in FOLDERS and isinstance(file, str)
    }
    models = [{"name": file, "url": _url(folder, file), "directory": folder} for folder, file in files]
    models.sort(key=lambda model: model["name"])
    return {**node(kind, **given), "properties": {"models": models}}


def wan(name: str) -> dict[str, Any]:
    """The loader of a 14B expert pair, or of the 5B model, in the size of its preset."""
    framing = asdict(PRESETS[f"local-{name}"].framing)
    return loader("IPRO_LoadWanExpert", text_encoder=UMT5, **FILES[name], **framing)


def template() -> Graph:
    """The official template for I2V-A14B, Lightning laid on, up to where its KSamplers stand."""
    files = FILES["14b"]
    experts: Graph = {}
    for expert, model, lora in (("high", "high_noise", "high_lightning"), ("low", "model", "lightning")):
        lightning = {"lora_name": files[lora], "strength_model": 1.0}
        experts |= {
            expert: {
                **loader("UNETLoader", unet_name=files[model], weight_dtype="default"),
                "title": f"Load Diffusion Model ({expert} noise)",
            },
            f"{expert} lightning": loader("LoraLoaderModelOnly", model=(expert, 0), **lightning),
            f"{expert} shift": node("ModelSamplingSD3", model=(f"{expert} lightning", 0), shift=5.0),
        }
    return {
        **experts,
        "clip": loader("CLIPLoader", clip_name=UMT5, type="wan"),
        "positive": node(
            "CLIPTextEncode", clip=("clip", 0), text="The person turns to the camera and smiles."
        ),
        "vae": loader("VAELoader", vae_name=files["vae"]),
        "image": node("LoadImage", image="person.png"),
    }


def stock_training() -> Graph:
    preset = PRESETS["local-14b"]
    return {
        **template(),
        "model": node(
            "IPRO_UseComfyUIModel",
            model=("low shift", 0),
            high_noise=("high shift", 0),
            vae=("vae", 0),
            clip=("clip", 0),
            **asdict(preset.framing),
        ),
        "clips": node("IPRO_LoadClips", source=CLIPS),
        "faces": node("IPRO_LoadFaceModels", pack=PACK),
        "person": node("IPRO_ShowClip", clips=("clips", 0), max_frames=81),
        "pool": node("IPRO_BuildFacePool", clip=("person", 0), face_models=("faces", 0)),
        "dataset": node(
            "IPRO_DatasetFromImage",
            first_frames=("image", 0),
            positive=("positive", 0),
            pool=("pool", 0),
            face_models=("faces", 0),
        ),
        **training(preset, name="identity-14b", sample_every=10),
    }


def wan_training(name: str) -> Graph:
    return {
        "clips": node("IPRO_LoadClips", source=CLIPS),
        "faces": node("IPRO_LoadFaceModels", pack=PACK),
        "model": wan(name),
        "dataset": node("IPRO_BuildDataset", clips=("clips", 0), face_models=("faces", 0)),
        **training(PRESETS[f"local-{name}"], name=f"identity-{name}", sample_every=10),
    }


def personal_video() -> Graph:
    """One person from a picture, by a text-to-video model."""
    preset = PRESETS["local-14b"].changed(method="personal-video", learning_rate=2e-5)
    files = FILES["t2v"]
    return {
        "pictures": node("LoadImage", image="person.png"),
        "prompts": node("IPRO_PromptList"),
        "faces": node("IPRO_LoadFaceModels", pack=PACK),
        "model": loader("IPRO_LoadWanExpert", text_encoder=UMT5, **files, **asdict(preset.framing)),
        "dataset": node(
            "IPRO_DatasetFromPictures",
            pictures=("pictures", 0),
            prompts=("prompts", 0),
            face_models=("faces", 0),
            scorer=HPS,
        ),
        **training(preset, file="ipro/person", name="person", sample_every=10),
        "sample": node(
            "IPRO_SampleVideo",
            video_model=("model", 0),
            prompt="A person plays the cello on an empty beach.",
            run=("train", 0),
        ),
        "video": node("CreateVideo", images=("sample", 0), fps=("sample", 2)),
        "save": node("SaveVideo", video=("video", 0), filename_prefix="video/ipro"),
    }


def baselines() -> Graph:
    """The methods of Tables 3 and 4 on the tiny world: a column for each, as many passes of the network."""
    rows = [row for row in ROWS if row.name in ("ipro", "sft", "clip", "dpo", "grpo")]
    ipro = rows[0].plan(0)
    passes = IPRO_UPDATES * BATCH * passes_of(ipro.method)
    dataset = {"clips": ("clips", 0), "face_models": ("faces", 0)}
    graph = {
        "clips": node("IPRO_TinyWorldClips", people="tuning", count=200),
        "others": node("IPRO_TinyWorldClips", people="held_out", count=16),
        "faces": node("IPRO_LoadFaceModels"),
        "model": node("IPRO_LoadTinyWorld"),
        "reward": node("IPRO_FacePoolReward", **asdict(ipro.reward)),  # type: ignore[call-overload]
        "dataset": node("IPRO_BuildDataset", **dataset),
        "dataset by CLIP": node("IPRO_BuildDataset", **dataset, face_encoder=SCORER)
        | {"title": "Build Dataset (faces by CLIP)"},
    }
    for column, row in enumerate(rows, start=2):
        plan, name = row.plan(0, passes), row.name.upper()
        judged = node(
            "IPRO_CompareRuns", video_model=("model", 0), run=(f"{name} run", 0), clips=("others", 0)
        )
        judged["inputs"]["face_models"] = ["faces", 0]
        tuned = train(
            plan,
            dataset="dataset by CLIP" if row.by_scorer else "dataset",
            goal=name,
            name=row.name,
            sample_every=plan.loop.updates,
        )
        graph |= {
            name: objective(plan) | {"column": column, "row": 0},
            f"{name} run": tuned | {"column": column, "row": 1, "title": f"Train ({name})"},
            f"{name} against base": judged | {"column": column, "row": 2, "title": f"Compare Runs ({name})"},
        }
    return graph


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


def generating() -> Graph:
    """The official template whole, and the tuned LoRA on its low-noise model."""
    preset, graph = PRESETS["local-14b"].method, template()
    switch = expert_switch(preset.steps, preset.shift, BOUNDARY["I2V-A14B"])
    graph["low shift"]["inputs"]["model"] = ["tuned", 0]
    steps = {"steps": preset.steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    steps |= {"positive": ("start", 0), "negative": ("start", 1)}
    return {
        **graph,
        "stock": node("LoraLoaderModelOnly", model=("low lightning", 0), lora_name=TUNED, strength_model=1.0)
        | {"mode": BYPASSED, "title": "Load LoRA (bf16, fp16)"},
        "tuned": node("IPRO_ApplyLoRA", model=("stock", 0), lora_name=TUNED),
        "negative": node("CLIPTextEncode", clip=("clip", 0), text=""),
        "start": node(
            "WanImageToVideo",
            positive=("positive", 0),
            negative=("negative", 0),
            vae=("vae", 0),
            start_image=("image", 0),
            width=A14B_FRAMING.width,
            height=A14B_FRAMING.height,
            length=A14B_FRAMING.frames,
        ),
        "high steps": node(
            "KSamplerAdvanced",
            model=("high shift", 0),
            latent_image=("start", 2),
            end_at_step=switch,
            return_with_leftover_noise="enable",
            **steps,
        ),
        "low steps": node(
            "KSamplerAdvanced",
            model=("low shift", 0),
            latent_image=("high steps", 0),
            add_noise="disable",
            start_at_step=switch,
            **steps,
        ),
        "frames": node("VAEDecode", samples=("low steps", 0), vae=("vae", 0)),
        "video": node("CreateVideo", images=("frames", 0), fps=A14B_FRAMING.fps),
        "save": node("SaveVideo", video=("video", 0), filename_prefix="video/ipro"),
    }


CLIPS, PACK = "my_clips/", "antelopev2"
UMT5, TUNED = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "ipro/identity.safetensors"
HPS = "HPS_v2.1.safetensors"
IPRO_UPDATES = 30
"""Of the baselines' graph; every other method has as many as take as long on the network."""
FILES = {
    "14b": {
        "model": "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
        "high_noise": "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
        "vae": "wan_2.1_vae.safetensors",
        "lightning": "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors",
        "high_lightning": "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors",
    },
    "5b": {"model": "wan2.2_ti2v_5B_fp16.safetensors", "vae": "wan2.2_vae.safetensors"},
    "t2v": {"model": "wan2.1_t2v_1.3B_fp16.safetensors", "vae": "wan_2.1_vae.safetensors"},
}
FOLDERS = {
    **{"model": "diffusion_models", "high_noise": "diffusion_models", "vae": "vae"},
    **{"text_encoder": "text_encoders", "lightning": "loras", "high_lightning": "loras"},
    **{
        "unet_name": "diffusion_models",
        "vae_name": "vae",
        "clip_name": "text_encoders",
        "lora_name": "loras",
    },
}
WAN_22 = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
WAN_21 = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
URL = {"diffusion_models": WAN_22, "vae": WAN_22, "loras": WAN_22, "text_encoders": WAN_21}


def _url(folder: str, file: str) -> str:
    """Where a file is published."""
    return f"{WAN_21 if file.startswith('wan2.1') else URL[folder]}/{folder}/{file}"


WORKFLOWS: dict[str, tuple[Graph, str]] = {
    "1_build_face_pools": (face_pools(), POOLS),
    "2_train_a14b": (stock_training(), STOCK),
    "3_train_ti2v_5b": (wan_training("5b"), WAN_TEXT),
    "4_generate_with_lora": (generating(), GENERATING),
    "5_evaluate": (evaluation(), JUDGING),
    "6_tiny_world": (tiny_world(), TINY_WORLD),
    "7_personal_video": (personal_video(), PERSON),
    "8_baselines": (baselines(), BASELINES),
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
