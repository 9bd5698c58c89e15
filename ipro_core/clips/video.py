"""Video files in and out: frames by presentation time, forward decoding only (the clips of Section 5.1).

Frames are RGB tensors (T, 3, H, W), float32 in [0, 1], turned upright. A file is always decoded from its
beginning: seeking to single frames is slower and, at a variable frame rate, hits the wrong ones.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

log = logging.getLogger("ipro")

# Matroska and Flash keep times in whole milliseconds, so a time stamp may be this much off, in seconds.
TIME_ROUNDING = 1e-3


@dataclass(frozen=True)
class VideoFacts:
    """What a video file holds, as `probe` counted it."""

    frames: int
    fps: float
    """Mean frames per second."""
    duration: float
    """Seconds, the last frame's own time included."""
    width: int
    """Pixels as shown, after the rotation."""
    height: int
    rotation: int
    """Degrees, counter-clockwise, that the stored picture is turned by for showing: 0, 90, 180 or 270."""
    codec: str
    variable_rate: bool


def probe(path: Path | str) -> VideoFacts:
    """Count the frames of a video and read its size; one frame is decoded.

    Raises:
        ValueError: the file is missing, no video, or damaged.
    """
    times = np.array(frame_times(path))
    with _opened(path) as (container, stream):
        codec, rate = stream.codec_context.name, _rate(stream)
        frame = next(_frames(container, stream), None)
    if frame is None or len(times) == 0:
        raise ValueError(f"{path} holds no frame: choose another file.")
    gaps = np.diff(times)
    variable = bool((abs(gaps - np.median(gaps)) > 0.1 * np.median(gaps) + 2 * TIME_ROUNDING).any())
    duration = float(times[-1] - times[0]) + 1 / rate
    fps = len(times) / duration if variable else rate
    turns = _quarter_turns(frame)
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    return VideoFacts(len(times), fps, duration, width, height, 90 * turns, codec, variable)


def frame_times(path: Path | str) -> list[float]:
    """When each frame is shown, in the file's own seconds; nothing is decoded.

    Raises:
        ValueError: the file is missing, no video, or damaged.
    """
    with _opened(path) as (container, stream):
        shown = (packet for packet in _packets(container, stream) if not packet.is_discard)
        return sorted(float(packet.pts * packet.time_base) for packet in shown if packet.pts is not None)


def first_shown(seconds: float, fps: float) -> int:
    """The first frame, of those that `read_frames` gives at `fps`, that shows what comes at `seconds`."""
    return max(0, math.ceil((seconds - TIME_ROUNDING) * fps))


def read_frames(
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    *,
    fps: float | None = None,
    max_side: int | None = None,
) -> Tensor:
    """Frames start … start + count − 1 of a video, fewer if it ends before: (T, 3, H, W) in [0, 1].

    With `fps` the video is resampled by time stamp first: frame k is the one on show at k / fps seconds. With
    `max_side` larger frames are shrunk until the longer side has that many pixels.

    Raises:
        ValueError: the file is missing, no video, damaged before the last frame asked for, or ends before
            `start`. A Matroska or transport stream that was cut short reads as a shorter one.
    """
    return torch.cat(list(iterate_frames(path, start, count, fps=fps, max_side=max_side)))


def iterate_frames(
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    *,
    fps: float | None = None,
    max_side: int | None = None,
    chunk: int = 32,
) -> Iterator[Tensor]:
    """The frames of `read_frames`, `chunk` at a time, for videos that do not fit into memory."""
    if start < 0 or (count is not None and count < 1):
        raise ValueError(
            f"Frames count from 0 and at least one must be read, not {count} from frame {start}."
        )
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"The frame rate to read at must be a positive number, not {fps}.")
    if max_side is not None and max_side < 2:
        raise ValueError(f"The longer side must keep at least 2 pixels, not {max_side}.")
    with _opened(path) as (container, stream):
        frames = _frames(container, stream)
        if fps is not None:
            frames = _resample(frames, fps, _rate(stream))
        wanted = islice(frames, start, None if count is None else start + count)
        first = next(wanted, None)
        if first is None:
            raise ValueError(f"{path} ends before frame {start}: start earlier, or choose a longer clip.")
        _warn_of_guessed_colours(path, first)
        shrink = min(1.0, max_side / max(first.width, first.height)) if max_side else 1.0
        # One size for all: a stream may change its size on the way.
        size = max(1, round(first.height * shrink)), max(1, round(first.width * shrink))
        pictures = [_picture(first, size)]
        for frame in wanted:
            if len(pictures) == chunk:
                yield torch.stack(pictures).float().div_(255)
                pictures = []
            pictures.append(_picture(frame, size))
        yield torch.stack(pictures).float().div_(255)


