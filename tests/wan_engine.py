"""Small Wan networks of each kind on the engine, and diffusers' own beside them."""

from pathlib import Path

import torch
from test_sampling_gradient import collect
from torch import Tensor, nn
from toys import draw

from ipro_core.models.lora import LowRank
from ipro_core.models.memory import Placement
from ipro_core.models.wan import WanCondition, WanVideoModel

KINDS = ("I2V-A14B", "TI2V-5B", "2.1 I2V", "T2V")
X = draw(2, 4, 3, 4, 4, seed=1)  # three latent frames of four tokens each
SIGMA = 0.625


def network(kind: str, layers: int = 2, dtype: torch.dtype = torch.float32, dim: int = 32):
    """diffusers' network in the shape of that model, small; drawn in float32, so that a dtype rounds it."""
    from diffusers import WanTransformer3DModel

    clip = {"image_dim": 1280, "added_kv_proj_dim": dim} if kind == "2.1 I2V" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=dim // 2,
            in_channels=12 if kind in ("I2V-A14B", "2.1 I2V") else 4, out_channels=4, text_dim=8, freq_dim=16,
            ffn_dim=48, num_layers=layers, cross_attn_norm=True, **clip,
        )  # fmt: skip
        for parameter in made.parameters():  # biases and norms start at values that hide mistakes
            parameter.data += 0.1 * torch.randn_like(parameter)
    return nn.Module.to(made, dtype).eval()


def condition(kind: str, batch: int = 2) -> WanCondition:
    image, clip, first = (
        draw(batch, 8, 3, 4, 4, seed=3),
        draw(batch, 5, 1280, seed=5),
        draw(batch, 4, 1, 4, 4, seed=6),
    )
    text_BLD = draw(batch, 512, 8, seed=2)  # the number that diffusers takes for granted beside CLIP
    return {
        "I2V-A14B": WanCondition(text_BLD, image),
        "TI2V-5B": WanCondition(text_BLD, first_BC1HW=first),
        "2.1 I2V": WanCondition(text_BLD, image, clip),
        "T2V": WanCondition(text_BLD),
    }[kind]


def model(kind: str = "I2V-A14B", *, adapter: bool = True, placement: Placement | None = None, **settings):
    parts = {name: settings.pop(name) for name in ("weights", "states") if name in settings}
    made = network(kind, **settings)
    parts = {name: part(made) if callable(part) else part for name, part in parts.items()}
    wan = WanVideoModel(made, Path("tiny.safetensors"), placement, **parts)
    if adapter:
        wan.place_adapter(layers(wan))
    return wan


def layers(wan: WanVideoModel, seed: int = 4, rank: int = 2) -> dict[str, LowRank]:
    return {
        name: LowRank(
            0.1 * draw(rank, linear.in_features, seed=seed),
            0.1 * draw(linear.out_features, rank, seed=seed + 1),
            rank,
        )
        for name, linear in wan.linears.items()
        if name.startswith("blocks.")
    }


class Stock:
    """The same network by diffusers' own forward pass, under autograd as it is."""

    def __init__(self, wan: WanVideoModel, given: WanCondition):
        self.wan, self.given = wan, given
        self.adapter_parameters = wan.adapter_parameters

    def velocity(self, x: Tensor, sigma: float, _=None) -> Tensor:
        given, t, first = self.given, torch.full((len(x),), 1000 * sigma), self.given.first_BC1HW
        x_in = x
        if given.image_BCTHW is not None:
            x_in = torch.cat([x, given.image_BCTHW.to(x)], dim=1)
        if first is not None:  # one time step for each token: 4 of the first frame, 8 of the rest
            x_in, t = torch.cat([first.to(x), x[:, :, 1:]], dim=2), t[:, None].repeat(1, 12)
            t[:, :4] = 0
        dtype = self.wan.dtype
        clip = None if given.clip_BLD is None else given.clip_BLD.to(dtype)
        v = self.wan.transformer(x_in.to(dtype), t, given.text_BLD.to(dtype), clip, return_dict=False)[0].to(
            x
        )
        return v if first is None else torch.cat([(x[:, :, :1] - first.to(x)) / sigma, v[:, :, 1:]], dim=2)

    def frozen_velocity(self, x: Tensor, sigma: float, _=None) -> Tensor:
        with self.wan.adapters.only(self.wan.adapters.frozen):
            return self.velocity(x, sigma)


def gradients(velocity, wan: WanVideoModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of ⟨velocity, a random direction⟩: to x, and to the adapter as one vector."""
    x = x.clone().requires_grad_()
    v = velocity(x)
    v.backward(draw(*v.shape, seed=9).to(v))
    assert x.grad is not None
    return x.grad, collect(wan)


def distance(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()
