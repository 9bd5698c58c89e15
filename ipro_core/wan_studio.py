"""A `Studio` of Wan's networks: of files, with a plan of where they lie, or as somebody else has them."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache import TensorCache
from .clips.scenes import clip_scenes
from .faces.packs import face_model_names, load_face_models, load_recognizer
from .files import sha256
from .models.base import VideoModel
from .models.lora import import_lora
from .models.memory import Placement
from .models.plan import Plan, plan_update
from .models.plan_shape import Passes
from .models.rate import device_bytes, host_bytes, measured_rate
from .models.taehv import load_draft_codec
from .models.text import load_text_encoder
from .models.vae import load_vae
from .models.wan import WanVideoModel, load_video_model
from .models.wan_files import WanFile
from .studio import Network, Studio
from .training.settings import SamplingSettings
from .types import Framing
from .wan_job import check_others, open_experts
from .wan_settings import A14B_FRAMING, BOUNDARY, TI2V_5B_FRAMING, DeviceSettings, WanFiles

logger = logging.getLogger("ipro")

Tuning = tuple[SamplingSettings, int]
"""What an update's memory and time hang on beside the network: the settings, and the adapter's rank."""


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
    attentions = max(wanted.kept_attentions, 0) if by_hand or wanted.kept_attentions >= 0 else None
    plan = plan_update(
        file,
        framing.width,
        framing.height,
        framing.frames,
        device_bytes=sys.maxsize if by_hand else device_bytes(device),
        host_bytes=sys.maxsize if by_hand else host_bytes(),
        rate=measured_rate(device),
        passes=settings.passes() if settings else Passes.sampling(8, decodes),
        rank=rank,
        batch=settings.microbatch if settings else 1,
        drafted=drafted,
        device=device,
        attentions=attentions,
        allowed=allowed,
    )
    if plan.device_bytes > device_bytes(device) or plan.host_bytes > host_bytes():
        logger.warning(
            "By the plan this takes more memory than there is, and it was asked for:\n%s", plan.text()
        )
    return plan


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
    model, high_noise = open_experts(files)
    check_others(files, model, high_noise, own_text=text is None)
    framing, device, sha = wan_framing(model.family, framing), _device(wanted), _sha(files)
    plan = plan_wan(model, framing, wanted, tuning, drafted=bool(files.draft))

    def network(file: WanFile, lora: str, placement: Placement) -> Network[WanVideoModel]:
        def open() -> WanVideoModel:
            model = load_video_model(file.path, placement=placement)
            if lora:
                import_lora(lora, model, frozen=True)
            return model

        return Network(lambda: sha(file.path) + (f" with {sha(lora)}" if lora else ""), open)

    return wan_studio(
        model.family,
        framing,
        files,
        faces,
        device,
        base=model.path.name,
        shapes=model.shapes,
        text=text
        or Network(lambda: sha(files.text_encoder), lambda: load_text_encoder(files.text_encoder, device)),
        codec=Network(
            lambda: sha(files.vae), lambda: load_vae(files.vae, device, kept_bytes=plan.kept_bytes)
        ),
        model=network(model, files.lightning, plan.placement),
        high_noise=network(
            high_noise, files.high_lightning, plan_wan(high_noise, framing, wanted, decodes=False).placement
        )
        if high_noise
        else None,
        plan=plan.text(),
    )


def wan_studio(
    family: str,
    framing: Framing,
    files: WanFiles,
    faces: Path | None,
    device: torch.device,
    *,
    high_noise: Network[VideoModel] | None,
    **networks: Any,
) -> Studio:
    """A studio of one of Wan's families, wherever its networks come from.

    Args:
        framing: see `wan_framing`.
        files: of which only `judge`, `draft` and `cache` are looked at.
        faces: see `open_wan`.
        networks: `base`, `shapes`, `text`, `codec`, `model` and `plan` of the studio.
    """
    sha, names = _sha(files), ", ".join(face_model_names(faces)) if faces else ""
    channels, scale = _latents(family)
    return Studio(
        kind=family,
        framing=framing,
        latent_shape=(channels, 1 + framing.frames // 4, framing.height // scale, framing.width // scale),
        faces=Network(lambda: names, lambda: load_face_models(faces or "", device)),
        high_noise=high_noise,
        judge=Network(lambda: sha(files.judge), lambda: load_recognizer(files.judge, device))
        if files.judge
        else None,
        draft=Network(lambda: sha(files.draft), lambda: load_draft_codec(files.draft, device))
        if files.draft
        else None,
        cache=TensorCache(files.cache),
        read_clips=lambda places: clip_scenes(places, framing),
        boundary=BOUNDARY[family] if high_noise else None,
        device=device,
        **networks,
    )


def wan_framing(family: str, framing: Framing) -> Framing:
    """With the family's own numbers where there is none.

    Raises:
        ValueError: it makes no videos of that size or length.
    """
    framing = framing.filled(TI2V_5B_FRAMING if family == "TI2V-5B" else A14B_FRAMING)
    side = 2 * _latents(family)[1]
    if framing.width % side or framing.height % side or framing.frames % 4 != 1:
        raise ValueError(
            f"{family} makes videos of 1, 5, 9, … frames with sides that {side} divides, not "
            f"{framing.frames} frames of {framing.width}x{framing.height}: change --frames, --width or "
            "--height."
        )
    return framing


def _latents(family: str) -> tuple[int, int]:
    """Channels, and pixels on a latent's side."""
    return (48, 16) if family == "TI2V-5B" else (16, 8)


def _sha(files: WanFiles) -> Callable[[str | Path], str]:
    return partial(sha256, memo=Path(files.cache) / "sha256.json")
