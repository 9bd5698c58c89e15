"""The host's own MODEL and VAE behind the core's VideoModel and VideoCodec.

The network runs as the host runs it, by the host's own `sampling_function`: every kind of weight, patch,
wrapper and offload that a graph has put on the MODEL works, and with our adapter off the sampler's steps are
KSampler's bit for bit (adopting the weights into the core's network differs by 5e-6, and takes floats alone).
A pass with a gradient keeps each block's input and runs the block again (torch's checkpoint). The VAE is
adopted, by renaming (`_host_studio`): there the core's `pullback` saves hundreds of gigabytes, and weights
are always floats.

The host keeps its weights as inference tensors, which autograd refuses. While a block runs, tensors on the
same memory stand in their place; then the very tensors of before are back, so that the host may move its
weights at any time. Hooks and switches likewise last for one pass. Loading is done in inference mode, as
the host does it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from ..ipro_core.models.condition import WanCondition
from ..ipro_core.models.lora_keys import LowRank
from ..ipro_core.models.wan import TARGETS
from ._exact_lora import HostLayers, as_it_was, hooked, now
from ._host_switches import attention_with_backward, differentiable, plain, without_dynamic

TOLD = {"pooled_output", "attention_mask", "concat_latent_image", "concat_mask", "clip_vision_output"}
"""What a CONDITIONING may hold."""


class HostModel(HostLayers):
    """`VideoModel`: x and v are in the units the network works in, as in the host's samplers."""

    def __init__(self, patcher: Any, room: int = 0):
        """
        Args:
            room: bytes of the device that stay free between passes, for the decoder.

        Raises:
            ValueError: the MODEL is not Wan's, or its loader streams weights and cannot do otherwise.
        """
        with torch.inference_mode():
            self.patcher = without_dynamic(patcher)
        super().__init__(self.patcher)
        self.device: torch.device = self.patcher.load_device
        self._room, self._most = room, 0.0
        self._shape = torch.Size()  # of the last x

    @property
    def latent_format(self) -> Any:
        return self.patcher.model.latent_format

    def velocity(self, x_BCTHW: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """v_θ(x, t)."""
        return self._velocity(x_BCTHW, sigma, condition, self.layers)

    def frozen_velocity(self, x_BCTHW: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """v_ref(x, t): what the graph has laid on the MODEL is part of it, our adapter is not."""
        return self._velocity(x_BCTHW, sigma, condition, {})

    @torch.no_grad()
    def condition(self, conditioning: Any, latent: Mapping[str, Any]) -> WanCondition:
        """A copy of what WanImageToVideo or Wan22ImageToVideoLatent made, as the host's samplers encode it.

        Raises:
            ValueError: it is more than one prompt with a first frame.
        """
        told = conditioning[0][1]
        more = sorted(key for key in told.keys() - TOLD if told[key] is not None)
        if len(conditioning) != 1 or more:
            found = f"{len(conditioning)} prompts" if len(conditioning) > 1 else ", ".join(more)
            raise ValueError(
                f"IPRO trains on one prompt and a first frame, and this conditioning has {found}: connect "
                "WanImageToVideo, or the prompt itself."
            )
        with torch.inference_mode(False):
            text_BLD, told = (
                conditioning[0][0].clone(),
                {name: _copied(value) for name, value in told.items()},
            )
            x = torch.zeros(latent["samples"].shape, device=self.device)
            encoded = self._encoded(text_BLD, told, x, None)["positive"][0]["model_conds"]
            image, clip = encoded.get("c_concat"), encoded.get("clip_fea")
            return WanCondition(
                text_BLD, image and image.cond, clip and clip.cond.clone(), self._first(latent, x.shape)
            )

    def _first(self, latent: Mapping[str, Any], shape: torch.Size) -> Tensor | None:
        """TI2V-5B: the first frame's latents in a LATENT that has a noise mask."""
        if latent.get("noise_mask") is None:
            return None
        free = comfy.sampler_helpers.prepare_mask(latent["noise_mask"].clone(), shape, self.device)
        if type(self.patcher.model).__name__ != "WAN22" or not torch.equal(free, _free(free)):
            raise ValueError(
                "This LATENT has a noise mask, which only TI2V-5B takes, and of one frame alone: connect "
                "Wan22ImageToVideoLatent with one image, or for other models WanImageToVideo."
            )
        known = latent["samples"].to(self.device, torch.float32, copy=True)
        return self.patcher.model.process_latent_in(known)[:, :, :1].clone()

    def adapter_parameters(self) -> dict[str, Parameter]:
        """By ComfyUI's name without its prefix: `blocks.0.self_attn.q.lora_A.weight`."""
        halves = {"lora_A": "down_RI", "lora_B": "up_OR"}
        return {
            f"{name}.{half}.weight": getattr(layer, field)
            for name, layer in self.layers.items()
            for half, field in halves.items()
        }

    def adapter(self) -> dict[str, LowRank]:
        return {
            name: LowRank(layer.down_RI.detach(), layer.up_OR.detach(), layer.alpha)
            for name, layer in self.layers.items()
        }

    def place_adapter(self, layers: Mapping[str, LowRank], *, frozen: bool = False) -> None:
        """Replace our adapter by this one, in float32 at least. A frozen one is laid on in the graph."""
        assert not frozen, "a LoRA beneath is laid on the MODEL by the graph"

        def master(half: Tensor) -> Parameter:
            dtype = torch.promote_types(half.dtype, torch.float32)
            return Parameter(half.detach().to(self.device, dtype, copy=True))

        with torch.inference_mode(False):
            self.layers = {
                name: LowRank(master(layer.down_RI), master(layer.up_OR), layer.alpha)
                for name, layer in layers.items()
            }

    def new_adapter(self, rank: int = 32, alpha: float | None = None, *, seed: int = 0) -> None:
        """A fresh adapter on `TARGETS`, the same as WanVideoModel's: up = 0, so that v_θ begins as v_ref."""
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for name, module in self.linears.items():
            if name.split(".", 2)[-1] in TARGETS:
                down_RI = torch.rand(rank, module.in_features, generator=generator) * 2 - 1
                up_OR = torch.zeros(module.out_features, rank)
                layers[name] = LowRank(down_RI / module.in_features**0.5, up_OR, float(alpha or rank))
        self.place_adapter(layers)

    def _velocity(
        self, x_BCTHW: Tensor, sigma: float, condition: WanCondition, layers: Mapping[str, LowRank]
    ) -> Tensor:
        """KSampler's Euler step asks the model so (KSamplerX0Inpaint, to_d), operation for operation."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._shape = x_BCTHW.shape
        self._load(self._shape)
        base, patcher = self.patcher.model, self.patcher
        x = x_BCTHW.to(self.device, torch.float32)
        sigma_B = torch.full((len(x),), sigma, device=x.device)
        x_in, free, kept = x, None, torch.zeros_like(x)
        if condition.first_BC1HW is not None:
            free, kept[:, :, :1] = _free(x), condition.first_BC1HW
            x_in = x * free + kept
        given, options = self._given(condition, x, free)
        patcher.pre_run()
        try:
            with self._running(layers):
                denoised = comfy.samplers.sampling_function(base, x_in, sigma_B, None, given, 1.0, options)
        finally:
            patcher.cleanup()
        if free is not None:
            denoised = denoised * free + kept
        return ((x - denoised) / sigma_B[:1].view(1, 1, 1, 1, 1)).to(x_BCTHW)

    @torch.no_grad()
    def _given(self, condition: WanCondition, x: Tensor, free: Any) -> tuple[Any, dict[str, Any]]:
        """The condition as the host has it in one run of a sampler, and the model's options."""
        clip = condition.clip_BLD
        told = {} if clip is None else {"clip_vision_output": _ClipVision(clip)}
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)
        transformer = options.setdefault("transformer_options", {})
        transformer.setdefault("optimized_attention_override", attention_with_backward)
        conds = self._encoded(condition.text_BLD, told, x, free, options)
        if condition.image_BCTHW is not None:
            image = comfy.conds.CONDNoiseShape(condition.image_BCTHW.to(x))
            conds["positive"][0]["model_conds"]["c_concat"] = image
        return conds["positive"], options

    def _encoded(
        self, text_BLD: Tensor, told: dict[str, Any], x: Tensor, free: Any, options: Any = None
    ) -> dict[str, Any]:
        conds = {"positive": comfy.sampler_helpers.convert_cond([[text_BLD, told]])}
        if options is not None:
            comfy.sampler_helpers.prepare_model_patcher(self.patcher, conds, options)
        blank = torch.zeros_like(x)
        return comfy.samplers.process_conds(self.patcher.model, x, conds, self.device, blank, free)

    def _load(self, shape: torch.Size) -> None:
        # The most that was ever asked for: else weights would come and go between rollout and gradient.
        self._most = max(self._most, self._memory(shape))
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([self.patcher], memory_required=self._most)

    def _memory(self, shape: torch.Size) -> float:
        """Bytes beside the weights: what the host counts for a pass, or the decoder's; with a gradient also
        all blocks' inputs and one block's graph (16 states of the model's width, 4 of the feed-forward's)."""
        passes = max(self.patcher.model.memory_required(list(shape)), self._room)
        if not torch.is_grad_enabled():
            return passes
        tokens = shape[0] * shape[2] * shape[3] * shape[4] / 4
        wide = self.network.blocks[0].ffn[0].out_features
        states = tokens * (self.network.dim * (len(self.network.blocks) + 16) + 4 * wide)
        dtype = self.patcher.model.manual_cast_dtype or self.patcher.model.get_dtype()
        return passes + states * dtype.itemsize

    @contextmanager
    def _running(self, layers: Mapping[str, LowRank]) -> Iterator[None]:
        """Within, the network runs with these layers; under a gradient block by block, each run again."""
        with ExitStack() as stack:
            if not torch.is_grad_enabled():
                stack.enter_context(hooked(self.network, layers, 1.0))
                yield
                return
            stack.enter_context(differentiable())
            for name, part in self.network.named_children():
                if name != "blocks":
                    stack.enter_context(plain(part))
            for index, block in enumerate(self.network.blocks):
                run = partial(self._run_block, block, block.forward, _of_block(layers, index))
                block.forward = partial(_checkpointed, run)
                stack.callback(vars(block).pop, "forward")
            yield

    def _run_block(
        self,
        block: Any,
        forward: Callable[..., Tensor],
        layers: Mapping[str, LowRank],
        on: Mapping[str, bool],
        *args: Any,
        **keywords: Any,
    ) -> Tensor:
        """One block; for its gradient it runs again, when the host may have sent the weights away."""
        if self.patcher.current_loaded_device() != self.device:
            self._load(self._shape)
        with as_it_was(on), differentiable(), plain(block), hooked(block, layers, 1.0):
            return forward(*args, **keywords)


def _checkpointed(run: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
    return checkpoint(run, now(), *args, use_reentrant=False, **keywords)


def _of_block(layers: Mapping[str, LowRank], index: int) -> dict[str, LowRank]:
    prefix = f"blocks.{index}."
    return {name.removeprefix(prefix): layer for name, layer in layers.items() if name.startswith(prefix)}


def _free(like: Tensor) -> Tensor:
    """1 for what is made, 0 for the first frame, which is kept."""
    free = torch.ones_like(like)
    free[:, :, 0] = 0
    return free


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class _ClipVision:
    penultimate_hidden_states: Tensor
