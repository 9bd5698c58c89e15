"""The networks of `quality`, run by packages that maintain them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import sha256
from ..scorer import load_image_encoder
from .quality_weights import WEIGHTS, NotHere, find_weights, read_tensors


@dataclass(frozen=True, eq=False)
class Opened:
    """A network that can be asked."""

    ask: Callable[..., Tensor]
    name: str
    """Name and SHA-256 of its weights."""


def open_network(kind: str, given: str, roots: Sequence[Path], device: torch.device | str = "cpu") -> Opened:
    """Raises NotHere with what is missing, or what does not fit."""
    path = find_weights(kind, given, roots)
    opener = {
        "dino": _dino,
        "clip_b32": partial(_clip, patch=32),
        "clip_l14": partial(_clip, patch=14),
        "aesthetic": _aesthetic,
        "raft": _raft,
        "musiq": _musiq,
        "amt": _amt,
    }[kind]
    try:
        ask = opener(path, device)
    except ImportError as error:
        raise NotHere(
            f"{WEIGHTS[kind].name} runs in {WEIGHTS[kind].needs}, which cannot be imported here ({error}): "
            "install it."
        ) from None
    file = path if path.is_file() else sorted(path.glob("*.safetensors"))[0]
    return Opened(torch.no_grad()(ask), f"{path.name} sha256:{sha256(file)[:16]}")


def _from_transformers(kind: Any, config: Any, tensors: dict[str, Tensor], path: Path, spare: str) -> Any:
    """A model of `transformers`, which knows how its released files name their tensors."""
    from transformers.utils import logging

    loudness = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is said below, in one sentence
    about = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, told = kind.from_pretrained(None, config=config, state_dict=tensors, **about)
    finally:
        logging.set_verbosity(loudness)
    missing = [name for name in told["missing_keys"] if spare not in name]
    wrong = [str(name) for name in told["mismatched_keys"]]
    if missing or wrong:
        raise NotHere(
            f"{path.name} is not what it should be ({len(missing)} tensors are missing, {len(wrong)} have "
            f"another shape, such as {(missing + wrong)[0]})."
        )
    return model.eval()


def _dino(path: Path, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig.from_pretrained(path, local_files_only=True) if path.is_dir() else ViTConfig()
    tensors = {name.removeprefix("vit."): value for name, value in read_tensors(path).items()}
    model = _from_transformers(ViTModel, config, tensors, path, "pooler").to(device)
    # The class token after the last norm: DINO has no pooler.
    return lambda pictures: model(pictures.to(device), interpolate_pos_encoding=True).last_hidden_state[:, 0]


def _clip(path: Path, device: torch.device | str, patch: int) -> Callable[[Tensor], Tensor]:
    try:
        encoder = load_image_encoder(path, device)
    except ValueError as error:
        raise NotHere(str(error)) from None
    if encoder.vision.config.patch_size != patch:
        raise NotHere(f"{path.name} is a CLIP of patches of {encoder.vision.config.patch_size}, not {patch}.")
    return lambda pictures: encoder.vision(pixel_values=pictures.to(device)).image_embeds


def _aesthetic(path: Path, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    tensors = read_tensors(path)
    if tensors.keys() != {"weight", "bias"} or tuple(tensors["weight"].shape) != (1, 768):
        raise NotHere(f"{path.name} is no linear head on 768 numbers: convert sa_0_4_vit_l_14_linear.pth.")
    weight_1D, bias_1 = tensors["weight"].to(device), tensors["bias"].to(device)
    return lambda features_TD: features_TD.to(device) @ weight_1D.T + bias_1


def _raft(path: Path, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    from torchvision.models.optical_flow import raft_large  # pyright: ignore[reportMissingImports]

    model = _loaded(raft_large(weights=None), read_tensors(path), path).to(device)

    def flow(before_CHW: Tensor, after_CHW: Tensor) -> Tensor:
        pair = [(picture[None].to(device) / 127.5 - 1) for picture in (before_CHW, after_CHW)]
        return model(*pair, num_flow_updates=20)[-1][0].cpu()

    return flow


def _musiq(path: Path, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    from pyiqa.archs.musiq_arch import MUSIQ  # pyright: ignore[reportMissingImports]

    model = _loaded(MUSIQ(pretrained=False), read_tensors(path), path).to(device)
    return lambda picture_1CHW: model(picture_1CHW.to(device)).cpu()


def _amt(path: Path, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime

    providers = [p for p in onnxruntime.get_available_providers() if "CUDA" in p or "CPU" in p]
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    inputs = session.get_inputs()
    if len(inputs) not in (2, 3):
        raise NotHere(f"{path.name} takes {len(inputs)} inputs: two frames are wanted, and maybe the time.")

    def middle(before_CHW: Tensor, after_CHW: Tensor) -> Tensor:
        height, width = before_CHW.shape[1:]
        pads = 0, -width % 16, 0, -height % 16
        pair = [
            torch.nn.functional.pad(picture[None], pads, mode="replicate").numpy()
            for picture in (before_CHW, after_CHW)
        ]
        half = [torch.full((1, 1, 1, 1), 0.5).numpy()][: len(inputs) - 2]
        fed = {place.name: value for place, value in zip(inputs, [*pair, *half], strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])[0, :, :height, :width]

    return middle


def _loaded(model: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    try:
        model.load_state_dict({name.removeprefix("module."): value for name, value in tensors.items()})
    except RuntimeError as error:
        raise NotHere(
            f"{path.name} does not fit the network ({str(error).splitlines()[-1].strip()})."
        ) from None
    return model.eval()


def farneback(before_CHW: Tensor, after_CHW: Tensor) -> Tensor:
    """Flow by Farnebäck's method of OpenCV: no weights, other numbers than RAFT's.

    Raises:
        NotHere: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise NotHere("Farnebäck's flow is OpenCV's, which is not installed.") from None
    grey = [
        torch.einsum("c,chw->hw", torch.tensor([0.299, 0.587, 0.114]), picture).round().byte().numpy()
        for picture in (before_CHW, after_CHW)
    ]
    flow_HW2 = cv2.calcOpticalFlowFarneback(*grey, None, 0.5, 4, 21, 3, 7, 1.5, 0)  # pyright: ignore
    return torch.from_numpy(flow_HW2).permute(2, 0, 1)


def preprocessing_hash() -> str:
    """Tells which rules of frames, sizes and averages a number was made with."""
    return hashlib.sha256((Path(__file__).parent / "quality.py").read_bytes()).hexdigest()[:16]