def write_video(path: Path | str, frames_TCHW: Tensor, fps: float, *, crf: int = 16) -> None:
    """Write an mp4 that browsers play and that starts before it is loaded: H.264, yuv420p, BT.709, no sound.

    Odd sizes are padded to even ones by repeating the last row or column. `crf` is x264's: lower is better.
    The file appears complete or not at all.

    Raises:
        ValueError: there is no frame, or fps is not positive.
        OSError: the folder is missing or the disk is full.
    """
    import av

    path = Path(path)
    if not len(frames_TCHW) or not fps > 0:
        raise ValueError(f"A video needs a frame and a positive rate, not {len(frames_TCHW)} at {fps} fps.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist.")
    height, width = frames_TCHW.shape[2:]
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.mp4")
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)}
            context = stream.codec_context
            # 1 is BT.709 in all three, and limited range.
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
            for frame_CHW in frames_TCHW.detach():
                levels = frame_CHW.permute(1, 2, 0).float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
                levels = np.pad(levels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels), format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_picture(path: Path | str, picture_CHW: Tensor) -> None:
    """Write a picture in [0, 1] as its file's name says."""
    from PIL import Image

    levels_HWC = picture_CHW.detach().cpu().clamp(0, 1).mul(255).round().byte().movedim(0, 2)
    Image.fromarray(levels_HWC.contiguous().numpy()).save(path)


def read_image(path: Path | str) -> Tensor:
    """A picture file, turned upright: (3, H, W) in [0, 1].

    Raises:
        ValueError: the file is missing or no picture.
    """
    from PIL import Image, ImageOps

    if not Path(path).is_file():
        raise ValueError(f"There is no picture at {path}.")
    try:
        with Image.open(path) as image:
            levels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}).") from None
    return torch.from_numpy(levels).permute(2, 0, 1).float().div(255)


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; closed in the end, FFmpeg's errors turned into one sentence."""
    import av
    from av.error import FFmpegError

    if not Path(path).is_file():
        raise ValueError(f"There is no video file at {path}.")
    try:
        # A play list may name other files or addresses: only this file is ever opened.
        container = av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except FFmpegError as error:
        raise ValueError(f"{path} cannot be opened as a video ({error.strerror}).") from None
    with container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream: choose a file with pictures in it.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            yield container, stream
        except (FFmpegError, EOFError):
            raise ValueError(f"{path} is damaged or cut short: get the file again.") from None


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of `stream`. Those of the sound are looked at too: a file can end in the midst of one, and
    FFmpeg would then simply stop as if the video were over."""
    for packet in container.demux():
        if packet.is_corrupt:
            raise EOFError
        if packet.stream.index == stream.index:
            yield packet


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames in the order of showing."""
    for packet in _packets(container, stream):
        yield from packet.decode()


def _rate(stream: Any) -> float:
    """Mean frames per second as the file declares it; 25 where it does not."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def _resample(frames: Iterator[Any], fps: float, own_rate: float) -> Iterator[Any]:
    """For k = 0, 1, … the frame on show at k / fps seconds after the first one."""
    shown, start, end, k = None, 0.0, 0.0, 0
    for index, frame in enumerate(frames):
        time = index / own_rate if frame.pts is None else float(frame.pts * frame.time_base)
        if shown is None:
            start = time
        while shown is not None and k / fps < time - start - TIME_ROUNDING:
            yield shown
            k += 1
        shown, end = frame, time - start + 1 / own_rate
    while shown is not None and k / fps < end - TIME_ROUNDING:
        yield shown
        k += 1


def _quarter_turns(frame: Any) -> int:
    """How often the stored picture is turned by 90 degrees, counter-clockwise, to be shown upright."""
    return round(frame.rotation / 90) % 4


def _picture(frame: Any, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W), upright."""
    levels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    if (frame.height, frame.width) != size:
        # Deliberately not by FFmpeg, which would halve the colour's width once more.
        levels = interpolate(levels[None], size=size, mode="bilinear", antialias=True)[0]
    return torch.rot90(levels, _quarter_turns(frame), (1, 2)).contiguous()


def _warn_of_guessed_colours(path: Path | str, frame: Any) -> None:
    unspecified = 2
    if (
        int(frame.colorspace) == unspecified
        and not frame.format.is_rgb
        and min(frame.width, frame.height) >= 720
    ):
        log.warning(
            "%s does not say how its colours are coded; they are read as BT.601, and if they are BT.709, "
            "skin is off by 6 levels of 255. To be sure, convert the file once to one with a colour tag.",
            path,
        )
