"""What a job needs, what of it lies on this machine, and what one update would take: `ipro doctor`.

A file is known by what is in it, so that it is found under any name; only of a LoRA the name must tell which
of two experts it is for. Nothing is opened beyond its header, and nothing is downloaded.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .faces.packs import face_model_names
from .models.containers import open_container
from .models.rate import host_bytes
from .models.text import open_text_encoder
from .models.vae_files import vae_channels
from .models.wan_files import open_wan_file
from .models.wan_kinds import released_file
from .training.presets import PRESETS
from .types import Framing
from .wan_settings import EMBEDDED, DeviceSettings
from .wan_studio import plan_wan

FOLDERS = ("diffusion_models", "vae", "vae_approx", "text_encoders", "loras", "insightface")
"""Of ComfyUI's models folder; face packs lie in insightface/models."""
SUFFIXES = (".safetensors", ".gguf")


@dataclass(frozen=True)
class Need:
    """One file of a job, or one folder."""

    what: str
    folder: str
    name: str
    """As it is published; any other name will do where its content tells."""
    source: str
    licence: str
    fits: Callable[[Path], bool]
    """By its header; raises ValueError where the file is something else."""
    optional: bool = False


@dataclass(frozen=True)
class Finding:
    """A need, and the files that meet it."""

    need: Need
    found: tuple[Path, ...]

    def text(self) -> str:
        need = self.need
        if len(self.found):
            first, *others = self.found
            more = f" and {len(others)} more" if others else ""
            return f"here     {need.what}: {first}{more} ({need.licence})"
        word = "optional" if need.optional else "missing "
        return f"{word} {need.what}: put {need.name} into {need.folder} ({need.licence}), from {need.source}"


@dataclass(frozen=True)
class Diagnosis:
    """What was found of a job."""

    findings: tuple[Finding, ...]
    machine: str
    plan: str
    """The plan that fits; or the sentence that says why none does."""

    @property
    def ready(self) -> bool:
        """Whether nothing that the job cannot do without is missing."""
        return all(finding.found or finding.need.optional for finding in self.findings)

    def text(self) -> str:
        verdict = "Everything is here." if self.ready else "Something is missing."
        return "\n".join([*(finding.text() for finding in self.findings), self.machine, self.plan, verdict])


def diagnose(
    job: str, places: Mapping[str, Sequence[Path]], framing: Framing, device: torch.device | str = ""
) -> Diagnosis:
    """Look for the files of a job, and plan one update.

    Args:
        job: one of `JOBS`.
        places: the folders behind each of `FOLDERS`; all their subfolders are looked into.
        framing: size and length of the videos that are planned for.
        device: by default the first GPU, if there is one.

    Raises:
        ValueError: there is no such job.
    """
    if job not in JOBS:
        raise ValueError(f"There is no job {job}: choose one of {', '.join(JOBS)}.")
    wanted = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    findings = tuple(Finding(need, tuple(_found(need, places))) for need in JOBS[job])
    return Diagnosis(findings, _machine(wanted), _plan(job, findings, framing, wanted))


def _found(need: Need, places: Mapping[str, Sequence[Path]]) -> list[Path]:
    """The published name first, then others that fit."""
    inside = [
        path for place in places.get(need.folder.split("/")[0], ()) for path in _candidates(need, place)
    ]
    fitting = [path for path in dict.fromkeys(inside) if _fits(need, path)]
    return sorted(fitting, key=lambda path: (path.name != need.name, path.name))


def _candidates(need: Need, place: Path) -> list[Path]:
    if need.folder == "insightface/models":
        models = place / "models"
        return sorted(path for path in models.iterdir() if path.is_dir()) if models.is_dir() else []
    return sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _fits(need: Need, path: Path) -> bool:
    try:
        return need.fits(path)
    except (ValueError, OSError):
        return False


def _machine(device: torch.device) -> str:
    host = host_bytes() / 1e9
    if device.type != "cuda":
        return f"machine  no GPU ({os.cpu_count()} processors), {host:.0f} GB of host memory"
    card = torch.cuda.get_device_properties(device)
    return f"machine  {card.name}, {card.total_memory / 1e9:.0f} GB, and {host:.0f} GB of host memory"


