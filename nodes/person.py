"""Clips of nobody: one person's pictures and a list of prompts, for PersonalVideo."""

from pathlib import Path

from comfy_api.latest import io

from ..ipro_core.clips.settings import VisionSettings
from . import _comfy
from ._sockets import DATASET, FACE_MODELS, Dataset, PersonChoice, frames_of

CATEGORY = "1 Clips"


class PromptList(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "PromptList",
            "Prompt List",
            CATEGORY,
            "Prompts for one person in many places, a prompt a line, with {person} for who it is: the fifty "
            "that are shipped, or a language model's on an OpenAI-compatible server.",
            inputs=[
                io.String.Input(
                    "model",
                    default="",
                    tooltip="A language model's name on the server, Ollama's on this machine unless "
                    "IPRO_VISION_ENDPOINT says another; empty: the shipped list.",
                ),
                io.Int.Input("count", default=50, min=1, max=500, tooltip="How many the model is to write."),
                io.String.Input(
                    "about", default="", tooltip="What they should be of, such as: scenes of a wedding."
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompts", tooltip="For Dataset from Pictures: edit as you like."
                )
            ],
        )

    @classmethod
    @_comfy.working("take a smaller model.")
    def execute(cls, model: str, count: int, about: str) -> io.NodeOutput:
        from ..ipro_core.clips.prompts import SHIPPED, ask_prompts
        from ..ipro_core.clips.vision import VisionClient

        if not model:
            return io.NodeOutput(SHIPPED.read_text(encoding="utf-8"))
        kept = _comfy.output_folder() / "ipro" / "prompts.jsonl"
        kept.parent.mkdir(parents=True, exist_ok=True)
        client = VisionClient(VisionSettings(vision_model=model), kept, "Wishes for prompts")
        return io.NodeOutput("\n".join(ask_prompts(client, count, about)))


class DatasetFromPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "DatasetFromPictures",
            "Dataset from Pictures",
            CATEGORY,
            "One person from a few pictures, in videos of any prompt, for the PersonalVideo objective: "
            "nothing need be filmed. Text-to-video is told the prompt alone; in image-to-video the pictures "
            "are first frames, in turn.",
            inputs=[
                io.Image.Input("pictures", tooltip="One picture or several, each with the person's face."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="A prompt a line, {person} for who it is: from Prompt List, or your own.",
                ),
                io.String.Input(
                    "person",
                    default="a person",
                    tooltip="What the prompts call the person: a word, or words.",
                ),
                FACE_MODELS.Input("face_models", tooltip="Find and compare faces while tuning."),
                io.Combo.Input(
                    "scorer",
                    options=[_comfy.NONE, *_comfy.model_files("clip_vision")],
                    tooltip="HPSv2 or CLIP with both towers, in models/clip_vision, for the semantic reward; "
                    "none: the tiny world's own, or a semantic_weight of 0.",
                ),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Train, with PersonalVideo.")],
        )

    @classmethod
    @_comfy.working("give fewer or smaller pictures.")
    def execute(cls, pictures, prompts: str, person: str, face_models: Path, scorer: str) -> io.NodeOutput:
        from ..ipro_core.clips.prompts import prompts_of

        told = prompts_of(prompts, person)
        if not told:
            raise ValueError("There is no prompt: connect Prompt List to prompts, or write a prompt a line.")
        choice = PersonChoice(tuple(frames_of(pictures).unbind()), tuple(told))
        return io.NodeOutput(Dataset(choice, face_models, scorer=_comfy.model_file("clip_vision", scorer)))


NODES = [PromptList, DatasetFromPictures]
