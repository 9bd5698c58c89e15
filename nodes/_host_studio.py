"""The graph's own MODEL, VAE and CLIP as a studio, as Load Wan Expert makes one of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..ipro_core.models.plan_decoder import decoder_cost
from ..ipro_core.models.vae import WanVae, adopt_vae
from ..ipro_core.models.wan_files import expert_of, family_of
from ..ipro_core.studio import Network, Studio
from ..ipro_core.training.presets import PRESETS, Preset
from ..ipro_core.types import Framing
from ..ipro_core.wan_settings import BOUNDARY, WanFiles
from ..ipro_core.wan_studio import Tuning, wan_framing, wan_studio
from ._exact_lora import HostLayers
from ._host_identity import identity
from ._host_model import HostModel
from ._host_switches import plain_tensor
from ._host_tunable import refuse_untunable, try_gradient
from ._sockets import Text


@dataclass(frozen=True, eq=False)
class HostModelChoice:
    """`ModelChoice` of what the graph has loaded."""

    model: Any
    vae: Any
    clip: Any = None
    high_noise: Any = None
    framing: Framing = Framing()
    others: WanFiles = field(default_factory=WanFiles)
    """Draft, judge and cache, which are files; and the MODELs' files by name, if the graph tells them."""

    @property
    def preset(self) -> Preset:
        return PRESETS["local-14b" if self.high_noise else "local-5b"]

    @property
    def files(self) -> dict[str, str]:
        return asdict(self.others)

    def open_studio(
        self, faces: Path | None, tuning: Tuning | None = None, *, text: Text | None = None
    ) -> Studio:
        """See `ModelChoice`; nothing is moved yet.

        Raises:
            ValueError: what is connected does not go together, or cannot be tuned.
        """
        layers = HostLayers(self.model)
        shapes, base = layers.frozen_shapes(), self.others.model or layers.path.name
        family = self._family(base, shapes)
        if tuning:
            refuse_untunable(self.model)
        framing = wan_framing(family, self.framing)

        def open_tuned() -> HostModel:
            model = HostModel(self.model, self._room(family, framing))
            return try_gradient(model) if tuning else model

        return wan_studio(
            family,
            framing,
            self.others,
            faces,
            self.model.load_device,
            base=base,
            shapes=shapes,
            text=text or self._text(),
            codec=Network(_once(self.vae.patcher), partial(codec_of, self.vae)),
            model=Network(_once(self.model), open_tuned),
            high_noise=Network(_once(self.high_noise), partial(HostModel, self.high_noise))
            if self.high_noise
            else None,
        )

    def _room(self, family: str, framing: Framing) -> int:
        """Bytes for the decoder, which works in the VAE's type."""
        counted = decoder_cost(family == "TI2V-5B", framing.width, framing.height, framing.frames)
        return counted.work * self.vae.vae_dtype.itemsize // torch.bfloat16.itemsize

    def _text(self) -> Text:
        if self.clip is None:
            raise ValueError(
                "Prompts want a text encoder: connect CLIP (umt5_xxl), or encode the prompt yourself, for "
                "Dataset from Image."
            )
        return Network(_once(self.clip.patcher, self.clip.layer_idx), partial(embedder, self.clip))

    def _family(self, base: str, shapes: dict[str, tuple[int, ...]]) -> str:
        """What they are together; raises ValueError where they are nothing."""
        family, high = family_of(base, shapes), self.high_noise
        if family == "2.1 I2V":
            raise ValueError(
                f"{base} is Wan 2.1 image-to-video, which is told CLIP's embedding of the first frame, and "
                "tuning does not make that yet: connect Wan 2.2 (I2V-A14B or TI2V-5B)."
            )
        if family == "I2V-A14B" and expert_of(Path(base)) == "high":
            raise ValueError(
                f"{base} is the high-noise expert, which is never tuned (5.1): connect it to high_noise, and "
                "the low-noise one to model."
            )
        if high is None and family == "I2V-A14B":
            raise ValueError(f"{base} is one of I2V-A14B's two experts: connect the other to high_noise.")
        if high is not None:
            if family not in BOUNDARY:
                raise ValueError(f"{base} is {family}, one network for all steps: leave high_noise empty.")
            if high.model is self.model.model:
                raise ValueError(f"{base} is connected twice: connect the high-noise expert to high_noise.")
            if HostLayers(high).frozen_shapes() != shapes:
                raise ValueError(
                    f"{self.others.high_noise or 'What is connected to high_noise'} and {base} are not two "
                    "experts of one model: connect a pair."
                )
        wanted, given = 48 if family == "TI2V-5B" else 16, self.vae.latent_channels
        if wanted != given:
            right = "wan2.2_vae" if wanted == 48 else "wan_2.1_vae"
            raise ValueError(
                f"{base} is {family}, whose latents have {wanted} channels, and this VAE's have {given}: "
                f"load {right}."
            )
        return family


def codec_of(vae: Any) -> WanVae:
    """`VideoCodec` on the host VAE's weights, where the host would run it.

    Raises:
        ValueError: it is not one of Wan's.
    """
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([vae.patcher])
    with torch.inference_mode(False):
        tensors = {name: plain_tensor(tensor) if tensor.is_inference() else tensor
                   for name, tensor in vae.first_stage_model.state_dict().items()}  # fmt: skip
        return adopt_vae(tensors, Path(type(vae.first_stage_model).__name__), vae.device, vae.vae_dtype)


def embedder(clip: Any) -> Callable[[str], Tensor]:
    """Prompts' embeddings by the host's text encoder, (L, D)."""

    def embed(prompt: str) -> Tensor:
        with torch.inference_mode():
            embedding_BLD = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
        if embedding_BLD.shape[-1] != 4096:
            raise ValueError(
                f"This CLIP embeds a prompt in {embedding_BLD.shape[-1]} numbers, and Wan wants UMT5's 4096: "
                "load umt5_xxl, with the type wan."
            )
        return embedding_BLD[0].clone().float().cpu()

    return embed


def _once(patcher: Any, *more: Any) -> Callable[[], str]:
    return cache(partial(identity, patcher, *more))
