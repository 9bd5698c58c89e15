"""Clips: real videos, or scenes of the tiny world, to tune and to judge on (Section 5.1)."""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from comfy_api.latest import io

from ..ipro_core.clips.manifest import MANIFEST, UNKNOWN, Source, Split, kept_clips
from ..ipro_core.clips.scenes import SUFFIXES, clip_of
from ..ipro_core.clips.settings import CurationSettings, MeasureSettings, VisionSettings
from ..ipro_core.clips.video import first_shown, probe, read_frames
from ..ipro_core.types import FacePool
from ..ipro_core.wan_settings import SCORER
from . import _comfy
from ._sockets import (
    CLIPS,
    DATASET,
    FACE_MODELS,
    FACE_POOL,
    ClipChoice,
    Dataset,
    StillChoice,
    frames_of,
    images_of,
)
from ._widgets import settings_of, widgets

CATEGORY = "1 Clips"
TUNABLE = ("tuning", "held_out", "checks")


class LoadClips(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "LoadClips",
            "Load Clips",
            CATEGORY,
            "Real clips from the host's input folder: one video, or all videos of a folder. What is asked of "
            "a clip's first frame is in a text file beside it: clip.txt beside clip.mp4.",
            inputs=[
                io.Combo.Input(
                    "source",
                    options=_sources(),
                    tooltip="A video in the input folder, or a folder of videos in it (its name ends in /).",
                )
            ],
            outputs=[CLIPS.Output(display_name="clips", tooltip="The clips, not read yet.")],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str) -> str:
        place = _comfy.inside(_comfy.input_folder(), source)
        files = sorted(place.glob("*")) if place.is_dir() else [place]
        return str([(str(file), file.stat().st_mtime_ns) for file in files if file.exists()])

    @classmethod
    def execute(cls, source: str) -> io.NodeOutput:
        return io.NodeOutput(ClipChoice.of(_comfy.inside(_comfy.input_folder(), source)))


def _sources() -> list[str]:
    """Videos in the input folder, and its folders that hold some."""
    root = _comfy.input_folder()
    videos = [path for suffix in SUFFIXES for path in (*root.glob(f"*{suffix}"), *root.glob(f"*/*{suffix}"))]
    folders = {f"{path.parent.name}/" for path in videos if path.parent != root}
    return [*sorted(folders), *sorted(path.name for path in videos if path.parent == root)]


class TinyWorldClips(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "TinyWorldClips",
            "Tiny World Clips",
            CATEGORY,
            "Scenes of the embedded world: drawn people who walk, turn and speak, for a first run that needs "
            "no file and no GPU.",
            inputs=[
                io.Combo.Input(
                    "people",
                    options=list(TUNABLE),
                    tooltip="tuning: people to tune on. held_out, checks: people and prompts that no "
                    "training has seen, to judge on.",
                ),
                io.Int.Input("count", default=400, min=1, max=100_000, tooltip="How many scenes."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=9999,
                    control_after_generate=False,
                    tooltip="Other scenes of the same people's world.",
                ),
            ],
            outputs=[CLIPS.Output(display_name="clips", tooltip="The scenes, not drawn yet.")],
        )

    @classmethod
    def execute(cls, people: str, count: int, seed: int) -> io.NodeOutput:
        return io.NodeOutput(ClipChoice(split=people, count=count, seed=seed))


