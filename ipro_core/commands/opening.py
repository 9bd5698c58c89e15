"""What several commands open in the same way: a studio from flags or from a run, scenes, an adapter."""

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..clips.person import read_pictures
from ..clips.prompts import SHIPPED, read_prompts
from ..clips.scenes import MANIFEST_SUFFIX, Scene, find_clips
from ..faces.packs import find_pack
from ..job import Job, adapter_of_run, check_run_fits, person_of, with_scorer
from ..models.base import AdaptedVideoModel
from ..models.lora import check_lora, import_lora, lora_settings
from ..models.wan_files import open_wan_file
from ..runs import read_config
from ..studio import Studio, Work
from ..tinyworld import open_tiny_world
from ..tinyworld.scenes import PROMPTS, tiny_person
from ..training.presets import PRESETS, Preset
from ..training.settings import SamplingSettings
from ..types import Framing
from ..wan_settings import SCORER, DeviceSettings, OtherFiles, WanFiles
from ..wan_studio import open_wan
from .flags import add_knobs, given_knobs, pack_roots, progress

logger = logging.getLogger("ipro")

SCHEDULE = ("steps", "shift", "first_tuned_step")
SAMPLING = (*SCHEDULE, *(knob.name for knob in fields(Framing)))
"""What may be chosen anew for videos of a model that is tuned already."""
WAN = tuple(file.name for file in fields(WanFiles))
FILES = (*WAN, *(file.name for file in fields(OtherFiles)))
DEVICE = tuple(knob.name for knob in fields(DeviceSettings))


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Flags for the networks; without them it is the embedded world's."""
    parser.add_argument("--faces", help="A face pack: its folder, or its name under a models/insightface.")
    add_knobs(parser, WanFiles, title="files of Wan; without --model it is the embedded world")
    add_knobs(parser, OtherFiles, title="other files")
    add_knobs(parser, DeviceSettings)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    add_knobs(parser, SamplingSettings, only=SCHEDULE)
    add_knobs(parser, Framing)


def open_job(
    options: argparse.Namespace,
    config: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    looks_at_faces: bool = True,
    tuned: bool = False,
) -> Job:
    """Real Wan where a network is named, else the embedded world.

    Args:
        config: of a run, or the settings of a LoRA; empty where there is none.
        given: knobs that were given as flags.
        preset: where settings come from without a config; by default the model's own.
        tuned: whether updates are what the memory is planned for.

    Raises:
        ValueError: files or settings that do not go together.
    """
    given = given or {}
    named = (
        asdict(WanFiles())
        | asdict(OtherFiles())
        | dict(config.get("files", {}))
        | given_knobs(options, *FILES)
    )
    files = {name: _absolute(named[name]) for name in FILES}
    files["faces"] = options.faces or named.get("faces", "")
    if named["judge"] and not Path(files["judge"]).exists():  # a pack's name, as --faces takes it
        files["judge"] = str(find_pack(named["judge"], pack_roots()).resolve())
    wan, wanted = (
        WanFiles(**{name: files[name] for name in WAN}),
        DeviceSettings(**given_knobs(options, *DEVICE)),
    )
    if wan.model:
        own = "local-5b" if open_wan_file(wan.model).kind == "TI2V-5B" else "local-14b"
        plan = _plan(config, preset or own).changed(**given)
        pack = find_pack(files["faces"] or "antelopev2", pack_roots()) if looks_at_faces else None
        tuning = (plan.method, plan.rank) if tuned else None
        studio = open_wan(wan, pack, plan.framing, wanted, tuning)
    else:
        strays = [name for name in WAN if name != "cache" and files[name]]
        if strays:
            raise ValueError(
                f"--{strays[0].replace('_', '-')} goes with a Wan network: give that with --model (without "
                "one it is the embedded world)."
            )
        plan = _plan(config, preset or "tiny").changed(**given)
        pack = find_pack(files["faces"], pack_roots()) if files["faces"] else None
        # Networks this small only lose by a second thread: measured 1.7 against 2.1 s an update on two cores.
        torch.set_num_threads(1)
        studio = open_tiny_world(pack, wanted.device or "cpu")
    memo = Path(files["cache"]) / "sha256.json"
    studio = with_scorer(studio, files["prompt_scorer"], files["face_encoder"], memo)
    asked = "first_tuned_step" in given
    # A preset speaks of two experts; a run and the embedded world know their own first step.
    settings = studio.fit(plan.method, asked=asked, known=asked or "loop" in config or not wan.model)
    return Job(studio, replace(plan, method=settings, framing=studio.framing), files)


