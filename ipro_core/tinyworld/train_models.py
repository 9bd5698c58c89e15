"""Make the networks of weights/, and measure them: `python -m ipro_core.tinyworld.train_models [stage ...]`.

Stages, in their order: codec, recognizer, judge, detector, video, turns, scorer, figures; none named: all.
Seeds are fixed. What knows prompts takes a number of steps, the others seconds of one core. Two cores share
the video model so:

    python -m torch.distributed.run --nproc-per-node 2 -m ipro_core.tinyworld.train_models video

Needs the `onnx` package to write ONNX files; nothing else does.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from ..models.wan_files import save_wan_file
from . import CODEC, FACE_PACK, JUDGE, SCORER, VIDEO_MODELS, WEIGHTS, open_tiny_world
from .codec import LinearCodec
from .figures import detection, likeness, retrieval, sample_scenes, stranger_floor, verification
from .networks import CROP, DETECTOR_SIDE, Detector, Judge, Recognizer, export
from .scenes import tiny_scenes
from .scorer import TinyScorer
from .train_faces import train_detector, train_recognizer
from .train_scorer import train_scorer
from .train_video import fit_codec, train_video

BUDGETS = {"recognizer": 800.0, "judge": 700.0, "detector": 430.0}
VIDEO_STEPS = 3600
TURNS_STEPS = 4000


def make_codec(_: Path) -> None:
    """codec.safetensors"""
    fit_codec().save(CODEC)


def make_recognizer(_: Path) -> None:
    """faces/w600k_tiny.onnx, the reward's: ArcFace."""
    torch.manual_seed(0)
    network = Recognizer()
    train_recognizer(network, "recognizer", cpu_seconds=BUDGETS["recognizer"], margin="arcface")
    save_recognizer(network, FACE_PACK / "w600k_tiny.onnx")


def make_judge(_: Path) -> None:
    """judge/w600k_tiny_judge.onnx: another design, another loss, other people."""
    torch.manual_seed(1)
    network = Judge()
    train_recognizer(network, "judge", cpu_seconds=BUDGETS["judge"], margin="cosface")
    save_recognizer(network, JUDGE / "w600k_tiny_judge.onnx")


def make_detector(_: Path) -> None:
    """faces/det_tiny.onnx, in SCRFD's layout, for exactly 128 x 128 px."""
    torch.manual_seed(2)
    network = Detector()
    train_detector(network, cpu_seconds=BUDGETS["detector"])
    save_detector(network, FACE_PACK / "det_tiny.onnx")


def make_video(checkpoints: Path) -> None:
    """video.safetensors, a Wan file in float16."""
    network = train_video(LinearCodec.load(CODEC), checkpoints / "video.pt", steps=VIDEO_STEPS)
    save_wan_file(network.half(), VIDEO_MODELS["walks"])


def make_turns(checkpoints: Path) -> None:
    """video_turns.safetensors: the same model, tuned on clips of the world of turns."""
    network = train_video(
        LinearCodec.load(CODEC),
        checkpoints / "video_turns.pt",
        steps=TURNS_STEPS,
        peak=1.2e-3,
        world="turns",
        begin=VIDEO_MODELS["walks"],
    )
    save_wan_file(network.half(), VIDEO_MODELS["turns"])


def make_scorer(_: Path) -> None:
    """scorer.safetensors, in float16."""
    train_scorer().save(SCORER)


def save_recognizer(network: torch.nn.Module, path: Path) -> None:
    """Write it as InsightFace's recognisers are: any number of faces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    export(network, str(path), torch.zeros(1, 3, CROP, CROP), ["embedding"], batched=True)


def save_detector(network: torch.nn.Module, path: Path) -> None:
    """Write it as SCRFD is exported: nine outputs, rows of all places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    export(network, str(path), torch.zeros(1, 3, DETECTOR_SIDE, DETECTOR_SIDE), names, batched=False)


def make_figures(_: Path) -> None:
    """figures.json: what the files in weights/ can do, on people and prompts of no training."""
    torch.manual_seed(6)  # of the untrained networks
    world = open_tiny_world()
    assert world.judge is not None
    detector, recognizer = world.faces.open()
    judge, codec = world.judge.open(), world.codec.open()
    figures: dict[str, object] = {}
    for name, network, fresh in (
        ("recognizer", recognizer, Recognizer()),
        ("judge", judge, Judge()),
    ):
        fresh.eval()
        figures[name] = {
            "all pairs": verification(network.embed),
            "nobody occluded": verification(network.embed, occluded=0.0),
            "untrained": verification(lambda crops, fresh=fresh: fresh(crops * 2 - 1), people=60),
        }
    figures["detector"] = detection(detector)
    scenes = list(tiny_scenes("checks", 64))
    real = torch.stack([scene.frames_TCHW for scene in scenes])
    error = (codec.decode(codec.encode(real)).clamp(0, 1) - real).square().mean((0, 2, 3, 4))
    figures["codec"] = {"psnr_per_frame": [round(x, 1) for x in (-10 * error.log10()).tolist()]}
    figures["video"] = video_figures("walks", (5.0, 3.0, 2.0))
    figures["turns"] = video_figures("turns", (5.0, 3.0))
    figures["strangers"] = stranger_floor(scenes, recognizer)
    figures["scorer"] = scorer_figures()
    text = json.dumps(_rounded(figures), indent=1)
    (WEIGHTS / "figures.json").write_text(text + "\n")
    logging.getLogger("ipro").info("%s", text)


def video_figures(world: str, shifts: tuple[float, ...]) -> dict[str, object]:
    """Of a world's video model, beside its real clips, their first frame copied, and the codec alone."""
    studio = open_tiny_world(world=world)
    assert studio.judge is not None
    codec, networks = studio.codec.open(), (*studio.faces.open(), studio.judge.open())
    scenes = list(tiny_scenes("checks", 64, world=world))
    real = torch.stack([scene.frames_TCHW for scene in scenes])
    videos = {"real": real, "copied": real[:, :1].expand_as(real)}
    videos["codec"] = codec.decode(codec.encode(real)).clamp(0, 1)
    videos |= {f"shift {shift}": sample_scenes(scenes, studio, shift=shift) for shift in shifts}
    return {name: likeness(video, scenes, *networks) for name, video in videos.items()}


def scorer_figures() -> dict[str, object]:
    """Of the text-image scorer: whether it knows prompts, and whether its image tower knows people."""
    scorer = TinyScorer.load(SCORER)
    torch.manual_seed(6)
    fresh = TinyScorer().requires_grad_(False)
    return {
        "prompts, walks": retrieval(scorer, "walks"),
        "prompts, turns": retrieval(scorer, "turns"),
        "people": verification(scorer.embed_images),
        "people, untrained": verification(fresh.embed_images, people=60),
    }


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


STAGES: dict[str, Callable[[Path], None]] = {
    "codec": make_codec,
    "recognizer": make_recognizer,
    "judge": make_judge,
    "detector": make_detector,
    "video": make_video,
    "turns": make_turns,
    "scorer": make_scorer,
    "figures": make_figures,
}


def main() -> None:
    """Run the named stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], metavar="stage", help=", ".join(STAGES))
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("/tmp"), help="folder for unfinished training"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    for stage in arguments.stages or STAGES:
        STAGES[stage](arguments.checkpoints)


if __name__ == "__main__":
    main()
