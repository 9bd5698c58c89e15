"""DPO for flows: its number by hand, the published form, its pairs, and that preferences are learnt."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_training_ipro import LOOP, SIDE, ToyDetector, ToyRecognizer, gradient_and_metrics, sample
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import logsigmoid
from toys import ToyCodec, ToyModel, draw

from ipro_core.rewards.face_pool import FacePoolReward
from ipro_core.training.dpo import DpoObjective, DpoSettings, Pair
from ipro_core.training.loop import Draw, train
from ipro_core.types import RewardScore

SETTINGS = DpoSettings(steps=4, first_tuned_step=1, choose="largest", beta=3.0, candidates=3, levels=2)


def objective(settings: DpoSettings = SETTINGS, model: Any = None, dtype=torch.float32) -> DpoObjective:
    model = model or ToyModel(dtype=dtype, spread=0.1)
    looks: Any = ToyDetector(), ToyRecognizer()
    return DpoObjective(model, ToyCodec(dtype=dtype), *looks, FacePoolReward(), settings)


class Constant:
    """v_θ = θ everywhere, v_ref = 0."""

    def __init__(self, theta: float = 0.0):
        self.theta = Parameter(torch.tensor([theta]))

    def velocity(self, x: Tensor, sigma: float, condition: Any) -> Tensor:
        return self.theta.expand_as(x)

    def frozen_velocity(self, x: Tensor, sigma: float, condition: Any) -> Tensor:
        return torch.zeros_like(x)

    def adapter_parameters(self) -> dict[str, Parameter]:
        return {"theta": self.theta}


@pytest.mark.parametrize("theta, loss, slope", [(0.0, math.log(2), 3.0), (-0.1, 0.437488, 2.126062)])
def test_loss_and_gradient_are_those_that_paper_and_pencil_give(theta, loss, slope):
    # e(x) = mean (θ − (ε − x))² − mean (ε − x)² = θ² − 2θ (mean ε − mean x). With one ε for both,
    # e(winner) − e(loser) = 2θ (mean w − mean l) = 4θ for videos of 1 and −1, whatever ε is. With β = 3 the
    # margin is −3/2 · 4θ = −6θ and L = log(1 + exp(6θ)): log 2 at 0, with slope 6/2; at −0.1 the logarithm of
    # 1 + exp(−0.6) = 0.437488, with slope 6 / (1 + exp(0.6)) = 2.126062.
    of = objective(model=Constant(theta))
    (given,) = [Draw(sample(0), torch.Generator().manual_seed(1))]
    ones = torch.ones(given.sample.latent_shape)
    metrics = of._gradient([given], [Pair(ones, -ones)], 0.7, 1.0)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["margin"] == pytest.approx(-6 * theta, abs=1e-5)
    assert metrics["accuracy"] == (1.0 if theta else 0.5)
    (parameter,) = of.model.adapter_parameters().values()
    assert parameter.grad is not None and parameter.grad.item() == pytest.approx(slope, rel=1e-5)
    # ||v_θ − v_ref||² = θ²; Eq. 7's weight at 0.7 is 1 / 0.98.
    assert metrics["drift"] == pytest.approx(theta**2) and metrics["kl"] == pytest.approx(theta**2 / 0.98)


def test_the_gradient_is_that_of_the_published_form():
    # Wallace et al. 2024, Eq. 14, with velocities for noises as Liu et al. 2025 have them: squared norms,
    # which are sums; our β is theirs times the number of elements.
    of, draws = (
        objective(dtype=torch.float64),
        [Draw(sample(n), torch.Generator().manual_seed(n)) for n in (0, 1)],
    )
    shape, sigma = draws[0].sample.latent_shape, 0.6
    pairs = [Pair(*(draw(*shape, seed=10 * n + k).double() for k in (1, 2))) for n in (0, 1)]
    metrics = of._gradient(draws, pairs, sigma, 1.0)
    ours = torch.cat([p.grad.flatten() for p in of.model.adapter_parameters().values()])  # type: ignore[union-attr]

    plain, losses = objective(dtype=torch.float64), []
    for n, pair in enumerate(pairs):
        given = Draw(sample(n), torch.Generator().manual_seed(n))
        noise = plain.noise(given)
        errors = {}
        for name, x in zip("wl", pair, strict=True):
            x_t, told = ((1 - sigma) * x + sigma * noise)[None], given.sample.condition
            v = plain.model.velocity(x_t, sigma, told)[0]
            v_ref = plain.model.frozen_velocity(x_t, sigma, told)[0]
            errors[name] = ((noise - x) - v).square().sum(), ((noise - x) - v_ref).square().sum()
        beta = plain.settings.beta / noise.numel()
        (won, won_ref), (lost, lost_ref) = errors["w"], errors["l"]
        losses.append(-logsigmoid(-beta / 2 * ((won - won_ref) - (lost - lost_ref))))
    loss = torch.stack(losses).mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in plain.model.adapter_parameters().values()])  # type: ignore[union-attr]
    assert (ours - expected).norm() <= 1e-10 * expected.norm()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-10)


def test_the_best_and_the_worst_of_the_candidates_are_the_pair():
    of = objective(replace(SETTINGS, candidates=4))
    judged: list[tuple[float, Tensor]] = []
    score = of._judged

    def listened(video_CTHW, given):
        result = score(video_CTHW, given)
        judged.append((result.value.item(), video_CTHW))
        return result

    of._judged = listened
    (given,) = [Draw(sample(0), torch.Generator().manual_seed(3))]
    pairs, metrics = of._pairs([given])
    values, videos = zip(*sorted(judged, key=lambda one: one[0]), strict=True)
    assert len(videos) == 4 and len(set(values)) == 4
    assert torch.equal(pairs[given].winner, videos[-1]) and torch.equal(pairs[given].loser, videos[0])
    assert metrics["gap"] == pytest.approx(values[-1] - values[0])
    assert metrics["reward"] == pytest.approx(sum(values) / 4)


def test_who_samples_the_candidates_is_a_knob():
    videos = []
    for spread, sampled_by in ((0.1, "current"), (0.1, "frozen"), (0.0, "current")):
        of = objective(replace(SETTINGS, sampled_by=sampled_by), ToyModel(dtype=torch.float32, spread=spread))
        given = Draw(sample(0), torch.Generator().manual_seed(3))
        videos.append(of._pairs([given])[0][given].winner)
    assert not torch.equal(videos[0], videos[1]) and torch.equal(videos[1], videos[2])


def test_candidates_begin_in_different_latents_of_a_frozen_expert():
    made = tuple(partial(draw, 4, 3, SIDE, SIDE, seed=seed) for seed in range(4))
    given = Draw(replace(sample(0), starts=made), torch.Generator().manual_seed(3))
    starts = [x[0] for x in objective()._starts([given], None)]
    drawn = [next(n for n, read in enumerate(made) if torch.equal(read(), x)) for x in starts]
    assert len(set(drawn)) == SETTINGS.candidates == 3
    with pytest.raises(ValueError, match="made 2 beginnings: set boundary_seeds to 3, or candidates to 2"):
        list(objective()._starts([replace(given, sample=replace(given.sample, starts=made[:2]))], None))


def test_videos_without_a_winner_teach_nothing():
    looks: Any = ToyDetector(lambda t: False), ToyRecognizer()
    model = ToyModel(dtype=torch.float32, spread=0.1)
    of = DpoObjective(model, ToyCodec(dtype=torch.float32), *looks, FacePoolReward(), SETTINGS)
    metrics: dict[str, float] = {}
    for part in of.gradients([Draw(sample(0), torch.Generator())]):
        metrics |= {name: metrics.get(name, 0.0) + value for name, value in part.items()}
    assert all(parameter.grad is None for parameter in model.adapter_parameters().values())
    assert (
        metrics["loss"] == pytest.approx(math.log(2)) and metrics["accuracy"] == 0.5 and metrics["gap"] == 0
    )


def test_people_may_have_chosen_the_pair():
    won, lost = (draw(4, 3, SIDE, SIDE, seed=seed) for seed in (7, 8))
    of, voted = objective(), replace(sample(0), video=lambda: won, rejected=lambda: lost)
    given = Draw(voted, torch.Generator())
    pairs, metrics = of._pairs([given])
    assert torch.equal(pairs[given].winner, won) and torch.equal(pairs[given].loser, lost) and not metrics


def test_a_preference_is_learnt():
    # One pair for good, told apart by their channels: the margin can grow without bound, so accuracy reaches
    # 1 and the loss falls to 0.
    won, lost = (torch.eye(4)[channel, :, None, None, None].expand(4, 3, SIDE, SIDE) for channel in (0, 1))
    voted = replace(sample(0), video=lambda: won, rejected=lambda: lost)
    of = objective(replace(SETTINGS, beta=50.0))
    records = [r.metrics for r in train(of.model, of, [voted], replace(LOOP, updates=40, learning_rate=0.05))]
    assert records[-1]["accuracy"] == 1 and records[-1]["margin"] > 3
    assert records[-1]["loss"] < 0.1 < 0.5 < records[0]["loss"]


class Plain:
    """The latents are the frames."""

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        return latents_BCTHW.transpose(1, 2)


def test_the_reward_rises_to_its_optimum_where_its_ranking_is_learnt():
    # v = θ takes ε to ε − θ. The reward −(mean of the video − 1)² is best at θ = −1, and −1 at θ = 0; the
    # sixteen numbers of a video let candidates differ by 1/4 in the mean.
    looks: Any = ToyDetector(), ToyRecognizer()
    settings = replace(SETTINGS, first_tuned_step=0, beta=1.0, candidates=4, levels=1, microbatch=8)
    of = DpoObjective(Constant(), Plain(), *looks, FacePoolReward(), settings)
    seen = torch.ones(1, dtype=torch.bool)

    def score(frames_TCHW: Tensor, draw: Draw) -> RewardScore:
        value = -((frames_TCHW.mean() - 1) ** 2)
        return RewardScore(value, value[None], seen)

    of.score = score
    small = replace(sample(0), latent_shape=(4, 1, 2, 2))
    loop = replace(LOOP, updates=80, batch_size=8, learning_rate=0.05)
    rewards = [record.metrics["reward"] for record in train(of.model, of, [small], loop)]
    assert rewards[0] < -0.7 and sum(rewards[-10:]) / 10 > -0.2


def test_passes_are_the_promised_number_and_one_graph_is_alive_at_a_time():
    calls = {"velocity": 0, "frozen_velocity": 0, "backward": 0}

    class Counted(Constant):
        def velocity(self, x, sigma, condition):
            calls["velocity"] += 1
            v = super().velocity(x, sigma, condition) * 1.0
            if v.requires_grad:
                v.register_hook(lambda _: calls.update(backward=calls["backward"] + 1))
            return v

        def frozen_velocity(self, x, sigma, condition):
            calls["frozen_velocity"] += 1
            return super().frozen_velocity(x, sigma, condition)

    of = objective(model=Counted())
    for _ in of.gradients([Draw(sample(0), torch.Generator().manual_seed(1))]):
        pass
    # 3 candidates of 3 tuned steps, for each of which the frozen model takes the step before; 2 levels of 3
    # passes of v_θ, 2 of v_ref and 2 backward.
    assert calls == {"velocity": 9 + 6, "frozen_velocity": 3 + 4, "backward": 4}
    passes = SETTINGS.passes()
    assert passes.forward == 9 + 6 + 4 and passes.backward == 4 and passes.decodes == 3


def test_one_noise_for_all_is_refused():
    with pytest.raises(ValueError, match="several noises"):
        objective(replace(SETTINGS, noise_seed=24))


def test_several_pairs_pass_together_and_add_up_to_the_same():
    samples = [sample(seed) for seed in range(3)]
    alone, one_by_one = gradient_and_metrics(objective(), samples)
    together, at_once = gradient_and_metrics(objective(replace(SETTINGS, microbatch=3)), samples)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-6)
    assert at_once == pytest.approx(one_by_one, rel=1e-3, abs=1e-5)
