"""`ipro curate`: clips of which only those are kept that are good to tune and to judge on."""

import argparse
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..clips.curation import CurationSettings
from ..clips.manifest import MANIFEST, UNKNOWN, Source
from ..clips.measures import MeasureSettings
from ..clips.scenes import find_videos
from ..clips.vision import VisionSettings
from ..curating import PAGE, Curation, CurationPlan
from ..evaluation.curation_page import reasons
from ..faces.packs import find_pack
from ..types import check_knobs
from .flags import add_knobs, given_knobs, pack_roots
from .opening import prepare

Settings = TypeVar("Settings")


def curate(options: argparse.Namespace) -> dict[str, Any]:
    """Measure clips and keep those that Section 5.1 asks for, each with a reason; no clip is touched."""
    plan = CurationPlan(
        _settings(options, MeasureSettings),
        _settings(options, CurationSettings),
        _settings(options, VisionSettings),
        Source(options.licence, options.consent, options.source),
    )
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pack = find_pack(options.faces, pack_roots())
    curation = Curation(find_videos(options.clips), options.out, pack, plan, device)
    prepare(curation.stages())
    verdicts = curation.write()
    kept, dropped = [verdict for verdict in verdicts if verdict.kept], reasons(verdicts)
    splits = Counter(verdict.split for verdict in kept)
    print(
        f"kept {len(kept)} of {len(verdicts)} shots: {splits['tuning']} for tuning, "
        f"{splits['evaluation']} for evaluation"
    )
    for rule, (first, every) in dropped.items():
        print(f"{rule:<14} drops {first:>5}   ({every} in all)")
    print(f"manifest       {options.out / MANIFEST}\npage           {options.out / PAGE}")
    return {
        "manifest": str(options.out / MANIFEST),
        "page": str(options.out / PAGE),
        "shots": len(verdicts),
        "kept": len(kept),
        "tuning": splits["tuning"],
        "evaluation": splits["evaluation"],
        "dropped": {rule: first for rule, (first, _) in dropped.items() if first},
    }


def curate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clips", nargs="+", type=Path, help="Videos, or folders of them.")
    parser.add_argument("--out", "-o", type=Path, required=True, help="The curation's folder.")
    where = "A face pack: its folder, or its name under a models/insightface; default: antelopev2."
    parser.add_argument("--faces", default="antelopev2", help=where)
    parser.add_argument("--device", default="", help="Where faces are looked for; default: the first GPU.")
    for name in ("licence", "consent", "source"):
        about = f"Of clips for which no .json beside them says their {name}."
        parser.add_argument(f"--{name}", default=UNKNOWN, help=about)
    for group in (MeasureSettings, CurationSettings, VisionSettings):
        add_knobs(parser, group)


def _settings(options: argparse.Namespace, kind: type[Settings]) -> Settings:
    settings = kind(**given_knobs(options, *(knob.name for knob in fields(kind))))  # type: ignore[arg-type]
    check_knobs(settings)
    return settings