class CurateClips(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        split = "Nobody who is in one of these clips is in one of the other output's."
        return _comfy.schema(
            "CurateClips",
            "Curate Clips",
            CATEGORY,
            "Keep the clips that are good to tune on, shot by shot, with a reason for each that is dropped: "
            "size and number of faces, coverage, one person throughout, sharpness, light, copies (5.1). No "
            "clip is touched, and other limits need no new measuring. What was seen is on a page, index.html "
            "in output/ipro/curated.",
            inputs=[
                CLIPS.Input("clips", tooltip="From Load Clips."),
                FACE_MODELS.Input("face_models", tooltip="Find and compare faces; any pack, as for tuning."),
                io.String.Input("name", default="clips", tooltip="Its folder in output/ipro/curated."),
                *widgets(
                    CurationSettings,
                    plain=("largest_face", "least_coverage", "most_people", "least_seconds"),
                ),
                *widgets(MeasureSettings, plain=("none",)),
                *widgets(VisionSettings, plain=("vision_model",), without=("vision_endpoint",)),
                io.String.Input("licence", default=UNKNOWN, tooltip=_SOURCE.format("licence")),
                io.String.Input("consent", default=UNKNOWN, tooltip=_SOURCE.format("consent")),
            ],
            outputs=[
                CLIPS.Output(display_name="clips", tooltip=f"Kept, to tune on. {split}"),
                CLIPS.Output(display_name="evaluation", tooltip=f"Kept, to judge on. {split}"),
                io.Int.Output(display_name="kept", tooltip="How many shots are kept, of both."),
                io.String.Output(display_name="page", tooltip="Where the page lies, in the output folder."),
            ],
            is_output_node=True,
        )

    @classmethod
    @_comfy.working("give smaller videos.")
    def execute(cls, clips: ClipChoice, face_models: Path, name: str, **given) -> io.NodeOutput:
        from ..ipro_core.curating import PAGE, Curation, CurationPlan
        from ..ipro_core.evaluation.curation_page import reasons

        if not clips.videos:
            raise ValueError("Clips of the tiny world need no curation: give videos, from Load Clips.")
        folder = _comfy.inside(_comfy.output_folder() / "ipro" / "curated", name)
        plan = CurationPlan(
            settings_of(MeasureSettings, given),
            settings_of(CurationSettings, given),
            settings_of(VisionSettings, given),
            Source(given["licence"], given["consent"]),
        )
        videos = list(dict.fromkeys(clip_of(place).video for place in clips.videos))
        curation = Curation(videos, folder, face_models, plan, "cuda" if torch.cuda.is_available() else "cpu")
        for stage in curation.stages():
            for _ in _comfy.shown(stage.items, stage.total):
                pass
        verdicts = curation.write()
        page = (folder / PAGE).relative_to(_comfy.output_folder()).as_posix()
        dropped = ", ".join(f"{rule} {first}" for rule, (first, _) in reasons(verdicts).items() if first)
        splits = Counter(verdict.split for verdict in verdicts if verdict.kept)
        kept = splits["tuning"] + splits["evaluation"]
        if not splits["tuning"]:
            raise ValueError(
                f"Of {len(verdicts)} shots none is kept to tune on ({dropped}): see {page}, change limits."
            )
        told = f"Kept {kept} of {len(verdicts)} shots; dropped: {dropped or 'none'}. See {page}."
        return io.NodeOutput(
            cls._split(folder, "tuning", splits),
            cls._split(folder, "evaluation", splits),
            kept,
            page,
            ui={"ipro_warning": [told]},
        )

    @staticmethod
    def _split(folder: Path, split: Split, splits: Counter) -> ClipChoice:
        return ClipChoice(tuple(kept_clips(folder / MANIFEST, split)) if splits[split] else (), split)


_SOURCE = "Of clips for which no .json beside them says their {}. These are faces of people."


class ShowClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "ShowClip",
            "Show Clip",
            CATEGORY,
            "One of the clips as frames: to look at, to build a face pool of, to begin a video with.",
            inputs=[
                CLIPS.Input("clips", tooltip="From Load Clips or Tiny World Clips."),
                io.Int.Input("index", default=0, min=0, max=100_000, tooltip="Which clip, from 0."),
                io.Int.Input(
                    "max_frames", default=0, min=0, max=100_000, tooltip="Frames to read at most; 0: all."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The clip."),
                io.Image.Output(
                    display_name="first_frame", tooltip="Its first frame, the input of image-to-video."
                ),
                io.String.Output(display_name="prompt", tooltip="What is asked of the first frame."),
                io.Float.Output(display_name="fps", tooltip="Frames per second."),
            ],
        )

    @classmethod
    def execute(cls, clips: ClipChoice, index: int, max_frames: int) -> io.NodeOutput:
        count = len(clips.videos) or clips.count
        if index >= count:
            raise ValueError(f"There are {count} clips, counted from 0: choose an index below {count}.")
        if clips.videos:
            clip = clip_of(clips.videos[index])
            prompt, fps = clip.prompt, probe(clip.video).fps
            first = first_shown(clip.start, fps)
            last = None if clip.end is None else first_shown(clip.end, fps)
            count = min(max_frames or sys.maxsize, sys.maxsize if last is None else last - first)
            frames_TCHW = read_frames(clip.video, first, count)
        else:
            from ..ipro_core.tinyworld.scenes import tiny_scenes

            *_, scene = tiny_scenes(clips.split, index + 1, clips.seed)
            prompt, fps = scene.prompt, 8.0
            frames_TCHW = scene.frames_TCHW[: max_frames or None]
        return io.NodeOutput(images_of(frames_TCHW), images_of(frames_TCHW[:1]), prompt, fps)


class BuildDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "BuildDataset",
            "Build Dataset",
            CATEGORY,
            "Clips to tune on, and by which networks their faces are found and compared. Each clip's own "
            "faces are its pool (4.2), unless one pool is given for all.",
            inputs=[
                CLIPS.Input("clips", tooltip="Clips to tune on."),
                FACE_MODELS.Input("face_models", tooltip="Find and compare faces while tuning."),
                FACE_POOL.Input(
                    "pool", optional=True, tooltip="One person's faces, where all clips show that person."
                ),
                *more_pools(),
                _comfy.known(
                    io.Combo.Input,
                    "face_encoder",
                    options=[_comfy.NONE, SCORER, *_comfy.model_files("clip_vision")],
                    optional=True,
                    advanced=True,
                    tooltip="CLIP's image encoder in models/clip_vision, which compares faces for the reward "
                    "in the recogniser's place, as in the paper's Table 4; measures stay the recogniser's. "
                    f"{SCORER}: the image tower of the scorer that the tiny world's model brings.",
                ),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Train.")],
        )

    @classmethod
    def execute(
        cls, clips: ClipChoice, face_models: Path, face_encoder: str = _comfy.NONE, pool=None, **more
    ) -> io.NodeOutput:
        pools = given_pools(pool, more)
        encoder = SCORER if face_encoder == SCORER else _comfy.model_file("clip_vision", face_encoder)
        if pools and encoder:
            raise ValueError(
                "A pool's faces are the recogniser's, and CLIP's do not compare with them: choose one."
            )
        return io.NodeOutput(Dataset(clips, face_models, pools, face_encoder=encoder))


class DatasetFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "DatasetFromImage",
            "Dataset from Image",
            CATEGORY,
            "Tune on input images and a prompt as the host has them, without clips: whose face is to be "
            "kept, a pool says.",
            inputs=[
                io.Image.Input("first_frames", tooltip="One input image or several, each with a face."),
                io.Conditioning.Input("positive", tooltip="The prompt, from CLIP Text Encode with UMT5."),
                FACE_POOL.Input("pool", tooltip="The person's faces."),
                FACE_MODELS.Input("face_models", tooltip="The pack that built the pool."),
                *more_pools(),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Train.")],
        )

    @classmethod
    @_comfy.working("give fewer or smaller images.")
    def execute(cls, first_frames, positive, pool, face_models: Path, **more) -> io.NodeOutput:
        text_LD = positive[0][0][0].clone().float().cpu()
        images = StillChoice(frames_of(first_frames), text_LD)
        return io.NodeOutput(Dataset(images, face_models, given_pools(pool, more)))


def more_pools() -> list:
    told = "Another person whom all clips show; then everybody counts, each against the own pool."
    return [FACE_POOL.Input(f"pool_{n}", optional=True, tooltip=told) for n in (2, 3, 4)]


def given_pools(pool: FacePool | None, more: Mapping[str, FacePool | None]) -> tuple[FacePool, ...]:
    """Raises ValueError where there are others without a first."""
    others = [more[name] for name in sorted(more)]
    if pool is None and any(others):
        raise ValueError("There are others beside nobody: connect the subject's pool to pool first.")
    return tuple(one for one in (pool, *others) if one is not None)


NODES = [LoadClips, TinyWorldClips, CurateClips, ShowClip, BuildDataset, DatasetFromImage]
