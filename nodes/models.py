"""Models: which video model is tuned, by the files that ComfyUI users have (Section 5.1)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..ipro_core.types import Framing
from ..ipro_core.wan_settings import EMBEDDED, SIZES, DeviceSettings, WanFiles
from . import _comfy
from ._sockets import MODEL, Text, TinyWorldModel, WanModel
from ._widgets import settings_of, widgets

CATEGORY = "4 Models"
FOLDERS = {
    "model": "diffusion_models",
    "high_noise": "diffusion_models",
    "vae": "vae",
    "text_encoder": "text_encoders",
    "lightning": "loras",
    "high_lightning": "loras",
    "draft": "vae_approx",
}
OPTIONAL = ("high_noise", "text_encoder", "lightning", "high_lightning", "draft")
"""A text encoder is not wanted where the host has encoded the prompt: see Dataset from Image."""


class LoadTinyWorld(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "LoadTinyWorld",
            "Load Tiny World Model",
            CATEGORY,
            "The embedded video model, of Wan's architecture and with the tiny world's people: the whole "
            "pipeline on a CPU, in minutes, without a download.",
            inputs=[],
            outputs=[MODEL.Output(display_name="video_model", tooltip="Not open yet.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(TinyWorldModel())


class LoadWanExpert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        helps = {declared.name: declared.metadata["help"] for declared in fields(WanFiles)}
        menus = [
            io.Combo.Input(
                name,
                options=[*([_comfy.NONE] if name in OPTIONAL else []), *_comfy.model_files(folder, ".gguf")],
                tooltip=f"{helps[name]} In models/{folder}.",
            )
            for name, folder in FOLDERS.items()
        ]
        return _comfy.schema(
            "LoadWanExpert",
            "Load Wan Expert",
            CATEGORY,
            "Wan 2.2 by its files, read by their headers and opened only when they are needed, one at a "
            "time: I2V-A14B's two experts (bf16, fp16, fp8, int8, GGUF), or TI2V-5B without a high-noise "
            "one.",
            inputs=[*menus, *_judge(), *widgets(Framing), *widgets(DeviceSettings, plain=("",))],
            outputs=[MODEL.Output(display_name="video_model", tooltip="Not open yet.")],
        )

    @classmethod
    @_comfy.working("choose other files.")
    def execute(cls, judge: str, **given: Any) -> io.NodeOutput:
        files = {name: _comfy.model_file(folder, given[name]) for name, folder in FOLDERS.items()}
        files |= {"judge": _judge_file(judge), "cache": _cache()}
        wan = WanModel(WanFiles(**files), settings_of(Framing, given), settings_of(DeviceSettings, given))
        # Files that do not go together are told here; only headers are read.
        wan.open_studio(None, text=None if files["text_encoder"] else _no_text())
        return io.NodeOutput(wan)


class UseComfyUIModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        helps = {declared.name: declared.metadata["help"] for declared in fields(WanFiles)}
        drafts = [_comfy.NONE, *_comfy.model_files(FOLDERS["draft"])]
        return _comfy.schema(
            "UseComfyUIModel",
            "Use ComfyUI Model",
            CATEGORY,
            "Tune what the graph has loaded, as the official Wan 2.2 template wires it to its samplers: of "
            "any type, with all that lies on it (Lightning, …). The MODEL itself is not changed.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="What is tuned: I2V-A14B's low-noise expert, TI2V-5B or text-to-video."
                ),
                io.Vae.Input("vae", tooltip="wan_2.1_vae for A14B, wan2.2_vae for TI2V-5B."),
                io.Model.Input(
                    "high_noise",
                    optional=True,
                    tooltip="I2V-A14B's high-noise expert: it samples the first steps and stays as it is.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="umt5_xxl, for clips' prompts and Sample Video; Dataset from Image has its own.",
                ),
                io.Combo.Input("draft", options=drafts, tooltip=f"{helps['draft']} In models/vae_approx."),
                *_judge(),
                *widgets(Framing),
            ],
            outputs=[MODEL.Output(display_name="video_model", tooltip="For Train and Sample Video.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @_comfy.working("close other programs that use the GPU.")
    def execute(
        cls,
        model: Any,
        vae: Any,
        draft: str,
        judge: str,
        high_noise: Any = None,
        clip: Any = None,
        **given: Any,
    ) -> io.NodeOutput:
        from ._host_studio import HostModelChoice

        names = {
            socket: _comfy.file_above(cls.hidden.prompt, cls.hidden.unique_id, socket)
            for socket in ("model", "high_noise")
        }
        others = WanFiles(
            **names,
            draft=_comfy.model_file(FOLDERS["draft"], draft),
            judge=_judge_file(judge),
            cache=_cache(),
        )
        chosen = HostModelChoice(model, vae, clip, high_noise, settings_of(Framing, given), others)
        chosen.open_studio(None, text=None if clip else _no_text())  # what does not go together is told here
        return io.NodeOutput(chosen)


class CheckSetup(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "CheckSetup",
            "Check Setup",
            CATEGORY,
            "What a job needs: where each file lies, known by its content and not its name, or where to get "
            "it and under which licence; this machine's memory, and the plan that fits it. Nothing is "
            "downloaded.",
            inputs=[
                io.Combo.Input("job", options=[EMBEDDED, *SIZES], tooltip="What is to be tuned."),
                *widgets(Framing, plain=("",), without=("fps",)),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The same as the node shows."),
                io.Boolean.Output(
                    display_name="ready", tooltip="Whether nothing that the job needs is missing."
                ),
            ],
            is_output_node=True,
            not_idempotent=True,  # files come and go
        )

    @classmethod
    @_comfy.working("free some memory.")
    def execute(cls, job: str, **given: Any) -> io.NodeOutput:
        from ..ipro_core.doctor import FOLDERS as LOOKED_INTO
        from ..ipro_core.doctor import diagnose

        framing = settings_of(Framing, given).filled(SIZES.get(job, Framing(1, 1, 1)))
        found = diagnose(job, {name: _comfy.model_folders(name) for name in LOOKED_INTO}, framing)
        return io.NodeOutput(found.text(), found.ready, ui={"text": (found.text(),)})


def _no_text() -> Text:
    from ..ipro_core.studio import Network

    return Network(lambda: "", lambda: lambda _: torch.zeros(0, 4096))


def _judge() -> list[Any]:
    packs = _comfy.face_packs()
    help = next(declared.metadata["help"] for declared in fields(WanFiles) if declared.name == "judge")
    return [io.Combo.Input("judge", options=[_comfy.NONE, *packs], tooltip=help)]


def _judge_file(name: str) -> str:
    from ..ipro_core.faces.packs import find_pack

    return "" if name == _comfy.NONE else str(find_pack(Path(name).name, _comfy.face_roots()))


def _cache() -> str:
    return str(_comfy.output_folder() / "ipro" / "cache")


NODES = [CheckSetup, LoadTinyWorld, LoadWanExpert, UseComfyUIModel]
