"""Which dimensions of quality may be asked for: knobs alone, so that a menu of them imports no network."""

from dataclasses import dataclass

from ..types import knob


@dataclass(frozen=True)
class Dimension:
    """One of VBench's dimensions."""

    short: str
    name: str
    figures: tuple[str, ...]
    networks: tuple[str, ...]
    extra: bool = False
    """Only where it is named: its licence forbids commercial use."""


DIMENSIONS = (
    Dimension("sc", "Subject consistency", ("sc",), ("dino",)),
    Dimension("bc", "Background consistency (whole frame)", ("bc",), ("clip_b32",)),
    Dimension("aq", "Aesthetic quality", ("aq",), ("clip_l14", "aesthetic")),
    Dimension("tf", "Temporal flickering (rewards stillness)", ("tf",), ()),
    Dimension("dd", "Dynamic degree", ("dd_dynamic", "dd_top5_px", "dd_top5_rel"), ("raft",)),
    Dimension("iq", "Imaging quality", ("iq",), ("musiq",), extra=True),
    Dimension("ms", "Motion smoothness", ("ms",), ("amt",), extra=True),
    Dimension(
        "farneback", "Farnebäck's flow, no dynamic degree", ("farneback_top5_px", "farneback_top5_rel"), ()
    ),
)
BY_SHORT = {dimension.short: dimension for dimension in DIMENSIONS}


@dataclass(frozen=True)
class QualitySettings:
    """Which dimensions, and where their weights lie; each is looked for in the folders of models."""

    quality: str = knob(
        "",
        "VBench-compatible quality of the videos: sc, bc, aq, tf, dd, farneback, and iq, ms, whose networks "
        "forbid commercial use, with commas between; all: the first five; empty: none.",
    )
    dino: str = knob("", "DINO ViT-B/16 for sc: a .safetensors file or its folder.")
    clip_b32: str = knob("", "CLIP ViT-B/32 for bc: a .safetensors file or its folder.")
    clip_l14: str = knob("", "CLIP ViT-L/14 for aq: a .safetensors file or its folder.")
    aesthetic: str = knob("", "LAION's linear head for aq, as .safetensors.")
    raft: str = knob("", "RAFT for dd, as .safetensors.")
    musiq: str = knob("", "MUSIQ for iq, as .safetensors; for pyiqa, PolyForm Noncommercial.")
    amt: str = knob("", "AMT-S for ms, as .onnx; CC BY-NC 4.0.")

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """
        Raises:
            ValueError: one is unknown.
        """
        words = [word.strip().lower() for word in self.quality.split(",") if word.strip()]
        names = [name for word in words for name in (_usual() if word == "all" else [word])]
        for name in names:
            if name not in BY_SHORT:
                raise ValueError(
                    f"There is no dimension {name} of quality: choose of {', '.join(BY_SHORT)}, or all."
                )
        return tuple(BY_SHORT[name] for name in dict.fromkeys(names))


def _usual() -> list[str]:
    return [d.short for d in DIMENSIONS if not d.extra and d.short != "farneback"]
