"""The core's knobs as widgets, and widgets' values as settings: names, help and limits are written there."""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from comfy_api.latest import io

from ._comfy import known, widgets_for_flags

Settings = TypeVar("Settings")
LARGEST = 2**31 - 1
"""Where a knob has no limit; without one the page would stop at 2048."""


def widgets(settings: type, *, plain: Collection[str] = (), without: Collection[str] = ()) -> list[Any]:
    """One widget for each knob.

    Args:
        plain: the knobs that everybody meets; the others are folded away, where the host can.
        without: knobs that are not a user's.
    """
    hints = get_type_hints(settings)
    return [
        _widget(declared, hints[declared.name], advanced=bool(plain) and declared.name not in plain)
        for declared in fields(settings)
        if declared.name not in without
    ]


def settings_of(kind: type[Settings], given: Mapping[str, Any], **more: Any) -> Settings:
    """The settings that a node's widgets hold, out of all its inputs."""
    names = {declared.name for declared in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if name in names}, **more)


def _widget(declared: Any, kind: Any, advanced: bool) -> Any:
    limits = declared.metadata
    about = {
        "default": declared.default,
        "tooltip": widgets_for_flags(limits["help"]),
        "advanced": advanced or None,
    }
    if kind is bool:
        return known(io.Boolean.Input, declared.name, **about)
    if get_origin(kind) is Literal:
        return known(io.Combo.Input, declared.name, options=list(get_args(kind)), **about)
    if kind is str:
        return known(io.String.Input, declared.name, **about)
    low, high = limits.get("min", -LARGEST), limits.get("max", LARGEST)
    if kind is int:
        # Told, because the page would draw a new number after each run for whatever is called a seed.
        about["control_after_generate"] = False
        return known(io.Int.Input, declared.name, min=int(low), max=int(high), **about)
    assert kind is float, f"{declared.name}: there is no widget for {kind}"
    return known(
        io.Float.Input,
        declared.name,
        min=float(low),
        max=float(high),
        step=_step(declared.default),
        round=False,
        **about,
    )


def _step(default: float) -> float:
    """A hundredth of the default's first digit: the page shows as many places as the step has."""
    return 10.0 ** (math.floor(math.log10(default)) - 2) if default else 0.01
