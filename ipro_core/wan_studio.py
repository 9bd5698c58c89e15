"""Wan as its users have it: the files of a job, held against each other by their headers, then a `Studio`.

Nothing large is read here. What does not fit together is told in one sentence before anything is loaded.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .cache import TensorCache
from .clips.scenes import clip_scenes
from .faces.packs import face_model_names, load_face_models, load_recognizer
from .files import sha256
from .models.lora import check_lora, import_lora
from .models.memory import Placement
from .models.text import load_text_encoder, open_text_encoder
from .models.vae import load_vae
from .models.vae_files import vae_channels
from .models.wan import WanVideoModel, load_video_model
from .models.wan_files import WanFile, open_wan_file
from .studio import Network, Studio
from .types import Framing, knob

logger = logging.getLogger("ipro")

A14B_FRAMING, TI2V_5B_FRAMING = Framing(832, 480, 81, 16.0), Framing(1280, 704, 121, 24.0)
"""What they were trained on."""
BOUNDARY = {"I2V-A14B": 0.9, "T2V-14B": 0.875}
"""Where the low-noise expert takes over, of the kinds with two experts."""


@dataclass(frozen=True)
class WanFiles:
    """The files of one job, as ComfyUI users have them."""

    model: str = knob("", "The Wan network to tune: I2V-A14B's low-noise expert, or TI2V-5B.")
    high_noise: str = knob("", "I2V-A14B's high-noise expert: it samples the first steps and stays as it is.")
    vae: str = knob("", "wan_2.1_vae for A14B, wan2.2_vae for TI2V-5B.")
    text_encoder: str = knob("", "umt5_xxl, fp8 or fp16.")
    lightning: str = knob("", "The model's own few-step LoRA, laid beneath the one that is tuned.")
    high_lightning: str = knob("", "The high-noise expert's few-step LoRA.")
    judge: str = knob("", "A second face pack or recogniser, which measures and is never a reward.")
    cache: str = knob("runs/cache", "A folder for what is made of clips once; any number of runs share it.")


@dataclass(frozen=True)
class DeviceSettings:
    """Where the work is done; changes no result but for rounding."""

    device: str = knob("", "cuda, cuda:1, cpu, …; by default the first GPU, if there is one.")
    resident_blocks: int = knob(
        -1, "Blocks of the network kept on the GPU, the others stream; -1: by its memory."
    )
    states_on_host: Literal["auto", "yes", "no"] = knob(
        "auto", "Whether what the backward pass needs of each block waits in the computer's memory."
    )


def choose_placement(file: WanFile, wanted: DeviceSettings) -> Placement:
    """What lies where, settled before anything is loaded."""
    device = torch.device(wanted.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    resident, on_host = None, False
    if device.type == "cuda":
        # All blocks stream, unless the weights take less than half of the memory.
        memory = torch.cuda.get_device_properties(device).total_memory
        small = sum(entry.nbytes for entry in file.tensors.values()) < memory / 2
        resident, on_host = (None if small else 0), True
    if wanted.resident_blocks >= 0:
        resident = wanted.resident_blocks
    if wanted.states_on_host != "auto":
        on_host = wanted.states_on_host == "yes"
    return Placement(device, resident, on_host)


def open_wan(
    files: WanFiles,
    faces: Path | None,
    framing: Framing,
    wanted: DeviceSettings,
    *,
    text: Network[Callable[[str], Tensor]] | None = None,
) -> Studio:
    """A studio of these files.

    Args:
        faces: a face pack's folder; None where no face is looked at.
        framing: of the videos; 0 stands for the model's own.
        text: gives prompts' embeddings in the place of a text encoder's file.

    Raises:
        ValueError: a file is missing, damaged, of another kind than its place wants, or does not fit the
            others; or the video's size does not fit the model.
    """
    model, high_noise = _experts(files)
    _check_others(files, model, high_noise, own_text=text is None)
    framing = framing.filled(TI2V_5B_FRAMING if model.kind == "TI2V-5B" else A14B_FRAMING)
    channels, scale = (48, 16) if model.kind == "TI2V-5B" else (16, 8)
    if framing.width % (2 * scale) or framing.height % (2 * scale) or framing.frames % 4 != 1:
        raise ValueError(
            f"{model.family} makes videos of 1, 5, 9, … frames with sides that {2 * scale} divides, not "
            f"{framing.frames} frames of {framing.width}x{framing.height}: change --frames, --width or "
            "--height."
        )
    device, names = (
        choose_placement(model, wanted).device,
        ", ".join(face_model_names(faces)) if faces else "",
    )
    sha = partial(sha256, memo=Path(files.cache) / "sha256.json")

    def network(file: WanFile, lora: str) -> Network[WanVideoModel]:
        placement = choose_placement(file, wanted)

        def open() -> WanVideoModel:
            model = load_video_model(file.path, placement=placement)
            if lora:
                import_lora(lora, model, frozen=True)
            return model

        return Network(lambda: sha(file.path) + (f" with {sha(lora)}" if lora else ""), open)

    return Studio(
        kind=model.family,
        base=model.path.name,
        shapes=model.shapes,
        framing=framing,
        latent_shape=(channels, 1 + framing.frames // 4, framing.height // scale, framing.width // scale),
        text=text
        or Network(lambda: sha(files.text_encoder), lambda: load_text_encoder(files.text_encoder, device)),
        codec=Network(lambda: sha(files.vae), lambda: load_vae(files.vae, device)),
        faces=Network(lambda: names, lambda: load_face_models(faces or "", device)),
        model=network(model, files.lightning),
        high_noise=network(high_noise, files.high_lightning) if high_noise else None,
        judge=Network(lambda: sha(files.judge), lambda: load_recognizer(files.judge, device))
        if files.judge
        else None,
        cache=TensorCache(files.cache),
        read_clips=lambda places: clip_scenes(places, framing),
        boundary=BOUNDARY[model.family] if high_noise else None,
        device=device,
    )


def _experts(files: WanFiles) -> tuple[WanFile, WanFile | None]:
    """The network that is tuned, and the high-noise expert beside it if there is one; headers only."""
    if not files.model:
        raise ValueError("Give the Wan network with --model.")
    model = open_wan_file(files.model)
    name, kind = model.path.name, model.kind
    if kind == "2.1 I2V":
        raise ValueError(
            f"{name} is Wan 2.1 image-to-video, which is told CLIP's embedding of the first frame, and no "
            "command makes that yet: choose Wan 2.2 (I2V-A14B or TI2V-5B)."
        )
    if kind == "I2V-A14B high":
        raise ValueError(
            f"{name} is the high-noise expert, which is never tuned (5.1): give it with --high-noise, and "
            "the low-noise one with --model."
        )
    if not files.high_noise:
        if files.high_lightning:
            raise ValueError("--high-lightning is for the high-noise expert: give that with --high-noise.")
        if model.family == "I2V-A14B":
            raise ValueError(f"{name} is one of I2V-A14B's two experts: give the other with --high-noise.")
        return model, None
    if model.family not in BOUNDARY:
        raise ValueError(f"{name} is {kind}, one network for all steps: leave out --high-noise.")
    high = open_wan_file(files.high_noise)
    if high.kind == "I2V-A14B low" or high.path.resolve() == model.path.resolve():
        raise ValueError(
            f"{high.path.name} is the low-noise expert, given as the high-noise one: give the other file "
            "with --high-noise."
        )
    if high.shapes != model.shapes:
        raise ValueError(
            f"{high.path.name} ({high.kind}) and {name} ({kind}) are not two experts of one model: give a "
            "pair with --high-noise and --model."
        )
    return model, high


def _check_others(files: WanFiles, model: WanFile, high_noise: WanFile | None, *, own_text: bool) -> None:
    """Raise ValueError where VAE, text encoder or a LoRA do not fit the network."""
    for flag, given in (("--vae", files.vae), ("--text-encoder", files.text_encoder)):
        if not given and (own_text or flag == "--vae"):
            raise ValueError(f"{model.family} wants a VAE and a text encoder: give {flag}.")
    wanted, given = model.shapes["head.head.weight"][0] // 4, vae_channels(files.vae)
    if wanted != given:
        right = "wan2.2_vae" if wanted == 48 else "wan_2.1_vae"
        raise ValueError(
            f"{model.path.name} is {model.kind}, whose latents have {wanted} channels, and those of "
            f"{Path(files.vae).name} have {given}: give {right} with --vae."
        )
    if own_text:
        open_text_encoder(files.text_encoder)
    for lora, network in ((files.lightning, model), (files.high_lightning, high_noise)):
        if lora and network:
            check_lora(lora, network.path.name, network.shapes, frozen=True)
        elif network:
            logger.warning(
                "No few-step LoRA for %s: a few steps without guidance want one, or a network that has it.",
                network.path.name,
            )
