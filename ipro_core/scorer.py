"""Text-image scorers: how well a frame shows what a prompt says, and a picture's embedding.

CLIP, and HPSv2, which is CLIP ViT-H/14 tuned on what people prefer (R_sem of PersonalVideo, Section 3.3).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import in_chunks
from .files import sha256
from .scorer_files import ScorerFile, open_scorer_file

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on, channel by channel."""


class ImageEncoder(Protocol):
    """What makes an embedding of a picture."""

    @property
    def name(self) -> str:
        """Its own and SHA-256: embeddings of different networks do not compare."""
        ...

    @property
    def size(self) -> int:
        """Side of the square that it looks at, in pixels."""
        ...

    @property
    def dim(self) -> int: ...

    def embed_images(self, frames_NCHW: Tensor) -> Tensor:
        """(N, D), unit length, for pictures in [0, 1] of any size; differentiable in them."""
        ...


class Scorer(ImageEncoder, Protocol):
    """What says how well a picture shows a text."""

    @property
    def scale(self) -> float:
        """What its values are multiplied by in the softmax it was trained with; CLIP's is 100."""
        ...

    def values(self, frames_TCHW: Tensor, prompt: str) -> Tensor:
        """(T,), higher is better; differentiable in the frames."""
        ...


class ClipScorer:
    """CLIP's two towers; the value is the cosine between what they make of frame and prompt."""

    def __init__(
        self,
        vision: Any,
        text: Any,
        tokenize: Callable[[str], list[int]] | None,
        *,
        name: str,
        scale: float = 100.0,
        pads: bool = False,
    ) -> None:
        """
        Args:
            vision: transformers' CLIPVisionModelWithProjection.
            text: CLIPTextModelWithProjection; None: pictures are embedded and nothing else.
            scale: see `Scorer`.
            pads: see `ScorerFile`.
        """
        self.vision, self.text, self.tokenize = vision, text, tokenize
        self.name, self.scale, self.pads = name, scale, pads
        self.size: int = vision.config.image_size
        self.dim: int = vision.config.projection_dim
        self._texts: dict[str, Tensor] = {}

    def values(self, frames_TCHW: Tensor, prompt: str) -> Tensor:
        return self.embed_images(frames_TCHW) @ self.embed_text(prompt).to(frames_TCHW.device)

    def embed_images(self, frames_NCHW: Tensor, chunk: int = 8) -> Tensor:
        if not len(frames_NCHW):
            return frames_NCHW.new_zeros(0, self.dim)
        return in_chunks(self._embed, frames_NCHW, chunk)

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Tensor:
        """(D,), unit length; remembered, because prompts come again."""
        if self.text is None or self.tokenize is None:
            raise ValueError(
                f"{self.name.split(' ')[0]} holds no text tower: give one with both towers, to score prompts."
            )
        if prompt not in self._texts:
            ids_1L = torch.tensor([self.tokenize(prompt)], device=self.text.device)
            self._texts[prompt] = F.normalize(self.text(input_ids=ids_1L).text_embeds[0].float(), dim=0)
        return self._texts[prompt]

    def _embed(self, frames_NCHW: Tensor) -> Tensor:
        seen = look(frames_NCHW, self.size, pads=self.pads)
        pixels = seen.to(self.vision.device, self.vision.dtype)
        return F.normalize(self.vision(pixel_values=pixels).image_embeds.float(), dim=1).to(
            frames_NCHW.device
        )


