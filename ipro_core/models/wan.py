"""Wan 2.1 and 2.2 as a VideoModel: v_θ and v_ref of Eq. 7 in one set of weights.

The network is diffusers' WanTransformer3DModel, the adapter peft's LoRA on the attention and feed-forward
layers (the authors' choice); how a pass is run, and where its weights and states lie meanwhile, is ours.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from ..files import sha256
from .adapters import TRAINED, Adapters
from .condition import WanCondition
from .frozen import FrozenLinear
from .lora import LowRank
from .memory import BlockStates, BlockWeights, Placement
from .stack import BlockStack, Lane
from .wan_files import load_transformer, open_wan_file
from .wan_keys import to_diffusers, to_official
from .wan_network import enter, leave

TARGETS = (
    *(f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"),
    "ffn.0",
    "ffn.2",
)
"""The layers of each block that the adapter changes, by official name."""


def load_video_model(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    num_heads: int | None = None,
    placement: Placement | None = None,
) -> "WanVideoModel":
    """Open a Wan network of any kind and format that `open_wan_file` knows.

    Args:
        dtype: of the frozen weights that are not quantised; None: as in the file.
        num_heads: for a network whose heads are not 128 wide and whose file does not say so.
        placement: how it shares device and host; None: all on `device`.

    Raises:
        ValueError: the file is missing, damaged, of a format that is not read, or of another model.
    """
    placement = placement or Placement(device)
    file = open_wan_file(path)
    home = "cpu" if placement.resident is not None else placement.device
    transformer = load_transformer(file, home, dtype, num_heads)
    return WanVideoModel(transformer, file.path, placement)


class WanVideoModel:
    """A frozen WanTransformer3DModel, frozen adapters beneath (Lightning), at most one that is trained."""

    def __init__(
        self,
        transformer: Any,
        path: Path,
        placement: Placement | None = None,
        *,
        dtype: torch.dtype | None = None,
        weights: BlockWeights | None = None,
        states: BlockStates | None = None,
    ):
        """dtype: what the network computes in; None: its patch embedding's. weights, states: instead of what
        `placement` makes, for tests."""
        placement = placement or Placement()
        self.transformer = transformer.requires_grad_(False)
        self.path, self.device = path, torch.device(placement.device)
        self.dtype: torch.dtype = dtype or transformer.patch_embedding.weight.dtype
        self.linears: dict[str, Any] = {
            to_official(name): module
            for name, module in transformer.named_modules()
            if isinstance(module, Linear | FrozenLinear)
        }
        """The layers that an adapter can change, by official name: Linear and FrozenLinear."""
        # Modules, since tensors may be moved; now, before an adapter's layer stands in a module's place.
        self._owners = {
            to_official(f"{name}.{part}".lstrip(".")): (module, part)
            for name, module in transformer.named_modules()
            for part in ("weight", "bias", "scale_shift_table")
            if getattr(module, part, None) is not None
        }
        self.adapters = Adapters(transformer, self.linears, to_diffusers)
        for name, module in transformer.named_children():
            if name != "blocks":
                module.to(self.device)
        transformer.scale_shift_table.data = transformer.scale_shift_table.data.to(self.device)
        self.stack = BlockStack(
            weights or BlockWeights(transformer.blocks, placement),
            states or BlockStates(placement),
            self.adapters,
            placement,
        )

    def velocity(self, x_BCTHW: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """v_θ(x, t) in x's type; the network computes in its own."""
        return self._run(x_BCTHW, sigma, condition, _Pass(self.adapters.active))[0]

    def frozen_velocity(self, x_BCTHW: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """v_ref(x, t): our adapter off, those beneath it on."""
        return self._run(x_BCTHW, sigma, condition, _Pass(self.adapters.frozen))[0]

    def velocities(
        self, x_BCTHW: Tensor, sigma: float, condition: WanCondition, *, fork: bool, through_reference: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """v_θ, v_θ again and v_ref by one visit of each block, and by one more all their gradients.

        Args:
            fork: let the second v_θ's gradient go to the adapter but not to x; else it is the first, as it
                is where blocks are not run again (`Placement.recompute`).
            through_reference: let v_ref have a gradient, which goes to x.
        """
        fork = fork and self.stack.recompute
        ours = _Pass(self.adapters.active, twice=fork)
        reference = _Pass(self.adapters.frozen, constant=not through_reference)
        v, *again, v_ref = self._run(x_BCTHW, sigma, condition, ours, reference)
        return v, again[0] if fork else v, v_ref

    def recalling(self) -> Callable[[int], AbstractContextManager[None]]:
        """See `base.recalling`: with it a pass that is run again finds its attention's results."""
        return self.stack.recalling()

    def adapter_parameters(self) -> Mapping[str, Parameter]:
        """By ComfyUI's name without its prefix: `blocks.0.self_attn.q.lora_A.weight`."""
        return self.adapters.parameters()

    def adapter(self) -> dict[str, LowRank]:
        """The trained adapter by official layer name; its tensors are the live ones."""
        return self.adapters.trained()

    def new_adapter(
        self, rank: int = 32, alpha: float | None = None, *, seed: int = 0, rank_stabilised: bool = False
    ) -> None:
        """Put a fresh adapter in place of ours: up = 0, so that v_θ begins as v_ref.

        Args:
            alpha: the update is alpha / rank · up · down; None: alpha = rank.
            seed: of `down`, which is the same on every device.
            rank_stabilised: divide by the root of the rank instead. Files know only alpha / rank: the alpha
                that `adapter` gives, and that is exported, is then alpha · root of the rank.
        """
        generator = torch.Generator().manual_seed(seed)
        given = float(alpha or rank) * (rank**0.5 if rank_stabilised else 1)
        layers = {}
        for name, linear in self.linears.items():
            if name.split(".", 2)[-1] in TARGETS:
                # Uniform in ± 1 / sqrt(inputs), what peft begins with too.
                down_RI = torch.rand(rank, linear.in_features, generator=generator) * 2 - 1
                up_OR = torch.zeros(linear.out_features, rank)
                layers[name] = LowRank(down_RI / linear.in_features**0.5, up_OR, given)
        self.place_adapter(layers)

    def place_adapter(self, layers: Mapping[str, LowRank], *, frozen: bool = False) -> None:
        """Replace our adapter by this one; or, if frozen, lay this one beneath it for good."""
        if not frozen:
            return self.adapters.place(layers, device=self.device)
        with self.stack.weights.changing():  # what is frozen travels with its block
            self.adapters.place(layers, frozen=True, device=self.device)

    def frozen_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the frozen tensors, by official name."""
        shapes = {name: tuple(getattr(*owner).shape) for name, owner in self._owners.items()}
        return shapes | {
            f"{name}.weight": (x.out_features, x.in_features) for name, x in self.linears.items()
        }

    @torch.no_grad()
    def change_frozen(self, differences: Mapping[str, Tensor]) -> None:
        """Add these to frozen tensors for good, by official name: they become part of v_ref."""
        with self.stack.weights.changing():
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
        return sha256(self.path)

    def _run(self, x_BCTHW: Tensor, sigma: float, condition: WanCondition, *passes: "_Pass") -> list[Tensor]:
        """The velocity of each pass; twice where it is wanted twice."""
        self._check(x_BCTHW, condition)
        text_BLD = condition.text_BLD.to(self.device, self.dtype)
        clip_BLD = None if condition.clip_BLD is None else condition.clip_BLD.to(text_BLD)
        tokens, lanes, exits = [], [], []
        for one in passes:
            x = x_BCTHW.detach() if one.constant else x_BCTHW
            x_in, t_BF = _network_input(x, sigma, condition)
            graph = torch.is_grad_enabled() and not one.constant
            with self.adapters.only(one.adapters), torch.set_grad_enabled(graph):
                x_BLD, side, time_BFD = enter(self.transformer, x_in, t_BF, text_BLD, clip_BLD)
            trained = tuple(self.adapter_parameters().values()) if TRAINED in one.adapters else ()
            tokens.append(x_BLD)
            lanes.append(Lane(side, one.adapters, () if one.constant else trained, one.twice))
            exits += [(one.adapters, x, time_BFD), (one.adapters, x.detach(), time_BFD)][: 1 + one.twice]
        velocities = []
        for x_BLD, (adapters, x, time_BFD) in zip(self.stack(tokens, lanes), exits, strict=True):
            with self.adapters.only(adapters):
                v = leave(self.transformer, x_BLD, time_BFD, x.shape[2:]).to(x)
            first = condition.first_BC1HW
            velocities.append(v if first is None else _held(v, x, sigma, first))
        return velocities

    def _check(self, x_BCTHW: Tensor, condition: WanCondition) -> None:
        """Raise ValueError where the condition is another model's."""
        config, name = self.transformer.config, self.path.name
        wanted = config.in_channels - config.out_channels
        given = 0 if condition.image_BCTHW is None else condition.image_BCTHW.shape[1]
        if given != wanted:
            raise ValueError(
                f"{name} takes {wanted} channels of an image beside {config.out_channels} of noise, "
                f"and the condition has {given}: make it for this model."
            )
        takes_clip = self.transformer.condition_embedder.image_embedder is not None
        if takes_clip != (condition.clip_BLD is not None):
            told = "takes" if takes_clip else "does not take"
            raise ValueError(
                f"{name} {told} CLIP's embedding of the first frame (Wan 2.1 image-to-video): "
                f"{'give' if takes_clip else 'leave out'} clip_BLD."
            )
        if condition.first_BC1HW is not None:
            shape = (*x_BCTHW.shape[:2], 1, *x_BCTHW.shape[3:])
            if wanted or condition.first_BC1HW.shape != shape:
                raise ValueError(
                    f"The latents of a first frame, here {tuple(condition.first_BC1HW.shape)}, are for a "
                    f"model without image channels (TI2V-5B) and of the video's size, here {shape}: "
                    f"{name} cannot begin with these."
                )


class _Pass(NamedTuple):
    adapters: tuple[str, ...]
    twice: bool = False
    """See `Lane.forked`."""
    constant: bool = False
    """Without a gradient."""


def _network_input(x_BCTHW: Tensor, sigma: float, condition: WanCondition) -> tuple[Tensor, Tensor]:
    """What goes through the patch embedding, and the time step: one, or one for each frame (B, F)."""
    t_BF = torch.full((len(x_BCTHW), 1), 1000 * sigma, device=x_BCTHW.device)
    if condition.image_BCTHW is not None:
        return torch.cat([x_BCTHW, condition.image_BCTHW.to(x_BCTHW)], dim=1), t_BF
    if condition.first_BC1HW is not None:
        t_BF = t_BF.repeat(1, x_BCTHW.shape[2])
        t_BF[:, 0] = 0
        return torch.cat([condition.first_BC1HW.to(x_BCTHW), x_BCTHW[:, :, 1:]], dim=2), t_BF
    return x_BCTHW, t_BF


def _held(v_BCTHW: Tensor, x_BCTHW: Tensor, sigma: float, first_BC1HW: Tensor) -> Tensor:
    """v with the first frame's share made such that Euler's steps lead to the given latents at sigma 0.

    The network never sees x's first frame, so that the others move as if it were put back after each step.
    """
    straight = (x_BCTHW[:, :, :1] - first_BC1HW.to(x_BCTHW)) / sigma
    return torch.cat([straight, v_BCTHW[:, :, 1:]], dim=2)
