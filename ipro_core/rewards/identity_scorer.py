"""Identity-GRPO's released scorer as a reward: a vision-language model with a linear head (Qwen2.5-VL-3B;
arXiv:2510.14256).

It was never run: its weights were not at hand. What is asked of it follows its published configuration: one
special token, at whose place a linear layer reads the score off the last hidden state; reference images, five
frames spread evenly, at most 399,360 pixels each. The input image, which is the video's first frame, is the
reference. Nothing is downloaded, and no pickle is opened: a released .pth file has to be turned into
safetensors first, its LoRA merged.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ..types import GeneratedVideo, RewardScore, knob

TOKEN = "<|SA_reward|>"
HEAD = "rm_head.weight"
PROMPT = "prompt.txt"
ADVICE = (
    "give a folder with the merged model as transformers saves it (config.json, tokenizer, processor, "
    f".safetensors that also hold {HEAD}), and with the scorer's prompt in {PROMPT}"
)


@dataclass(frozen=True)
class IdentityScorerReward:
    """Identity-GRPO's released scorer, a vision-language model of three billion numbers, from a folder of
    yours. Untested: its weights were not at hand. It has no gradient here: for GRPO."""

    differentiable: ClassVar[bool] = False

    scorer_folder: str = knob("", "The scorer's folder: the merged model in safetensors, and its prompt.txt.")
    scored_frames: int = knob(5, "Frames it looks at, spread evenly.", min=2)
    scored_pixels: int = knob(399_360, "Larger frames are shrunk to so many pixels.", min=784)

    @torch.no_grad()
    def __call__(self, video: GeneratedVideo) -> RewardScore:
        frames_TCHW = video.frames_TCHW
        if frames_TCHW is None:
            raise ValueError("This reward looks at the video itself, not at its faces: give its frames.")
        chosen = (
            torch.linspace(0, len(frames_TCHW) - 1, min(self.scored_frames, len(frames_TCHW))).round().long()
        )
        looked = shrunk(frames_TCHW[chosen.to(frames_TCHW.device)].detach().clamp(0, 1), self.scored_pixels)
        value = open_scorer(self.scorer_folder, str(frames_TCHW.device)).score(looked[0], looked)
        everywhere_T = torch.ones(len(frames_TCHW), dtype=torch.bool)
        return RewardScore(value, value.expand(len(frames_TCHW)).clone(), everywhere_T)


class Scorer(NamedTuple):
    """The open model with what it is asked."""

    model: Any
    processor: Any
    head_1D: Tensor
    prompt: str

    def score(self, reference_CHW: Tensor, frames_TCHW: Tensor) -> Tensor:
        """How well the video keeps the faces of the reference image, a scalar."""
        content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": self.prompt}]
        chat = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        picture, *_ = pixels = [(frame * 255).round().byte().cpu() for frame in (reference_CHW, *frames_TCHW)]
        asked = self.processor(
            text=[text], images=[picture], videos=[torch.stack(pixels[1:])], return_tensors="pt"
        ).to(self.model.device)
        (places,) = (asked["input_ids"][0] == self.processor.tokenizer.convert_tokens_to_ids(TOKEN)).nonzero(
            as_tuple=True
        )
        if len(places) != 1:
            raise ValueError(f"The scorer's {PROMPT} has {len(places)} of {TOKEN}: it wants one.")
        hidden_LD = self.model.model(**asked).last_hidden_state[0]
        return (hidden_LD[places[0]].float() @ self.head_1D[0].float()).cpu()


@lru_cache(maxsize=1)
def open_scorer(folder: str, device: str) -> Scorer:
    """
    Raises:
        ValueError: transformers is missing, or something of the folder.
    """
    place = Path(folder)
    shards = sorted(place.glob("*.safetensors")) if folder else []
    lacking = [name for name in ("config.json", PROMPT) if not (place / name).exists()]
    if not shards or lacking:
        what = "no .safetensors" if not shards else f"no {' and no '.join(lacking)}"
        raise ValueError(f'The scorer\'s folder "{folder}" holds {what}: {ADVICE}.')
    head_1D = _head(shards)
    if head_1D is None:
        raise ValueError(f'No file in "{folder}" holds {HEAD}, the scorer\'s last layer: {ADVICE}.')
    try:
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    except ImportError:
        raise ValueError("The released scorer wants the package transformers: install it.") from None
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype="auto"
    )
    model = model.to(device).eval().requires_grad_(False)
    return Scorer(model, processor, head_1D.to(device), (place / PROMPT).read_text())


def _head(shards: list[Path]) -> Tensor | None:
    for shard in shards:
        with safe_open(str(shard), framework="pt") as file:
            if HEAD in file.keys():  # noqa: SIM118, it is no dict
                return file.get_tensor(HEAD)
    return None


def shrunk(frames_TCHW: Tensor, max_pixels: int) -> Tensor:
    """Frames of at most so many pixels, of the same shape."""
    height, width = frames_TCHW.shape[-2:]
    share = min(1.0, (max_pixels / (height * width)) ** 0.5)
    if share == 1:
        return frames_TCHW
    size = int(height * share), int(width * share)
    return F.interpolate(frames_TCHW, size, mode="bicubic", antialias=True).clamp(0, 1)
