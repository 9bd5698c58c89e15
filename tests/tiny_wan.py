"""The files of a Wan 2.2 job as a user has them, tiny and random, and clips: red cells are faces.

The autoencoder is biased to red, so that what the random network makes is full of faces.
"""

from functools import cache
from pathlib import Path

import test_models_text
import torch
from face_networks import red_cells, write_pack
from safetensors.torch import save_file
from torch import Tensor
from vae_networks import official_tensors
from wan_layouts import tiny_state, write_layout

from ipro_core.clips.video import write_video
from ipro_core.models.taehv import TinyAutoencoder

SIZE = ["--width", "32", "--height", "32", "--frames", "5"]
SMALL = ["--batch-size", "1", "--updates", "2", "--rank", "2"]
SMALL += ["--boundary-seeds", "2", "--reference-chance", "1"]


def write_files(folder: Path, kind: str) -> dict[str, Path]:
    """Flag → file, for "I2V-A14B" or "TI2V-5B"."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "model": network(folder / "wan2.2_low_noise.safetensors", kind, seed=1),
        "lightning": few_step_lora(folder / "low_lora.safetensors", kind, seed=3),
        "vae": vae(folder / "vae.safetensors", "2.2" if kind == "TI2V-5B" else "2.1"),
        "text-encoder": text_encoder(folder),
        "faces": write_pack(folder / "pack"),
    }
    if kind == "I2V-A14B":
        files["high-noise"] = network(folder / "wan2.2_high_noise.safetensors", kind, seed=2)
        files["high-lightning"] = few_step_lora(folder / "high_lora.safetensors", kind, seed=4)
    return files


def network(path: Path, kind: str, seed: int) -> Path:
    return write_layout("fp32", tiny_state(kind, seed), path)


def vae(path: Path, kind: str) -> Path:
    tensors = dict(official_tensors(kind))
    bias = tensors["decoder.head.2.bias"]
    tensors["decoder.head.2.bias"] = torch.tensor([0.85, -0.85, -0.85]).repeat_interleave(len(bias) // 3)
    save_file(tensors, path)
    return path


def draft(path: Path, kind: str) -> Path:
    """The draft codec of a kind, at its own small size."""
    wide = kind == "TI2V-5B"
    network = TinyAutoencoder(48 if wide else 16, patch=2 if wide else 1)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


@cache
def encoder_tensors() -> dict[str, Tensor]:
    return test_models_text.official(test_models_text.network(width=4096))


def text_encoder(folder: Path) -> Path:
    return test_models_text.written(folder, encoder_tensors())


def few_step_lora(path: Path, kind: str, seed: int) -> Path:
    """As Lightning's: alpha 0.125 times the rank."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name, tensor in tiny_state(kind).items():
        if name.startswith("blocks.") and name.endswith("ffn.0.weight"):  # as wide as no other kind's
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_down.weight"] = torch.randn(4, tensor.shape[1], generator=draw)
            tensors[f"{layer}.lora_up.weight"] = torch.randn(tensor.shape[0], 4, generator=draw) / 16
            tensors[f"{layer}.alpha"] = torch.tensor(0.5)
    save_file(tensors, path)
    return path


def write_clips(folder: Path, count: int = 2, first: int = 0) -> Path:
    """Clips of a face that walks, 128 x 128, each with its prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        frames = red_cells([[((t // 4) % 4, number % 4)] for t in range(12)])
        write_video(folder / f"clip{number}.mp4", frames, fps=16, crf=1)
        (folder / f"clip{number}.txt").write_text("a person walks closer" if number else "a person smiles")
    return folder


def flags(files: dict[str, Path], cache: Path) -> list[str]:
    named = [part for flag, path in files.items() for part in (f"--{flag}", str(path))]
    return [*named, "--cache", str(cache)]
