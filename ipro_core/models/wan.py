"""Wan 2.2 and whatever has its architecture, as a VideoModel: v_θ and v_ref of Eq. 7 in one set of weights.

The network is diffusers' WanTransformer3DModel, the adapter peft's LoRA on the attention and feed-forward
layers (the authors' choice). Not yet here: TI2V-5B's time step per frame, quantised files.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.utils.checkpoint import checkpoint

from .base import VideoCodec
from .frozen import FrozenLinear
from .lora import LowRank
from .wan_files import load_transformer, open_wan_file
from .wan_keys import to_diffusers, to_official

TARGETS = (
    *(f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"),
    "ffn.0",
    "ffn.2",
)
"""The layers of each block that the adapter changes, by official name."""

_OURS = "ipro"


@dataclass(frozen=True, eq=False)
class WanCondition:
    """What Wan's network is told besides x and t; of x's batch size."""

    text_BLD: Tensor
    """The prompt's embedding by the text encoder (UMT5: L = 512, D = 4096, zeros after the prompt)."""
    image_BCTHW: Tensor | None = None
    """The channels after x's own: 4 of mask, then the latents of the first frame's clip. None: text only."""


@torch.no_grad()
def image_condition(codec: VideoCodec, first_frames_BCHW: Tensor, frames: int) -> Tensor:
    """`WanCondition.image_BCTHW` for videos of that many frames which begin with these.

    As Wan has it, the picture is encoded as a whole clip whose unknown frames are mid-grey; the mask is 1 on
    the first latent frame (4 channels, one for each frame that a latent frame stands for).
    """
    clip_BTCHW = first_frames_BCHW.new_full(
        (len(first_frames_BCHW), frames, *first_frames_BCHW.shape[1:]), 0.5
    )
    clip_BTCHW[:, 0] = first_frames_BCHW
    latents_BCTHW = codec.encode(clip_BTCHW)
    mask_BCTHW = torch.zeros_like(latents_BCTHW[:, :1]).repeat(1, 4, 1, 1, 1)
    mask_BCTHW[:, :, 0] = 1
    return torch.cat([mask_BCTHW, latents_BCTHW], dim=1)


def load_video_model(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    num_heads: int | None = None,
    checkpointing: bool = False,
) -> "WanVideoModel":
    """Open a Wan network of any kind and format that `open_wan_file` knows.

    Args:
        dtype: of the frozen weights that are not quantised; None: as in the file.
        num_heads: for a network whose heads are not 128 wide and whose file does not say so.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: the file is missing, damaged, of a format that is not read, or of another model.
    """
    file = open_wan_file(path)
    transformer = load_transformer(file, device, dtype, num_heads)
    return WanVideoModel(transformer, file.path, checkpointing=checkpointing)


