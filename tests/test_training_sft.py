"""Supervised fine-tuning with the face loss: its gradient, its optimum, and that it comes down."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_training_ipro import LOOP, SIDE, ToyDetector, ToyRecognizer, gradient_and_metrics, sample
from torch import Tensor
from torch.nn import Parameter
from toys import ToyCodec, ToyModel, draw

from ipro_core.rewards.face_pool import FacePoolReward
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.training.base import TrainingSample
from ipro_core.training.loop import Draw, train
from ipro_core.training.sft import SftObjective, SftSettings

SETTINGS = SftSettings(steps=4, first_tuned_step=1, choose="largest", face_weight=0.3)


def filmed(seed: int) -> TrainingSample:
    """A sample whose real clip is known: (4, 3, SIDE, SIDE)."""
    return replace(sample(seed), video=lambda: draw(4, 3, SIDE, SIDE, seed=100 + seed))


def objective(settings: SftSettings = SETTINGS, model: Any = None) -> SftObjective:
    model = model or ToyModel(dtype=torch.float32, spread=0.1)
    looks: Any = ToyDetector(), ToyRecognizer()
    return SftObjective(model, ToyCodec(dtype=torch.float32), *looks, FacePoolReward(), settings)


@pytest.mark.parametrize("face_weight", [0.0, 0.3])
def test_the_gradient_is_plain_autograds(face_weight):
    of, one = objective(replace(SETTINGS, face_weight=face_weight)), filmed(0)
    gradient, metrics = gradient_and_metrics(of, [one])

    plain = objective(of.settings)
    (given,) = _draws([one])
    levels = plain.sigmas[1:-1].tolist()
    sigma = levels[int(torch.randint(len(levels), (), generator=given.generator))]
    noise = plain.noise(given)[None]
    assert one.video is not None
    x_0 = one.video()[None]
    v = plain.model.velocity((1 - sigma) * x_0 + sigma * noise, sigma, one.condition)
    frames = plain.codec.decode((1 - sigma) * x_0 + sigma * noise - sigma * v)[0]
    loss = (v - (noise - x_0)).square().mean() + face_weight * (1 - plain.score(frames, given).value)
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in plain.model.adapter_parameters().values()])  # type: ignore[union-attr]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert ("reward" in metrics) == (face_weight > 0)


def _draws(samples: list[TrainingSample]) -> tuple[Draw, ...]:
    from ipro_core.training.loop import draw_batch

    return draw_batch(samples, replace(LOOP, batch_size=len(samples)), 0)


@pytest.mark.parametrize("microbatch", [1, 2, 5])
def test_videos_at_one_level_pass_together_and_add_up_to_the_same(microbatch):
    samples = [filmed(seed) for seed in range(5)]
    alone, _ = gradient_and_metrics(objective(), samples)
    together, _ = gradient_and_metrics(objective(replace(SETTINGS, microbatch=microbatch)), samples)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


class Constant:
    """v = θ, one number for each channel: the best is what the clips' velocities are in the mean."""

    def __init__(self, channels: int = 4):
        self.theta = Parameter(torch.zeros(channels))

    def velocity(self, x: Tensor, sigma: float, condition: Any) -> Tensor:
        return self.theta[:, None, None, None].expand_as(x)

    def adapter_parameters(self) -> dict[str, Parameter]:
        return {"theta": self.theta}


def test_flow_matching_finds_the_mean_velocity_of_its_clips():
    # E(ε − x_0) = −E x_0: of clips that are c in channel c everywhere, −c. At the best, L is what is left of
    # E(ε − x_0 + E x_0)² = 1, the noise's own.
    settings, model = replace(SETTINGS, face_weight=0.0, microbatch=8), Constant()
    clip = torch.arange(4.0)[:, None, None, None].expand(4, 3, SIDE, SIDE)
    of, one = objective(settings, model), replace(sample(0), video=lambda: clip)
    loop = replace(LOOP, updates=150, batch_size=8, learning_rate=0.1, last_rate=0.05)
    records = [record.metrics for record in train(of.model, of, [one], loop)]
    torch.testing.assert_close(model.theta.detach(), -torch.arange(4.0), rtol=0, atol=0.02)
    # At first E(ε − c)² = 1 + the mean of c², (0 + 1 + 4 + 9) / 4 = 3.5.
    assert records[0]["loss"] == pytest.approx(4.5, abs=0.1)
    assert records[-1]["loss"] == pytest.approx(1.0, abs=0.05)


def test_the_face_loss_raises_the_reward_of_what_is_predicted():
    def last(face_weight: float) -> float:
        of = objective(replace(SETTINGS, face_weight=face_weight, noise_seed=24, microbatch=4))
        rewards = [record.metrics["reward"] for record in train(of.model, of, [filmed(0)], LOOP)]
        return sum(rewards[-5:]) / 5

    assert last(30.0) > last(1e-6) + 0.1


def test_levels_are_those_of_the_tuned_steps():
    seen: set[float] = set()

    class Listening(Constant):
        def velocity(self, x, sigma, condition):
            seen.add(round(sigma, 4))
            return super().velocity(x, sigma, condition)

    of = objective(replace(SETTINGS, face_weight=0.0), Listening())
    for number in range(30):
        for _ in of.gradients([Draw(filmed(0), torch.Generator().manual_seed(number))]):
            pass
    assert seen == {round(sigma, 4) for sigma in shifted_sigmas(4, 5.0)[1:-1].tolist()}


def test_the_toy_recognizer_can_be_pleased():
    # What the tests above lean on: the reward of a clip's own pool is higher than that of another's.
    crop = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    embedding = ToyRecognizer().embed(crop)
    assert F.cosine_similarity(embedding, embedding).item() == pytest.approx(1)
