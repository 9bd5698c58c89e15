"""`ipro sample`: a first frame and a prompt, or a prompt alone, become a video."""

import argparse
from pathlib import Path
from typing import Any

import torch

from ..clips.scenes import ShownScene, fit
from ..clips.video import read_image, write_video
from ..studio import Sampler
from .flags import given_knobs
from .opening import (
    SAMPLING,
    add_networks,
    add_sampling,
    check_adapter,
    judged_config,
    open_job,
    open_tuned,
    prepare,
)


def sample(options: argparse.Namespace) -> dict[str, Any]:
    """Make a video from a first frame and a prompt, with or without a LoRA."""
    config = judged_config(options)
    job = open_job(options, config, given_knobs(options, *SAMPLING), looks_at_faces=False)
    studio, settings = job.studio, job.plan.method
    check_adapter(options, studio)
    framing = studio.framing
    if options.image:
        first_CHW = fit(read_image(options.image)[None], framing)[0]
    elif studio.kind.startswith("T2V"):
        first_CHW = torch.zeros(3, framing.height, framing.width)  # the model is not told of it
    else:
        raise ValueError(f"{studio.kind} makes a video of a picture: give its first frame.")
    frames_TCHW = first_CHW.expand(framing.frames, -1, -1, -1)
    scene = ShownScene((options.image or options.out).stem, options.prompt, frames_TCHW)
    prepare(studio.prepare([scene], settings, [options.seed], faces=False))
    sampler = Sampler(studio, open_tuned(options, studio), studio.codec.open(), settings)
    video_TCHW = sampler.generate(scene, options.seed)
    write_video(options.out, video_TCHW, studio.framing.fps)
    frames, fps = len(video_TCHW), studio.framing.fps
    print(f"{options.out}: {frames} frames at {fps:g} per second")
    return {"video": str(options.out), "frames": frames, "fps": fps, "seed": options.seed}


def sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, nargs="?", help="The first frame; none for text-to-video.")
    parser.add_argument("--prompt", default="", help="What happens.")
    parser.add_argument("--run", type=Path, help="A run: its networks, and its newest adapter.")
    parser.add_argument("--lora", type=Path, help="Or a LoRA to apply.")
    parser.add_argument("--seed", type=int, default=0, help="Of the noise.")
    parser.add_argument("--out", "-o", type=Path, default=Path("sample.mp4"), help="The video to write.")
    add_networks(parser)
    add_sampling(parser)
