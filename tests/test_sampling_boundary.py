"""Boundary latents: what training would have sampled itself, made once."""

import torch
from toys import ToyModel

from ipro_core.cache import TensorCache
from ipro_core.sampling.boundary import boundary_noise, make_boundary_latents
from ipro_core.sampling.flow import shifted_sigmas, switch_step
from ipro_core.sampling.rollout import sample

SIGMAS = shifted_sigmas(8, 5.0)
SWITCH = switch_step(SIGMAS, 0.9)
SHAPE = (4, 3, 5, 6)
CONDITIONS = {"ann": torch.full((1, 4, 1, 1, 1), 0.1), "bob": torch.full((1, 4, 1, 1, 1), -0.1)}


def toy(seed: int) -> ToyModel:
    return ToyModel(seed=seed, dtype=torch.float32)


def made(cache: TensorCache, model: ToyModel, expert: str = "high", seeds=(0, 1)) -> list[torch.Tensor]:
    shapes = dict.fromkeys(CONDITIONS, SHAPE)
    keys = make_boundary_latents(cache, model, expert, CONDITIONS, shapes, seeds, SIGMAS[: SWITCH + 1])
    entries = [cache.load(key) for key in keys]
    assert all(entry is not None for entry in entries)
    return [entry["latents"] for entry in entries if entry]


def test_going_on_from_the_boundary_ends_where_the_whole_rollout_ends(tmp_path):
    high, low = toy(1), toy(2)
    for latents, (name, seed) in zip(
        made(TensorCache(tmp_path), high), [("ann", 0), ("ann", 1), ("bob", 0), ("bob", 1)], strict=True
    ):
        x = boundary_noise(name, SHAPE, seed)[None]
        x = sample(high, x, CONDITIONS[name], SIGMAS[: SWITCH + 1], frozen=True)
        whole = sample(low, x, CONDITIONS[name], SIGMAS[SWITCH:])
        assert torch.equal(sample(low, latents[None], CONDITIONS[name], SIGMAS[SWITCH:]), whole)


def test_a_second_run_samples_nothing(tmp_path):
    cache, model = TensorCache(tmp_path), toy(1)
    first = made(cache, model)
    model.frozen_velocity = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]
    assert all(torch.equal(a, b) for a, b in zip(first, made(cache, model), strict=True))


def test_another_expert_prompt_or_seed_has_latents_of_its_own(tmp_path):
    cache = TensorCache(tmp_path)
    latents = [*made(cache, toy(1)), *made(cache, toy(3), "high 2")]
    assert len({tensor.sum().item() for tensor in latents}) == 8