def look(frames_NCHW: Tensor, size: int, *, pads: bool = False) -> Tensor:
    """Pictures in [0, 1] as CLIP takes them, (N, 3, size, size); differentiable, and therefore not rounded to
    8 bits between.

    Args:
        pads: the whole picture with black beside it, and not its middle square.
    """
    height, width = frames_NCHW.shape[-2:]
    side = max(height, width) if pads else min(height, width)
    tall, wide = (int(size * length / side + (0.5 if pads else 0)) for length in (height, width))
    if (tall, wide) != (height, width):
        frames_NCHW = F.interpolate(frames_NCHW, (max(tall, 1), max(wide, 1)), mode="bicubic", antialias=True)
    top, left = (tall - size) // 2, (wide - size) // 2
    if pads:
        black = -left, size - wide + left, -top, size - tall + top
        frames_NCHW = F.pad(frames_NCHW, black)
    else:
        frames_NCHW = frames_NCHW[..., top : top + size, left : left + size]
    mean_C11, std_C11 = (frames_NCHW.new_tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    return (frames_NCHW - mean_C11) / std_C11


def load_scorer(
    path: Path | str,
    device: torch.device | str = "cpu",
    memo: Path | None = None,
    tokenizer: Path | None = None,
) -> ClipScorer:
    """CLIP or HPSv2 with both towers and its tokeniser.

    Args:
        memo: see `files.sha256`.
        tokenizer: the folder of CLIP's, for weights that have none beside them.

    Raises:
        ValueError: the file is missing, damaged, a pickle, no CLIP, or has no text tower or tokeniser.
    """
    file = open_scorer_file(path)
    if file.text is None:
        raise ValueError(
            f"{file.path.name} holds CLIP's image tower alone: give one with its text tower too."
        )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenize = _tokenizer(file, tokenizer)
    text = _built(file, CLIPTextModelWithProjection, CLIPTextConfig(**file.text), device)
    scale = file.tensors["logit_scale"]().float().exp().item() if "logit_scale" in file.tensors else 100.0
    name = _name(file, memo)
    return ClipScorer(_vision(file, device), text, tokenize, name=name, scale=scale, pads=file.pads)


def load_image_encoder(
    path: Path | str, device: torch.device | str = "cpu", memo: Path | None = None
) -> ClipScorer:
    """The image tower alone; a file that holds no other will do. Raises as `load_scorer`."""
    file = open_scorer_file(path)
    return ClipScorer(_vision(file, device), None, None, name=_name(file, memo), pads=file.pads)


def scorer_name(path: Path | str, memo: Path | None = None) -> str:
    """The name that a scorer will have, without opening it; raises as `load_scorer`."""
    return _name(open_scorer_file(path), memo)


def _name(file: ScorerFile, memo: Path | None) -> str:
    return f"{file.weights.name} sha256:{sha256(file.weights, memo)[:16]}"


def _vision(file: ScorerFile, device: torch.device | str) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return _built(file, CLIPVisionModelWithProjection, CLIPVisionConfig(**file.vision), device)


def _built(file: ScorerFile, kind: Any, config: Any, device: torch.device | str) -> Any:
    """The network on the file's tensors in float32; nothing is allocated before."""
    with torch.device("meta"):
        network = kind(config)
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in file.tensors]
    if missing:
        raise ValueError(
            f"{file.path.name} lacks {len(missing)} of CLIP's tensors, such as {missing[0]}: it is damaged "
            "or of another network; get it again."
        )
    tensors = {name: file.tensors[name]().float().to(device) for name in wanted}
    wrong = [name for name, tensor in tensors.items() if tensor.shape != wanted[name].shape]
    if wrong:
        raise ValueError(f"{file.path.name} is no CLIP that is known: its {wrong[0]} has another shape.")
    network.load_state_dict(tensors, assign=True)
    for module in network.modules():  # in no file, and left without numbers
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(module.position_ids.shape[-1], device=device)[None]
    return network.requires_grad_(False).eval()


def _tokenizer(file: ScorerFile, spare: Path | None) -> Callable[[str], list[int]]:
    from transformers import CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue] (an alias in 5)

    assert file.text is not None
    own = any((file.folder / name).exists() for name in ("tokenizer.json", "vocab.json"))
    folder = file.folder if own else spare
    if folder is None:
        raise ValueError(
            f"There is no tokeniser beside {file.weights.name}: put CLIP's vocab.json and merges.txt, or its "
            "tokenizer.json, into the same folder."
        )
    tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    longest = file.text["max_position_embeddings"]
    return lambda prompt: tokenizer(prompt, truncation=True, max_length=longest)["input_ids"]
