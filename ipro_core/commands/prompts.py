"""`ipro prompts`: a list of prompts for one person, shipped or by a language model."""

import argparse
from pathlib import Path
from typing import Any

from ..clips.prompts import SHIPPED, ask_prompts, prompt_list, read_prompts
from ..clips.settings import VisionSettings
from ..clips.vision import VisionClient
from ..files import write_atomically
from ..types import check_knobs
from .flags import add_knobs, given_knobs

ASKED = ("vision_endpoint", "vision_timeout", "vision_tries")


def prompts(options: argparse.Namespace) -> dict[str, Any]:
    """Write a list of prompts for PersonalVideo: the fifty that are shipped, or a language model's."""
    settings = VisionSettings(vision_model=options.model, **given_knobs(options, *ASKED))
    check_knobs(settings)
    if options.model:
        client = VisionClient(settings, options.out.with_suffix(".jsonl"), "Wishes for prompts")
        made = ask_prompts(client, options.count, options.about)
        write_atomically(options.out, prompt_list(made, f"By {options.model}").encode())
    else:
        write_atomically(options.out, SHIPPED.read_bytes())
        made = read_prompts(options.out)
    print(f"{options.out}: {len(made)} prompts")
    return {"prompts": str(options.out), "count": len(made)}


def prompts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", "-o", type=Path, default=Path("prompts.txt"), help="The list to write.")
    parser.add_argument(
        "--model",
        default="",
        help="A language model's name on the server; none: the shipped list is written.",
    )
    parser.add_argument("--count", type=int, default=50, help="How many the model is to write.")
    parser.add_argument("--about", default="", help="What they should be of, such as: scenes of a wedding.")
    add_knobs(parser, VisionSettings, ASKED, title="the server")
