"""Boundary latents: what training would have sampled itself, made once."""

import torch
from toys import ToyModel

from ipro_core.cache import TensorCache
from ipro_core.sampling.boundary import Start, boundary_stage
from ipro_core.sampling.flow import shifted_sigmas, switch_step
from ipro_core.sampling.rollout import sample

SIGMAS = shifted_sigmas(8, 5.0)
SWITCH = switch_step(SIGMAS, 0.9)
SHAPE = (4, 3, 5, 6)
CONDITIONS = {"ann": torch.full((1, 4, 1, 1, 1), 0.1), "bob": torch.full((1, 4, 1, 1, 1), -0.1)}
STARTS = [
    Start(name, SHAPE, seed, lambda name=name: CONDITIONS[name]) for name in CONDITIONS for seed in (0, 1)
]


def toy(seed: int) -> ToyModel:
    return ToyModel(seed=seed, dtype=torch.float32)


def made(cache: TensorCache, open_expert, expert: str = "high") -> list[torch.Tensor]:
    stage = boundary_stage(expert, open_expert, SIGMAS[: SWITCH + 1])
    entries = [stage.load(cache, start) for start in stage.run(cache, STARTS)]
    assert all(entry is not None for entry in entries)
    return [entry["latents"] for entry in entries if entry]


def test_going_on_from_the_boundary_ends_where_the_whole_rollout_ends(tmp_path):
    high, low = toy(1), toy(2)
    for latents, start in zip(made(TensorCache(tmp_path), lambda: high), STARTS, strict=True):
        condition = CONDITIONS[start.name]
        x = sample(high, start.noise()[None], condition, SIGMAS[: SWITCH + 1], frozen=True)
        whole = sample(low, x, condition, SIGMAS[SWITCH:])
        assert torch.equal(sample(low, latents[None], condition, SIGMAS[SWITCH:]), whole)


def test_a_second_run_opens_no_expert(tmp_path):
    cache = TensorCache(tmp_path)
    first = made(cache, lambda: toy(1))
    again = made(cache, lambda: 1 / 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_expert_prompt_or_seed_has_latents_of_its_own(tmp_path):
    cache = TensorCache(tmp_path)
    latents = [*made(cache, lambda: toy(1)), *made(cache, lambda: toy(3), "high 2")]
    assert len({tensor.sum().item() for tensor in latents}) == 8
