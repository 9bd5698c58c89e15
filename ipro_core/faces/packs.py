"""InsightFace packs as users have them: which file is what, where a pack lies, what to do if one is missing.

Looks as InsightFace does: every .onnx of the folder, by name, its task by what it takes and gives.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from .detector import LAYOUTS, LONG_SIDES, Detector
from .onnx_file import OnnxFile, read_onnx
from .onnx_graph import OnnxGraph
from .recognizer import Recognizer

logger = logging.getLogger("ipro")

ADVICE = (
    "a pack holds a detector (det_*.onnx, scrfd_*.onnx) and a recogniser (w600k_*.onnx, glintr100.onnx), "
    "as antelopev2 and buffalo_l do"
)


def load_face_models(
    folder: Path | str,
    device: torch.device | str = "cpu",
    *,
    long_sides: tuple[int, ...] = LONG_SIDES,
) -> tuple[Detector, Recognizer]:
    """The detector and the recogniser of a pack.

    Args:
        folder: holds the .onnx files, itself or in its only folder, as antelopev2.zip unpacks.
        long_sides: scales of detection, in pixels.

    Raises:
        ValueError: no folder, a missing or damaged file; one sentence says which and what to do.
    """
    detector, recognizer = _pair(folder)
    return _detector(detector, device, long_sides), _recognizer(recognizer, device)


def face_model_names(folder: Path | str) -> tuple[str, str]:
    """The names that a pack's detector and recogniser will have, without opening them; raises as
    `load_face_models`."""
    detector, recognizer = _pair(folder)
    return _name(detector), _name(recognizer)


def load_recognizer(path: Path | str, device: torch.device | str = "cpu") -> Recognizer:
    """A recogniser alone, such as a judge: an .onnx file, or a folder that holds one.

    Raises:
        ValueError: as `load_face_models`.
    """
    return _recognizer(_recognizer_file(path), device)


def recognizer_name(path: Path | str) -> str:
    """The name that `load_recognizer` will give, without opening it; raises as that does."""
    return _name(_recognizer_file(path))


def find_pack(name_or_path: Path | str, roots: Sequence[Path | str] = ()) -> Path:
    """The folder of a pack given by its path, or by its name under a root.

    Args:
        roots: folders such as ComfyUI's models/insightface; a pack lies in <root>/models/<name>.

    Raises:
        ValueError: there is none; the sentence lists the packs that are there.
    """
    wanted = Path(name_or_path).expanduser()
    places = [Path(root).expanduser() / "models" for root in roots]
    for folder in (wanted, *(place / wanted for place in places)):
        if folder.is_dir():
            return folder
    present = sorted({folder.name for place in places if place.is_dir() for folder in place.iterdir()})
    looked = " and ".join(str(place) for place in places)
    raise ValueError(
        f"There is no face pack {name_or_path}"
        + (f" in {looked} (found: {', '.join(present) or 'nothing'})" if places else "")
        + f": give its folder; {ADVICE}."
    )


def _read_pack(folder: Path) -> list[OnnxFile]:
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"There is no face pack at {folder}: {ADVICE}.")
    paths = _onnx_in(folder)
    if not paths:
        nested = [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and _onnx_in(inner)]
        if len(nested) == 1:
            logger.info("The face pack %s lies one folder deeper, in %s.", folder, nested[0].name)
            paths = _onnx_in(nested[0])
        elif nested:
            names = ", ".join(inner.name for inner in nested)
            raise ValueError(f"{folder} holds several face packs ({names}): give the folder of one.")
    if not paths:
        models = folder / "models"
        inside = [inner.name for inner in sorted(models.iterdir())] if models.is_dir() else []
        hint = f"; packs lie in its folder models: {', '.join(inside)}" if inside else ""
        raise ValueError(f"The face pack {folder} holds no .onnx file{hint}: {ADVICE}.")
    return [read_onnx(path) for path in paths]


def _pair(folder: Path | str) -> tuple[OnnxFile, OnnxFile]:
    """A pack's first detector and first recogniser."""
    files = _read_pack(Path(folder))
    detectors = [file for file in files if _task(file) == "detector"]
    recognizers = [file for file in files if _task(file) == "recognizer"]
    if not detectors or not recognizers:
        missing = " and no ".join(
            name for name, found in (("detector", detectors), ("recogniser", recognizers)) if not found
        )
        found = ", ".join(file.path.name for file in files)
        raise ValueError(f"The face pack {folder} holds no {missing} (found: {found}): {ADVICE}.")
    return detectors[0], recognizers[0]


def _recognizer_file(path: Path | str) -> OnnxFile:
    path = Path(path)
    files = _read_pack(path) if path.is_dir() else [read_onnx(path)]
    for file in files:
        if _task(file) == "recognizer":
            return file
    found = ", ".join(file.path.name for file in files)
    raise ValueError(f"{path} holds no recogniser (found: {found}): {ADVICE}.")


def _onnx_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".onnx" and path.is_file())


def _task(file: OnnxFile) -> str:
    """InsightFace's rule: detectors have many outputs; landmarks take 192 px, gender and age 96 px."""
    if len(file.outputs) >= 5:
        return "detector"
    if len(file.inputs) != 1 or len(file.outputs) != 1 or len(file.inputs[0].shape) != 4:
        return "other"
    height, width = file.inputs[0].shape[2:]
    return "recognizer" if height == width and width not in (None, 96, 192) else "other"


def _detector(file: OnnxFile, device: torch.device | str, long_sides: tuple[int, ...]) -> Detector:
    if len(file.outputs) in (6, 10):
        raise ValueError(
            f"{file.path} finds boxes without the five points that alignment needs: "
            "choose a detector with points, such as scrfd_10g_bnkps.onnx."
        )
    network = OnnxGraph(file)
    columns = [shape[-1] if shape else 0 for shape in network.output_shapes]
    if len(columns) not in LAYOUTS or columns != sorted([1, 4, 10] * (len(columns) // 3)):
        raise ValueError(
            f"{file.path} does not answer as SCRFD does (outputs of {columns} columns): "
            "choose a det_*.onnx or scrfd_*.onnx of an InsightFace pack."
        )
    return Detector(network.to(device), _name(file), long_sides)


def _recognizer(file: OnnxFile, device: torch.device | str) -> Recognizer:
    network = OnnxGraph(file)
    (shape,) = network.output_shapes
    if shape.numel() != shape[-1] or shape[-1] < 16:
        raise ValueError(
            f"{file.path} does not answer with an embedding (an output of the shape {list(shape)}): "
            "choose a w600k_*.onnx or glintr100.onnx of an InsightFace pack."
        )
    return Recognizer(network.to(device), _name(file))


def _name(file: OnnxFile) -> str:
    return f"{file.path.name} sha256:{file.sha256[:16]}"
