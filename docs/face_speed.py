"""How fast the face chain is: ours, batched, beside insightface's own loop on the same pack and frames.

    python docs/face_speed.py --pack ../shared/weights/insightface --clips ../shared/media/derived/i2v81_*.mp4

Needs insightface and onnxruntime, which the project itself does not. Decoding is left out. The ways take
turns, so that whatever else the machine does falls on all of them, and the least time of each counts. Faces
must agree, or the comparison is worth nothing: the first lines say how well they do.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from ipro_core.clips.video import read_frames
from ipro_core.faces.detector import Detector
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.tracks import SeenFaces, see_faces

TURN = 4
"""Frames of a turn."""
Theirs = list[list]
"""insightface's faces of every frame."""


def insightface_loop(pack: Path, name: str) -> Callable[[Sequence[np.ndarray]], Theirs]:
    """FaceAnalysis, picture by picture, at its classic size."""
    import onnxruntime
    from insightface.app import FaceAnalysis

    onnxruntime.set_default_logger_severity(3)
    app = FaceAnalysis(
        name, root=str(pack), providers=["CPUExecutionProvider"], allowed_modules=["detection", "recognition"]
    )
    app.prepare(-1, det_size=(640, 640))
    return lambda pictures: [app.get(picture) for picture in pictures]


def bgr_pictures(frames_TCHW: Tensor) -> list[np.ndarray]:
    """As insightface wants them; the levels are whole, so nothing is lost."""
    levels_THWC = frames_TCHW.movedim(1, -1).mul(255).round().byte().numpy()
    return [np.ascontiguousarray(picture[:, :, ::-1]) for picture in levels_THWC]


def agreement(ours: SeenFaces, theirs: Theirs) -> dict[str, float]:
    """The worst over all faces; boxes and points as shares of the face's width.

    Raises:
        AssertionError: the two find another number of faces in a frame.
    """
    worst = {"boxes": 0.0, "points": 0.0, "scores": 0.0, "cosine": 1.0, "faces": 0.0}
    for found, embeddings_FD, others in zip(ours.detections, ours.embeddings, theirs, strict=True):
        assert len(found) == len(others), f"{len(found)} faces and {len(others)}"
        order = sorted(range(len(found)), key=lambda f: found[f].box_4[0].item())
        for f, other in zip(order, sorted(others, key=lambda face: face.bbox[0]), strict=True):
            width = other.bbox[2] - other.bbox[0]
            box = np.abs(found[f].box_4.numpy() - other.bbox).max() / width
            points = np.abs(found[f].points_52.numpy() - other.kps).max() / width
            cosine = float(embeddings_FD[f].numpy() @ other.normed_embedding)
            worst["boxes"] = max(worst["boxes"], float(box))
            worst["points"] = max(worst["points"], float(points))
            worst["scores"] = max(worst["scores"], abs(found[f].score - float(other.det_score)))
            worst["cosine"] = min(worst["cosine"], cosine)
            worst["faces"] += 1
    return worst


def least(ways: Sequence[Callable[[], object]], rounds: int) -> np.ndarray:
    """Seconds on the clock and of the processor, (ways, 2): the least of rounds in which all take turns."""
    best = np.full((len(ways), 2), np.inf)
    for _ in range(rounds):
        for n, way in enumerate(ways):
            start = time.perf_counter(), time.process_time()
            way()
            best[n] = np.minimum(best[n], np.subtract((time.perf_counter(), time.process_time()), start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True, help="The folder that holds models/<name>.")
    parser.add_argument("--name", default="antelopev2")
    parser.add_argument("--clips", nargs="+", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=8, help="Of each clip.")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # scikit-image, once for every face of insightface
    theirs = insightface_loop(options.pack, options.name)
    detector, recognizer = load_face_models(options.pack / "models" / options.name)
    one_scale = Detector(detector.network, detector.name, (640,))
    clips = [read_frames(clip, 0, options.frames) for clip in options.clips]
    pictures = [bgr_pictures(frames_TCHW) for frames_TCHW in clips]
    # The agreement is of equal work: one scale. The second one only adds what 640 px miss.
    for clip, frames_TCHW, some in zip(options.clips, clips, pictures, strict=True):
        print(clip.stem, json.dumps(agreement(see_faces(frames_TCHW, one_scale, recognizer), theirs(some))))
    names = ("insightface, picture by picture", "ours, 640 px", "ours, the default, 640 and 320 px")
    times, count = np.zeros((3, 2)), sum(map(len, clips))
    for frames_TCHW, some in zip(clips, pictures, strict=True):
        for first in range(0, len(some), TURN):  # short turns meet more quiet moments
            ways = (
                partial(theirs, some[first : first + TURN]),
                partial(see_faces, frames_TCHW[first : first + TURN], one_scale, recognizer),
                partial(see_faces, frames_TCHW[first : first + TURN], detector, recognizer),
            )
            times += least(ways, options.rounds)
    print(f"{count} frames, {torch.get_num_threads()} threads, the least of {options.rounds} rounds")
    for name, (clock, cpu), (times_faster, less_work) in zip(names, times, times[0] / times, strict=True):
        print(
            f"{name:32s} {count / clock:6.1f} frames/s  {1000 * clock / count:5.0f} ms ({times_faster:.2f} x)"
            f"   processor {1000 * cpu / count:5.0f} ms ({less_work:.2f} x)"
        )


if __name__ == "__main__":
    main()