class WanVideoModel:
    """A frozen WanTransformer3DModel, frozen adapters beneath (Lightning), at most one that is trained."""

    def __init__(self, transformer: Any, path: Path, *, checkpointing: bool = False):
        self.transformer = transformer.requires_grad_(False)
        self.path = path
        self.linears: dict[str, Linear] = {
            to_official(name): module
            for name, module in transformer.named_modules()
            if isinstance(module, Linear)
        }
        """The layers that an adapter can change, by official name."""
        # Modules, since tensors may be moved; now, before an adapter's layer stands in a module's place.
        self._owners = {
            to_official(f"{name}.{part}".lstrip(".")): (module, part)
            for name, module in transformer.named_modules()
            for part in ("weight", "bias", "scale_shift_table")
            if getattr(module, part, None) is not None
        }
        self._layers: dict[str, dict[str, Any]] = {}  # adapter → official layer name → peft's LoRA layer
        self._active: list[str] = []
        if checkpointing:
            transformer.enable_gradient_checkpointing(self._checkpointed)

    def velocity(self, x_BCTHW: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """v_θ(x, t) in x's type; the network computes in its own."""
        dtype = self.transformer.patch_embedding.weight.dtype
        if condition.image_BCTHW is not None:
            x_in = torch.cat([x_BCTHW, condition.image_BCTHW.to(x_BCTHW)], dim=1)
        else:
            x_in = x_BCTHW
        t_B = torch.full((len(x_BCTHW),), 1000 * sigma, device=x_BCTHW.device)
        v = self.transformer(x_in.to(dtype), t_B, condition.text_BLD.to(dtype), return_dict=False)[0]
        return v.to(x_BCTHW.dtype)

    def frozen_velocity(self, x_BCTHW: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """v_ref(x, t): our adapter off, those beneath it on."""
        with self._only([name for name in self._layers if name != _OURS]):
            return self.velocity(x_BCTHW, sigma, condition)

    def adapter_parameters(self) -> Mapping[str, Parameter]:
        """By ComfyUI's name without its prefix: `blocks.0.self_attn.q.lora_A.weight`."""
        return {
            f"{name}.{half}.weight": getattr(layer, half)[_OURS].weight
            for name, layer in self._layers.get(_OURS, {}).items()
            for half in ("lora_A", "lora_B")
        }

    def adapter(self) -> dict[str, LowRank]:
        """The trained adapter by official layer name; its tensors are the live ones."""
        return {
            name: LowRank(
                layer.lora_A[_OURS].weight.detach(),
                layer.lora_B[_OURS].weight.detach(),
                layer.scaling[_OURS] * layer.r[_OURS],
            )
            for name, layer in self._layers.get(_OURS, {}).items()
        }

    def new_adapter(self, rank: int = 32, alpha: float | None = None, *, seed: int = 0) -> None:
        """Put a fresh adapter in place of ours: up = 0, so that v_θ begins as v_ref.

        Args:
            alpha: the update is alpha / rank · up · down; None: alpha = rank.
            seed: of `down`, which is the same on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for name, linear in self.linears.items():
            if name.split(".", 2)[-1] in TARGETS:
                # Uniform in ± 1 / sqrt(inputs), what peft begins with too.
                down_RI = torch.rand(rank, linear.in_features, generator=generator) * 2 - 1
                up_OR = torch.zeros(linear.out_features, rank)
                layers[name] = LowRank(down_RI / linear.in_features**0.5, up_OR, alpha or rank)
        self.place_adapter(layers)

    def place_adapter(self, layers: Mapping[str, LowRank], *, frozen: bool = False) -> None:
        """Replace our adapter by this one; or, if frozen, lay this one beneath it for good.

        Its weights are kept in float32 at least: bfloat16 loses steps as small as training takes.
        """
        from peft import LoraConfig, inject_adapter_in_model

        adapter = f"frozen{len(self._layers)}" if frozen else _OURS
        if not frozen:
            self._remove_ours()
        ranks = {to_diffusers(name): layer.down_RI.shape[0] for name, layer in layers.items()}
        config = LoraConfig(r=max(ranks.values()), target_modules=list(ranks), rank_pattern=ranks)
        vars(self.transformer).pop("peft_config", None)  # peft warns of a second adapter; we keep the books
        with torch.random.fork_rng(devices=[]):  # peft draws weights that are replaced below
            inject_adapter_in_model(config, self.transformer, adapter)
        self._layers[adapter] = {name: self.transformer.get_submodule(to_diffusers(name)) for name in layers}
        for name, given in layers.items():
            layer, base = self._layers[adapter][name], self.linears[name].weight
            dtype = torch.promote_types(base.dtype, torch.float32)
            layer.scaling[adapter] = given.alpha / given.down_RI.shape[0]
            for half, weight in (("lora_A", given.down_RI), ("lora_B", given.up_OR)):
                getattr(layer, half)[adapter].weight = Parameter(weight.to(base.device, dtype, copy=True))
        self._activate(list(self._layers))
        for adapter, placed in self._layers.items():  # peft turns gradients on and off as it goes
            for layer in placed.values():
                layer.lora_A[adapter].requires_grad_(adapter == _OURS)
                layer.lora_B[adapter].requires_grad_(adapter == _OURS)

    def frozen_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the frozen tensors, by official name."""
        shapes = {name: tuple(getattr(*owner).shape) for name, owner in self._owners.items()}
        return shapes | {
            f"{name}.weight": (x.out_features, x.in_features) for name, x in self.linears.items()
        }

    @torch.no_grad()
    def change_frozen(self, differences: Mapping[str, Tensor]) -> None:
        """Add these to frozen tensors for good, by official name: they become part of v_ref."""
        for name, difference in differences.items():
            linear = self.linears.get(name.removesuffix(".weight"))
            if isinstance(linear, FrozenLinear):
                linear.change(difference)
            else:
                tensor = getattr(*self._owners[name])
                dtype = torch.promote_types(tensor.dtype, torch.float32)
                tensor.copy_(tensor.to(dtype) + difference.to(tensor.device, dtype))

    @property
    def base_sha256(self) -> str:
        """Of the file the frozen weights came from."""
        return _sha256(self.path)

    def _remove_ours(self) -> None:
        self._activate([name for name in self._active if name != _OURS])
        for layer in self._layers.pop(_OURS, {}).values():
            layer.delete_adapter(_OURS)

    def _activate(self, adapters: list[str]) -> None:
        # peft's own switches flip requires_grad, turn frozen adapters off as well, and are ten times slower.
        self._active = adapters
        for placed in self._layers.values():
            for layer in placed.values():
                layer._active_adapter = adapters

    @contextmanager
    def _only(self, adapters: list[str]) -> Iterator[None]:
        """Switch to these adapters, and back whatever happens."""
        before = self._active
        if adapters != before:
            self._activate(adapters)
        try:
            yield
        finally:
            if adapters != before:
                self._activate(before)

    def _checkpointed(self, block: Any, *inputs: Any) -> Tensor:
        adapters = self._active

        def run(*inputs: Any) -> Tensor:
            # Inside, because the block is run again in the backward pass, when v_ref's switch is long back.
            with self._only(adapters):
                return block(*inputs)

        return checkpoint(run, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]


@cache
def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