def _plan(job: str, findings: Sequence[Finding], framing: Framing, device: torch.device) -> str:
    """As `ipro train` would plan, of the file that is here or of the one that is published."""
    if job == EMBEDDED:
        return "plan     the embedded world tunes in minutes on one processor"
    network, preset = findings[0].found, PRESETS["local-5b" if job == "TI2V-5B" else "local-14b"]
    file = open_wan_file(network[0]) if network else released_file(job, "fp8")
    try:
        plan = plan_wan(file, framing, DeviceSettings(device=str(device)), (preset.method, preset.rank))
    except ValueError as error:
        return f"plan     {error}"
    return "plan     " + plan.text().replace("\n", "\n         ")


def _kind(*kinds: str) -> Callable[[Path], bool]:
    return lambda path: open_wan_file(path).kind in kinds


def _lora(expert: str) -> Callable[[Path], bool]:
    """A few-step LoRA: its keys say that it is one, its name for which expert."""

    def fits(path: Path) -> bool:
        few_steps = re.search(r"lightning|lightx2v|\dsteps?", path.name, re.IGNORECASE)
        return bool(few_steps) and expert in path.name.lower() and _is_lora(path)

    return fits


def _is_lora(path: Path) -> bool:
    keys = open_container(path, "LoRA", "").entries
    return any("lora_" in key for key in keys)


def _hub(repository: str) -> str:
    return f"https://huggingface.co/{repository}"


_WAN22, _WAN21 = _hub("Comfy-Org/Wan_2.2_ComfyUI_Repackaged"), _hub("Comfy-Org/Wan_2.1_ComfyUI_repackaged")
_APACHE, _RESEARCH = "Apache-2.0", "non-commercial research only"
_TEXT = Need(
    "text encoder",
    "text_encoders",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    _WAN21,
    _APACHE,
    lambda path: open_text_encoder(path) is not None,
)
_FACES = Need(
    "face pack (reward)",
    "insightface/models",
    "antelopev2",
    "https://github.com/deepinsight/insightface/releases/tag/v0.7 "
    f"(or, free for all use, YuNet and AuraFace's glintr100.onnx in one folder: {_hub('fal/AuraFace-v1')})",
    _RESEARCH,
    lambda path: bool(face_model_names(path)),
)
_DRAFT = Need(
    "draft codec (finds faces sooner)",
    "vae_approx",
    "taew2_2.safetensors",
    "https://github.com/madebyollin/taehv",
    "MIT",
    lambda path: path.name.startswith("taew2_2"),
    optional=True,
)


def _lightning(expert: str) -> Need:
    name = f"wan2.2_i2v_lightx2v_4steps_lora_v1_{expert}_noise.safetensors"
    return Need(f"few-step LoRA, {expert} noise", "loras", name, _WAN22, _APACHE, _lora(expert))


def _expert(expert: str) -> Need:
    name = f"wan2.2_i2v_{expert}_noise_14B_fp8_scaled.safetensors"
    return Need(
        f"{expert}-noise expert", "diffusion_models", name, _WAN22, _APACHE, _kind(f"I2V-A14B {expert}")
    )


def _vae(name: str, channels: int, source: str) -> Need:
    return Need("VAE", "vae", name, source, _APACHE, lambda path: vae_channels(path) == channels)


JOBS: dict[str, tuple[Need, ...]] = {
    EMBEDDED: (),
    "I2V-A14B": (
        _expert("low"),
        _expert("high"),
        _lightning("low"),
        _lightning("high"),
        _vae("wan_2.1_vae.safetensors", 16, _WAN22),
        _TEXT,
        _FACES,
    ),
    "TI2V-5B": (
        Need(
            "network",
            "diffusion_models",
            "wan2.2_ti2v_5B_fp16.safetensors",
            _WAN22,
            _APACHE,
            _kind("TI2V-5B"),
        ),
        _vae("wan2.2_vae.safetensors", 48, _WAN22),
        _TEXT,
        _FACES,
        _DRAFT,
    ),
}
"""In each the network that is tuned comes first."""
