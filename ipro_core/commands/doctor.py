"""`ipro doctor`: what a job needs, what of it is here, what one update would take."""

import argparse
from pathlib import Path
from typing import Any

from ..doctor import FOLDERS, JOBS, diagnose
from ..types import Framing
from ..wan_settings import SIZES
from .flags import add_knobs, given_knobs, models_folders


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """List the files that a job needs, where each of them lies or where to get it, and the plan that fits."""
    roots = [options.models] if options.models else models_folders()
    places = {name: [root / name for root in roots if (root / name).is_dir()] for name in FOLDERS}
    given = Framing(**given_knobs(options, "width", "height", "frames"))
    framing = given.filled(SIZES.get(options.job, Framing(1, 1, 1)))
    found = diagnose(options.job, places, framing, options.device)
    print(found.text())
    return {
        "job": options.job,
        "ready": found.ready,
        "machine": found.machine,
        "plan": found.plan,
        "files": [
            {
                "what": finding.need.what,
                "found": [str(path) for path in finding.found],
                "folder": finding.need.folder,
                "name": finding.need.name,
                "source": finding.need.source,
                "licence": finding.need.licence,
                "optional": finding.need.optional,
            }
            for finding in found.findings
        ],
    }


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--job", choices=list(JOBS), default="I2V-A14B", help="What is to be tuned.")
    parser.add_argument("--models", type=Path, help="A ComfyUI's folder models; default: those found here.")
    parser.add_argument("--device", default="", help="What is planned for; default: the first GPU.")
    add_knobs(parser, Framing, ("width", "height", "frames"))
