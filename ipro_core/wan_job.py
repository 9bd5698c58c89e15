"""Wan as its users have it: the files of a job, held against each other by their headers.

Nothing large is read here. What does not fit together is told in one sentence before anything is loaded.
"""

import logging
import re
from pathlib import Path

from .models.lora import check_lora
from .models.taehv import load_draft_codec
from .models.text import open_text_encoder
from .models.vae_files import vae_channels
from .models.wan_files import WanFile, open_wan_file
from .wan_settings import BOUNDARY, WanFiles

logger = logging.getLogger("ipro")


def open_experts(files: WanFiles) -> tuple[WanFile, WanFile | None]:
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


def check_others(files: WanFiles, model: WanFile, high_noise: WanFile | None, *, own_text: bool) -> None:
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
