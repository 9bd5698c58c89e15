"""What the page is told of videos that were judged: to play beside each other, with each frame's likeness."""

from typing import Any

from torch import Tensor

from ..ipro_core.clips.video import write_video
from . import _comfy


def told(
    fps: float, videos: dict[str, Tensor], curves: list[Tensor], figures: dict[str, Any], warning: str
) -> dict[str, list[Any]]:
    """For the page: videos to play beside each other, and how like each frame is."""
    shown = []
    for label, frames_TCHW in videos.items():
        place = _comfy.temp_file("ipro_compare", ".mp4")
        write_video(place.path, frames_TCHW, fps)
        shown.append({"label": label, **place.told})
    similarity = [[value if value == value else None for value in curve.tolist()] for curve in curves]
    message = {"fps": fps, "frames": len(similarity[0]), "videos": shown, "similarity": similarity}
    message |= {"figures": figures, "warning": warning}
    return {"ipro_compare": [message], "ipro_warning": [warning] if warning else []}
