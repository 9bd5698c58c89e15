"""Flags that several commands share, made from the knobs where there are knobs."""

import argparse
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..faces.packs import load_recognizer
from ..types import FacePool

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterable[Item]:
    """The items, with a bar and the time left on stderr."""
    return progress_bar(what, total, items)


def progress_bar(what: str, total: int | None = None, items: Iterable[Any] | None = None) -> Any:
    """A bar on stderr that its owner moves by `update`."""
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, unit="", leave=False, dynamic_ncols=True)


def add_knobs(
    parser: argparse.ArgumentParser,
    settings: type,
    only: Sequence[str] = (),
    title: str = "",
    without: Collection[str] = (),
) -> None:
    """One flag for each knob of a settings class, or for some; those not given stay out of the options."""
    hints = get_type_hints(settings)
    title = title or settings.__name__.removesuffix("Settings").lower() + " settings"
    group = parser.add_argument_group(title)
    for declared in fields(settings):
        if (only and declared.name not in only) or declared.name in without:
            continue
        kind, flag = hints[declared.name], "--" + declared.name.replace("_", "-")
        about: dict[str, Any] = {"help": declared.metadata["help"], "default": argparse.SUPPRESS}
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **about)
        elif get_origin(kind) is Literal:
            group.add_argument(flag, choices=get_args(kind), **about)
        else:
            group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **about)


def given_knobs(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the named options that were given as flags."""
    return {name: value for name, value in vars(options).items() if name in names}


def pack_roots() -> list[Path]:
    """Where packs lie: $IPRO_FACES, a ComfyUI in the working or home folder, InsightFace's own folder."""
    named = [Path(os.environ["IPRO_FACES"])] if "IPRO_FACES" in os.environ else []
    return [*named, *(models / "insightface" for models in models_folders()), Path.home() / ".insightface"]


def models_folders() -> list[Path]:
    """The folders models of a ComfyUI in the working or home folder."""
    return [host / "models" for host in (Path(), Path("ComfyUI"), Path.home() / "ComfyUI")]


def pack_of(pool: FacePool) -> Path:
    """The pack, of those on this machine, whose recogniser built the pool.

    Raises:
        ValueError: none did.
    """
    name = pool.recognizer.split(" ")[0]
    for file in sorted(file for root in pack_roots() for file in root.glob(f"models/*/{name}")):
        if load_recognizer(file).name == pool.recognizer:
            return file.parent
    raise ValueError(
        f"The pool was built with {pool.recognizer}: give the face pack that holds it with --faces."
    )
