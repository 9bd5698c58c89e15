"""The host's own models: LoRAs that stay exact on them, and the proof that a saved file works."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from comfy_api.latest import io, ui

from . import _comfy

CATEGORY = "4 Models"


class ApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        count = {"min": 0, "max": 1000}
        return _comfy.schema(
            "ApplyLoRA",
            "Apply LoRA (exact, step range)",
            CATEGORY,
            "Lays a LoRA beside the model's layers instead of adding it into their weights: "
            "exact on fp8, int8 and GGUF too, where rounding the sum destroys a small LoRA.",
            inputs=[
                io.Model.Input("model", tooltip="Wan 2.1 or 2.2; it is not changed."),
                _lora_menu(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="What the LoRA's update is multiplied by; 1 is what was trained.",
                ),
                io.Int.Input(
                    "first_step", default=0, **count, tooltip="The first step that it is on at, from 0."
                ),
                io.Int.Input(
                    "end_step", default=8, **count, tooltip="The step before which it is off again."
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="0: on at the steps that the LoRA was tuned for, as its file tells, and at all "
                    "if it tells none; first_step and end_step then do not count. Else of how many steps "
                    "these are, by the simple scheduler and the model's own shift; over both experts, as "
                    "KSamplerAdvanced counts them. A sampler with another number of steps has the LoRA on at "
                    "the same noise levels.",
                ),
            ],
            outputs=[io.Model.Output(display_name="patched", tooltip="The model with the LoRA beside it.")],
        )

    @classmethod
    def execute(
        cls, model: Any, lora_name: str, strength: float, first_step: int, end_step: int, steps: int
    ) -> io.NodeOutput:
        from ..ipro_core.models.lora import lora_range
        from ._exact_lora import StepRange, apply_lora

        file = _lora_file(lora_name)
        if not steps:
            told = lora_range(file)
            tuned = StepRange(told.first, told.end, told.steps, told.shift) if told else StepRange(0, 1, 1)
            return io.NodeOutput(apply_lora(model, file, strength, tuned))
        if first_step >= end_step:
            raise ValueError(
                f"No step lies between first_step {first_step} and end_step {end_step}: make end_step larger."
            )
        return io.NodeOutput(apply_lora(model, file, strength, StepRange(first_step, end_step, steps)))


class RoundTripCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return _comfy.schema(
            "RoundTripCheck",
            "Round-Trip Check",
            CATEGORY,
            "Loads a saved LoRA by ComfyUI's own loader onto the model, and compares one pass "
            "with what the trainer computes: whether every layer was taken, and how far off the result is.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was trained on."),
                _lora_menu(),
                io.Conditioning.Input(
                    "positive", tooltip="Any prompt, with a first frame where one is needed."
                ),
                io.Latent.Input("latent", tooltip="The size to try; a small one is enough."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The figures in words."),
                io.Float.Output(
                    display_name="stock_error",
                    tooltip="Of ComfyUI's own loader, in parts of the LoRA's effect; 0 is exact, 1 useless.",
                ),
                io.Float.Output(display_name="exact_error", tooltip="The same of IPRO · Apply LoRA."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, lora_name: str, positive: Any, latent: Any) -> io.NodeOutput:
        trip = round_trip(model, _lora_file(lora_name), positive, latent)
        report = trip.told()
        return io.NodeOutput(report, trip.stock_error, trip.exact_error, ui=ui.PreviewText(report))


class RoundTrip(NamedTuple):
    matched: int
    """Layers that the host's loader took."""
    layers: int
    effect: float
    """What the LoRA changes, in parts of the velocity."""
    stock_error: float
    """Of the host's loader and of ours, in parts of the effect."""
    exact_error: float

    def told(self) -> str:
        verdict = (
            "the stock LoRA loader does as well"
            if self.matched == self.layers and self.stock_error < 0.05
            else "use IPRO · Apply LoRA with it"
        )
        return (
            f"{self.matched} of {self.layers} layers matched. The LoRA changes a pass by {self.effect:.2%}; "
            f"of that the stock loader is off by {self.stock_error:.2%}, IPRO · Apply LoRA by "
            f"{self.exact_error:.2%}: {verdict}."
        )


@torch.no_grad()
def round_trip(patcher: Any, path: Path, positive: Any, latent: Mapping[str, Any]) -> RoundTrip:
    """One pass in the middle of the schedule, by the trainer's model, the host's loader and Apply LoRA."""
    from ..ipro_core.models.lora import import_lora
    from ._exact_lora import StepRange, apply_lora
    from ._host_model import HostModel

    trainer = HostModel(patcher)
    condition = trainer.condition(positive, latent)
    import_lora(path, trainer)
    stock, names = patcher.clone(), comfy.lora.model_lora_keys_unet(patcher.model, {})
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    placed = stock.add_patches(comfy.lora.load_lora(tensors, names), 1.0)
    exact = apply_lora(patcher, path, 1.0, StepRange(0, 1, 1))
    shape = latent["samples"].shape
    x_BCTHW = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(trainer.device)
    base, trained = (f(x_BCTHW, 0.5, condition) for f in (trainer.frozen_velocity, trainer.velocity))
    by_stock, by_ours = (HostModel(one).frozen_velocity(x_BCTHW, 0.5, condition) for one in (stock, exact))
    effect = (trained - base).norm().item()
    return RoundTrip(
        len(placed),
        len(trainer.layers),
        effect / base.norm().item(),
        *((v - trained).norm().item() / max(effect, 1e-30) for v in (by_stock, by_ours)),
    )


def _lora_menu() -> Any:
    return io.Combo.Input(
        "lora_name",
        options=_comfy.model_files("loras"),
        tooltip="A low-rank adapter in models/loras, from IPRO or any other trainer.",
    )


def _lora_file(name: str) -> Path:
    return Path(_comfy.model_file("loras", name))


NODES: list[type[io.ComfyNode]] = [ApplyLoRA, RoundTripCheck]
