"""Wan as its users have it: the files of a job, held against each other by their headers, then a `Studio`.

Nothing large is read here. What does not fit together is told in one sentence before anything is loaded.
"""

import logging
import re
import sys
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
from .models.plan import Plan, plan_update
from .models.plan_shape import Passes
from .models.rate import device_bytes, host_bytes, measured_rate
from .models.taehv import load_draft_codec
from .models.text import load_text_encoder, open_text_encoder
from .models.vae import load_vae
from .models.vae_files import vae_channels
from .models.wan import WanVideoModel, load_video_model
from .models.wan_files import WanFile, open_wan_file
from .studio import Network, Studio
from .training.ipro import IproSettings
from .types import Framing, knob

logger = logging.getLogger("ipro")

A14B_FRAMING, TI2V_5B_FRAMING = Framing(832, 480, 81, 16.0), Framing(1280, 704, 121, 24.0)
"""What they were trained on."""
BOUNDARY = {"I2V-A14B": 0.9, "T2V-14B": 0.875}
"""Where the low-noise expert takes over, of the kinds with two experts."""


Tuning = tuple[IproSettings, int]
"""What an update's memory and time hang on beside the network: the settings, and the adapter's rank."""


@dataclass(frozen=True)
class WanFiles:
    """The files of one job, as ComfyUI users have them."""

    model: str = knob("", "The Wan network to tune: I2V-A14B's low-noise expert, or TI2V-5B.")
    high_noise: str = knob("", "I2V-A14B's high-noise expert: it samples the first steps and stays as it is.")
    vae: str = knob("", "wan_2.1_vae for A14B, wan2.2_vae for TI2V-5B.")
    text_encoder: str = knob("", "umt5_xxl, fp8 or fp16.")
    lightning: str = knob("", "The model's own few-step LoRA, laid beneath the one that is tuned.")
    high_lightning: str = knob("", "The high-noise expert's few-step LoRA.")
    draft: str = knob(
        "", "taew2_2 for TI2V-5B, taew2_1 for A14B: finds faces sooner, so that an update decodes only them."
    )
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


def plan_wan(
    file: WanFile,
    framing: Framing,
    wanted: DeviceSettings,
    tuning: Tuning | None = None,
    *,
    drafted: bool = False,
    decodes: bool = True,
) -> Plan:
    """What lies where, settled before anything is loaded.

    Args:
        tuning: settings and the rank of the adapter, for the network that is tuned; None: it samples.
        drafted: see `plan_update`.
        decodes: whether what is sampled is decoded too.

    Raises:
        ValueError: it does not fit; the sentence names the nearest size that would. Who says where both
            weights and states lie is warned instead.
    """
    device, layers = _device(wanted), file.config()["num_layers"]

    def allowed(placement: Placement) -> bool:
        resident = layers if placement.resident is None else placement.resident
        if wanted.resident_blocks >= 0 and resident != min(wanted.resident_blocks, layers):
            return False
        if wanted.states_on_host != "auto":
            return placement.states_on_host == (wanted.states_on_host == "yes")
        # Without a GPU both are the same memory, and streaming only copies.
        return device.type == "cuda" or wanted.resident_blocks >= 0 or placement == Placement(device)

    settings, rank = tuning or (None, 0)
    by_hand = wanted.resident_blocks >= 0 and wanted.states_on_host != "auto"
    plan = plan_update(
        file,
        framing.width,
        framing.height,
        framing.frames,
        device_bytes=sys.maxsize if by_hand else device_bytes(device),
        host_bytes=sys.maxsize if by_hand else host_bytes(),
        rate=measured_rate(device),
        passes=_passes(settings) if settings else Passes.sampling(8, decodes),
        rank=rank,
        batch=settings.microbatch if settings else 1,
        drafted=drafted,
        device=device,
        allowed=allowed,
    )
    if plan.device_bytes > device_bytes(device) or plan.host_bytes > host_bytes():
        logger.warning(
            "By the plan this takes more memory than there is, and it was asked for:\n%s", plan.text()
        )
    return plan


def _passes(settings: IproSettings) -> Passes:
    steps = settings.steps - settings.first_tuned_step
    grad_steps = min(settings.grad_steps, steps)
    compared = min(settings.reference_steps or grad_steps, grad_steps) * settings.reference_chance
    return Passes.of(steps, grad_steps, compared, settings.kl_through == "detached", settings.kept_passes)


def _device(wanted: DeviceSettings) -> torch.device:
    return torch.device(wanted.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def open_wan(
    files: WanFiles,
    faces: Path | None,
    framing: Framing,
    wanted: DeviceSettings,
    tuning: Tuning | None = None,
    *,
    text: Network[Callable[[str], Tensor]] | None = None,
) -> Studio:
    """A studio of these files.

    Args:
        faces: a face pack's folder; None where no face is looked at.
        framing: of the videos; 0 stands for the model's own.
        tuning: see `plan_wan`.
        text: gives prompts' embeddings in the place of a text encoder's file.

    Raises:
        ValueError: a file is missing, damaged, of another kind than its place wants, or does not fit the
            others; or the video's size does not fit the model, or not the memory.
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
    device, names = _device(wanted), ", ".join(face_model_names(faces)) if faces else ""
    sha = partial(sha256, memo=Path(files.cache) / "sha256.json")
    plan = plan_wan(model, framing, wanted, tuning, drafted=bool(files.draft))

    def network(file: WanFile, lora: str, placement: Placement) -> Network[WanVideoModel]:
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
        codec=Network(
            lambda: sha(files.vae), lambda: load_vae(files.vae, device, kept_bytes=plan.kept_bytes)
        ),
        faces=Network(lambda: names, lambda: load_face_models(faces or "", device)),
        model=network(model, files.lightning, plan.placement),
        high_noise=network(
            high_noise, files.high_lightning, plan_wan(high_noise, framing, wanted, decodes=False).placement
        )
        if high_noise
        else None,
        judge=Network(lambda: sha(files.judge), lambda: load_recognizer(files.judge, device))
        if files.judge
        else None,
        draft=Network(lambda: sha(files.draft), lambda: load_draft_codec(files.draft, device))
        if files.draft
        else None,
        plan=plan.text(),
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
    if files.draft:
        given = load_draft_codec(files.draft).channels  # small: it is read whole
        if given != wanted:
            right = "taew2_2" if wanted == 48 else "taew2_1"
            raise ValueError(
                f"{Path(files.draft).name} is a draft of latents of {given} channels, and those of "
                f"{model.path.name} have {wanted}: give {right} with --draft."
            )
    for lora, network in ((files.lightning, model), (files.high_lightning, high_noise)):
        if lora and network:
            check_lora(lora, network.path.name, network.shapes, frozen=True)
        elif network:
            logger.warning(
                "No few-step LoRA for %s: a few steps without guidance want one, or a network that has it.",
                network.path.name,
            )
    if high_noise and files.lightning and files.lightning == files.high_lightning:
        logger.warning(
            "Both experts get %s: a few-step LoRA is made for one of them.", Path(files.lightning).name
        )
    elif high_noise and (_says(files.lightning, "high", "low") or _says(files.high_lightning, "low", "high")):
        logger.warning(
            "By their names the few-step LoRAs are swapped: --lightning is for the low-noise expert, "
            "--high-lightning for the other."
        )


def _says(file: str, noise: str, other: str) -> bool:
    """Whether a file's name speaks of one noise and not of the other: "…-HIGH-lora", "low_noise_model"."""
    words = set(re.split(r"[^a-z]+", Path(file).stem.lower().replace("noise", "")))
    return noise in words and other not in words
