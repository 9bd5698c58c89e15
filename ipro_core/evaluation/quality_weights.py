"""Where the weights of `quality`'s networks lie, and what a user should know of them.

Nothing is downloaded and nothing is unpickled: weights are .safetensors (or .onnx) files or folders of them,
given by path or found in the host's folders of models and in the cache of Hugging Face.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

PICKLES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Weights:
    """One network's file, and what a user should know of it."""

    name: str
    dimensions: str
    looked_for: tuple[str, ...]
    """Patterns within a folder of models."""
    source: str
    licence: str
    needs: str
    """The package that runs it."""


WEIGHTS = {
    "dino": Weights(
        "DINO ViT-B/16",
        "SC",
        ("*/dino-vitb16", "*/dino_vitb16*.safetensors", "models--facebook--dino-vitb16/snapshots/*"),
        "facebook/dino-vitb16 on Hugging Face",
        "Apache-2.0",
        "transformers",
    ),
    "clip_b32": Weights(
        "CLIP ViT-B/32",
        "BC",
        (
            "*/clip-vit-base-patch32",
            "*/clip-vit-base-patch32*.safetensors",
            "models--openai--clip-vit-base-patch32/snapshots/*",
        ),
        "openai/clip-vit-base-patch32 on Hugging Face",
        "MIT",
        "transformers",
    ),
    "clip_l14": Weights(
        "CLIP ViT-L/14",
        "AQ",
        (
            "*/clip-vit-large-patch14",
            "*/clip-vit-large-patch14.safetensors",
            "*/clip_vision_l*.safetensors",
            "models--openai--clip-vit-large-patch14/snapshots/*",
        ),
        "openai/clip-vit-large-patch14 on Hugging Face",
        "MIT",
        "transformers",
    ),
    "aesthetic": Weights(
        "LAION's aesthetic head",
        "AQ",
        ("*/sa_0_4_vit_l_14_linear.safetensors",),
        "sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor, converted",
        "MIT",
        "torch",
    ),
    "raft": Weights(
        "RAFT",
        "DD",
        ("*/raft_large_C_T_V1*.safetensors", "*/raft-things*.safetensors"),
        "torchvision's raft_large_C_T_V1, converted (the same training as VBench's raft-things)",
        "BSD-3-Clause",
        "torchvision",
    ),
    "musiq": Weights(
        "MUSIQ (SPAQ)",
        "IQ",
        ("*/musiq_spaq_ckpt*.safetensors",),
        "musiq_spaq_ckpt-358bb6af.pth of IQA-PyTorch, converted",
        "pyiqa is PolyForm Noncommercial 1.0.0: no commercial use",
        "pyiqa",
    ),
    "amt": Weights(
        "AMT-S",
        "MS",
        ("*/amt-s*.onnx", "*/amt_s*.onnx"),
        "amt-s.pth of MCG-NKU/AMT, exported to ONNX (two frames in, the middle one out)",
        "CC BY-NC 4.0: no commercial use",
        "onnxruntime",
    ),
}


class NotHere(ValueError):
    """A network that cannot be run on this machine; the sentence says what is missing."""


def find_weights(kind: str, given: str, roots: Sequence[Path]) -> Path:
    """The file or folder of a network.

    Args:
        given: a path; "" looks in the roots.
        roots: folders of models.

    Raises:
        NotHere: there is none, or it is a pickle.
    """
    wanted = WEIGHTS[kind]
    if given:
        path = Path(given).expanduser()
        if not path.exists():
            raise NotHere(f"There is no {wanted.name} at {path}.")
        return _readable(path)
    for root in roots:
        for pattern in wanted.looked_for:
            for path in sorted(root.glob(pattern)):
                if path.is_file() or list(path.glob("*.safetensors")):
                    return _readable(path)
    raise NotHere(
        f"{wanted.dimensions} needs {wanted.name}, which is not in the folders of models: get "
        f"{wanted.source} ({wanted.licence})."
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Of a file or a folder of them, as float32; raises NotHere where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    try:
        return {name: value.float() for file in files for name, value in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise NotHere(f"{path.name} cannot be read ({error}): get it again.") from None


def _readable(path: Path) -> Path:
    file = path
    if path.is_dir():
        if list(path.glob("*.safetensors")):
            return path
        file = next((inner for inner in sorted(path.iterdir()) if inner.suffix in PICKLES), path)
    if file.suffix in PICKLES:
        raise NotHere(
            f"{file.name} is a pickle, which can run any code: if you trust it, convert it once by python -c "
            f'"import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{file.name}', weights_only=True), '{file.stem}.safetensors')\"."
        )
    if file.suffix not in (".safetensors", ".onnx"):
        raise NotHere(f"{path} holds no .safetensors file.")
    return path