PERSON = "a person"


def add_person(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--references",
        nargs="+",
        type=Path,
        default=[],
        help="Pictures of one person, or folders of them, for PersonalVideo.",
    )
    parser.add_argument(
        "--person", default="", help=f"What its prompts call the person; default: {PERSON}, or the run's."
    )


def scenes_of_person(
    references: Sequence[Path], job: Job, person: str, tiny_prompts: Sequence[str] = PROMPTS
) -> Sequence[Scene]:
    """What PersonalVideo is tuned and judged on: one person's pictures, with the prompts of a list.

    Args:
        person: what the prompts call the person.
        tiny_prompts: those of the embedded world; without pictures it is one of its people.

    Raises:
        ValueError: there is no picture, none can be read or shows a face, or there is no prompt.
    """
    if job.is_wan and not references:
        raise ValueError("PersonalVideo wants pictures of the person: give them with --references.")
    pictures = read_pictures(references) if references else tiny_person()
    own = tiny_prompts if not job.is_wan and not job.files["prompts"] else None
    prompts = own or read_prompts(job.files["prompts"] or SHIPPED, person)
    return person_of(job.studio, pictures, prompts)


def _plan(config: Mapping[str, Any], preset: str) -> Preset:
    return Preset.from_config(config) if "loop" in config else PRESETS[preset]


def _absolute(path: str) -> str:
    """A run goes on from wherever it is continued."""
    return str(Path(path).expanduser().resolve()) if path and path != SCORER else path


def judged_config(options: argparse.Namespace) -> dict[str, Any]:
    """What options.run or options.lora knows of its settings; {} for a LoRA of another tool, or neither."""
    if options.run and options.lora:
        raise ValueError("Give either --run, whose newest adapter is taken, or --lora.")
    if options.run:
        return read_config(options.run)
    return lora_settings(options.lora) if options.lora else {}


def warn_of_known_clips(clips: Sequence[Path], tuned_on: Sequence[str]) -> None:
    """Whoever judges on what was tuned on measures memory."""
    there = [place for place in tuned_on if Path(place).suffix != MANIFEST_SUFFIX or Path(place).exists()]
    known, judged = (
        {str(replace(clip, video=clip.video.resolve())) for clip in found}
        for found in (find_clips(there), find_clips(clips, "evaluation"))
    )
    known &= judged
    if known:
        logger.warning("The run was tuned on %s: judge it on other people.", ", ".join(sorted(known)))


def prepare(stages: Iterable[Work]) -> None:
    """Make what is missing of the scenes, with a bar for each stage."""
    for work in stages:
        for _ in progress(work.items, work.name, total=work.total):
            pass


def check_adapter(options: argparse.Namespace, studio: Studio) -> None:
    """Raise ValueError, before the network is opened, where options.run or options.lora is of another."""
    if options.lora:
        check_lora(options.lora, studio.base, studio.shapes)
    elif options.run:
        check_run_fits(options.run, studio)


def open_tuned(options: argparse.Namespace, studio: Studio) -> AdaptedVideoModel:
    """The studio's model with the newest adapter of options.run, with options.lora, or as it is."""
    model = studio.model.open()
    if options.run:
        model.place_adapter(adapter_of_run(options.run)[1])
    elif options.lora:
        import_lora(options.lora, model)
    return model
