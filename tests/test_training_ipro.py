"""The IPRO objective on toys: shares add up, lost faces count, the reward rises and the anchor holds."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import ToyCodec, ToyModel

from ipro_core.faces.alignment import TEMPLATE_52
from ipro_core.rewards.face_pool import FacePoolReward
from ipro_core.runs import Run
from ipro_core.sampling.gradient import reward_gradient
from ipro_core.sampling.rollout import sample as sampled
from ipro_core.training.base import (
    TrainingSample,
    method_catalogue,
    method_of,
    microbatches,
    objective_of,
    stack_conditions,
    without_first_frame,
)
from ipro_core.training.ipro import IproObjective, IproSettings
from ipro_core.training.loop import Draw, LoopSettings, draw_batch, train
from ipro_core.training.presets import PRESETS, TINY, Preset
from ipro_core.training.settings import SamplingSettings
from ipro_core.types import Face, FacePool, Person, check_knobs

SIDE = 12
SETTINGS = IproSettings(grad_steps=2, steps=4, reward_weight=1.0, choose="largest")
LOOP = LoopSettings(updates=25, batch_size=4, learning_rate=0.02)


class ToyDetector:
    """Finds the same face in every frame it is told to see."""

    def __init__(self, sees=lambda t: True):
        self.sees = sees

    def detect(self, frames_TCHW: Tensor, threshold: float = 0.5) -> list[list[Face]]:
        face = Face(torch.tensor([0.0, 0, SIDE, SIDE]), torch.tensor(TEMPLATE_52) * SIDE / 112, 0.9)
        return [[face] if self.sees(t) else [] for t in range(len(frames_TCHW))]


class ToyRecognizer:
    """A random linear map of the crop, to unit length."""

    name, size, dim = "toy", 16, 6

    def __init__(self):
        self.map = torch.randn(3 * self.size**2, self.dim, generator=torch.Generator().manual_seed(3))

    def embed(self, crops_T3HW: Tensor) -> Tensor:
        return F.normalize((crops_T3HW - 0.5).flatten(1) @ self.map, dim=1)


def pool_of(seed: int, faces: int = 3) -> FacePool:
    embeddings = torch.randn(faces, 6, generator=torch.Generator().manual_seed(seed))
    return FacePool(
        F.normalize(embeddings, dim=1),
        torch.arange(faces),
        torch.ones(faces, dtype=torch.bool),
        torch.zeros(faces, 4),
        "toy",
    )


def sample(seed: int, frames: int = 3) -> TrainingSample:
    condition = 0.1 * torch.randn(1, 4, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    return TrainingSample(f"clip {seed}", condition, (4, frames, SIDE, SIDE), (Person(pool_of(seed)),))


def objective(settings=SETTINGS, sees=lambda t: True, **reward) -> IproObjective:
    model, codec = ToyModel(dtype=torch.float32, spread=0.1), ToyCodec(dtype=torch.float32)
    detector: Any = ToyDetector(sees)
    recognizer: Any = ToyRecognizer()
    return IproObjective(model, codec, detector, recognizer, FacePoolReward(**reward), settings)


def gradient_and_metrics(of: IproObjective, samples: list[TrainingSample]) -> tuple[Tensor, dict[str, float]]:
    metrics: dict[str, float] = {}
    for part in of.gradients(draw_batch(samples, replace(LOOP, batch_size=len(samples)), 0)):
        metrics |= {name: metrics.get(name, 0.0) + value for name, value in part.items()}
    gradients = [p.grad for p in of.model.adapter_parameters().values()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]), metrics


@pytest.mark.parametrize("microbatch", [1, 2, 4])
def test_microbatches_of_any_size_and_mixed_shapes_add_up_to_the_same_mean(microbatch):
    samples = [sample(0), sample(1, frames=2), sample(2), sample(3), sample(4)]
    jittered = replace(SETTINGS, landmark_jitter=1.0)
    one_by_one = [objective(jittered) for _ in samples]
    draws = draw_batch(samples, replace(LOOP, batch_size=5), 0)
    alone = [next(one.gradients([draw])) for one, draw in zip(one_by_one, draws, strict=True)]
    singles = [
        torch.cat([p.grad.flatten() for p in one.model.adapter_parameters().values() if p.grad is not None])
        for one in one_by_one
    ]
    gradient, metrics = gradient_and_metrics(objective(replace(jittered, microbatch=microbatch)), samples)
    torch.testing.assert_close(gradient, torch.stack(singles).mean(dim=0), rtol=1e-4, atol=1e-7)
    for name, value in metrics.items():
        assert value == pytest.approx(sum(one[name] for one in alone) / 5, rel=1e-4, abs=1e-7), name


def test_a_microbatch_holds_one_shape_and_no_more_than_asked():
    samples = [sample(0), sample(1, frames=2), sample(2), sample(3), sample(4, frames=2)]
    draws = [Draw(one, torch.Generator()) for one in samples]
    parts = [[draw.sample.name for draw in part] for part in microbatches(draws, 2)]
    assert parts == [["clip 0", "clip 2"], ["clip 3"], ["clip 1", "clip 4"]]


def test_tuning_raises_the_reward_and_the_anchor_holds_it_back():
    def tuned(kl_weight: float) -> list[dict[str, float]]:
        # One clip and one noise, because the toy's 16 weights cannot please several.
        of = objective(replace(SETTINGS, kl_weight=kl_weight, measure_kl=True, noise_seed=24))
        return [record.metrics for record in train(of.model, of, [sample(0)], replace(LOOP, batch_size=1))]

    free, held = tuned(0.0), tuned(30.0)
    assert free[-1]["reward"] > free[0]["reward"] + 0.1
    assert held[-1]["kl"] < 0.5 * free[-1]["kl"]
    assert all(metrics["coverage"] == 1 and metrics["faceless"] == 0 for metrics in free)


def test_nothing_moves_without_a_reward_where_the_model_is_still_the_frozen_one():
    of = objective(replace(SETTINGS, reward_weight=0.0))
    of.model.adapter_parameters()["up"].data.zero_()
    gradient, metrics = gradient_and_metrics(of, [sample(0)])
    assert metrics["kl"] == 0 and gradient.abs().max() == 0


def test_a_video_without_a_face_is_counted_and_said_once_and_never_moves_the_model(caplog):
    of = objective(replace(SETTINGS, kl_weight=0.0), sees=lambda t: False)
    gradient, metrics = gradient_and_metrics(of, [sample(0), sample(1)])
    assert gradient.abs().max() == 0
    wanted = {"reward": 0, "score": 0, "coverage": 0, "faceless": 1}
    assert {name: metrics[name] for name in wanted} == wanted
    gradient_and_metrics(of, [sample(0)])
    assert caplog.text.count("shows no face") == 1


def test_lost_frames_lower_the_coverage_and_the_reward_but_not_the_score():
    # Two of three frames seen: coverage 2/3. "count" gives the lost frame at most 0, so reward <= 2/3 score.
    of = objective(sees=lambda t: t != 1)
    _, metrics = gradient_and_metrics(of, [sample(1)])
    assert metrics["coverage"] == pytest.approx(2 / 3) and metrics["faceless"] == 0
    assert metrics["reward"] <= 2 / 3 * metrics["score"] + 1e-6
    _, skipped = gradient_and_metrics(objective(sees=lambda t: t != 1, missing="skip"), [sample(1)])
    assert skipped["reward"] == pytest.approx(skipped["score"])


def test_the_frozen_model_takes_the_steps_before_the_first_tuned_one():
    # Where the frozen model has taken every step but the last, the gradient is that of one step from its x.
    late, whole = replace(SETTINGS, first_tuned_step=SETTINGS.steps - 1, grad_steps=1), objective()
    gradient, _ = gradient_and_metrics(objective(late), [sample(0)])
    (draw,) = draw_batch([sample(0)], replace(LOOP, batch_size=1), 0)
    noise = whole.noise(draw)[None]
    before = sampled(whole.model, noise, draw.sample.condition, whole.sigmas[:-1], frozen=True)
    reward_gradient(
        whole.model,
        whole.codec,
        lambda frames_TCHW, _: whole.score(frames_TCHW, draw),
        before,
        draw.sample.condition,
        whole.sigmas[-2:],
        grad_steps=1,
        reward_weight=SETTINGS.reward_weight,
        kl_weight=SETTINGS.kl_weight,
        kl_weighting=SETTINGS.kl_weighting,
    )
    expected = torch.cat(
        [p.grad.flatten() for p in whole.model.adapter_parameters().values() if p.grad is not None]
    )
    torch.testing.assert_close(gradient, expected)


def test_noise_is_each_draws_own_or_one_for_all():
    draws = draw_batch([sample(0)], replace(LOOP, batch_size=2), 0)
    first, second = (objective().noise(draw) for draw in draws)
    assert first.shape == (4, 3, SIDE, SIDE) and not torch.equal(first, second)
    fixed = objective(replace(SETTINGS, noise_seed=24))
    expected = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(24))
    assert all(torch.equal(fixed.noise(draw), expected) for draw in draws)


def test_the_pool_without_the_input_image_is_a_knob():
    pool = replace(pool_of(0), frames_P=torch.tensor([0, 2, 0]))
    assert torch.equal(without_first_frame(pool).embeddings_PD, pool.embeddings_PD[1:2])
    one = replace(sample(0), people=(Person(pool),))
    other = replace(sample(0), people=(Person(without_first_frame(pool)),))
    draw = lambda of: draw_batch([of], replace(LOOP, batch_size=1), 0)  # noqa: E731
    without = next(objective(replace(SETTINGS, pool_first_frame=False)).gradients(draw(one)))
    assert without["reward"] == pytest.approx(next(objective().gradients(draw(other)))["reward"])
    assert without["reward"] != pytest.approx(next(objective().gradients(draw(one)))["reward"])


@dataclass(frozen=True)
class Condition:
    text: Tensor
    image: Tensor | None = None


def test_conditions_join_along_the_batch():
    one, two = Condition(torch.zeros(1, 5)), Condition(torch.ones(1, 5))
    assert torch.equal(stack_conditions([one, two]).text, torch.tensor([[0.0], [1.0]]).expand(2, 5))
    assert stack_conditions([one, two]).image is None
    assert stack_conditions([one]) is one and stack_conditions([None, None]) is None
    assert stack_conditions([torch.zeros(1, 2), torch.ones(1, 2)]).shape == (2, 2)


def test_a_resumed_tuning_ends_in_the_same_bytes(tmp_path: Path):
    loop = replace(LOOP, updates=5, checkpoint_every=2)
    jittered = replace(SETTINGS, landmark_jitter=1.0, microbatch=3)
    for name, stops in (("unbroken", [5]), ("broken", [3, 5])):
        for stop in stops:
            of = objective(jittered)
            with (
                Run.open(tmp_path / name)
                if stop == 5 and len(stops) > 1
                else Run.create(tmp_path / name, {}) as run
            ):
                records = train(of.model, of, [sample(0), sample(1), sample(2)], loop, run)
                assert next(record for record in records if record.step == stop)
                records.close()
    for file in ("metrics.jsonl", "state/step-00000005.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes()


def test_presets_keep_their_limits_and_the_papers_numbers():
    for preset in PRESETS.values():
        check_knobs(preset.loop)
        check_knobs(preset.method)
    paper, code = PRESETS["paper"], PRESETS["authors-code"]
    assert (paper.loop.learning_rate, paper.loop.batch_size, paper.loop.updates) == (2e-5, 64, 100)  # 5.1
    assert (paper.method.steps, paper.method.grad_steps) == (8, 4)  # 5.1
    assert (paper.method.reward_weight, paper.method.kl_weight) == (0.1, 1.0)  # 5.1
    assert code.method.reward_weight == 0.625  # 0.1 / 0.16


def test_every_knob_can_become_a_flag():
    for settings in (LoopSettings, *method_catalogue().values()):
        hints = get_type_hints(settings)
        assert all(knob.name in hints and "%" not in knob.metadata["help"] for knob in fields(settings))


def test_another_method_keeps_the_schedule_and_says_which_knobs_it_lacks():
    @dataclass(frozen=True)
    class Other(SamplingSettings):
        pass

    preset = replace(TINY, method=Other(first_tuned_step=2, shift=3.0))
    plan = preset.changed(method="ipro", grad_steps=3).method
    assert isinstance(plan, IproSettings) and objective_of(plan) is IproObjective
    assert (plan.first_tuned_step, plan.shift, plan.grad_steps, plan.kl_weight) == (2, 3.0, 3, 1.0)
    with pytest.raises(ValueError, match="no method sft-2"):
        preset.changed(method="sft-2")
    with pytest.raises(ValueError, match="ipro has no setting colour"):
        TINY.changed(colour=1)
    kept = Preset.from_config(json.loads(json.dumps(TINY.config())))
    assert kept.method == TINY.method and method_of(kept.method) == "ipro"
    with pytest.raises(ValueError, match="method magic, which is not here"):
        Preset.from_config({**TINY.config(), "method": "magic"})


# Fewer passes: each choice gives the whole gradient in expectation, hence exactly when every choice is taken
# once.


def chosen_gradients(settings: IproSettings, chosen, wanted: int) -> Tensor:
    """The mean of the gradients of `wanted` different random choices; `chosen` says what a draw's was."""
    found: dict[Any, Tensor] = {}
    for number in range(200):
        of, generator = objective(settings), torch.Generator().manual_seed(number)
        noise = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
        of.noise = lambda draw, noise=noise: noise
        choice = chosen(torch.Generator().manual_seed(number))
        if choice not in found:
            for _ in of.gradients([Draw(sample(0), generator)]):
                pass
            gradients = [p.grad for p in of.model.adapter_parameters().values() if p.grad is not None]
            found[choice] = torch.cat([gradient.flatten() for gradient in gradients])
    assert len(found) == wanted
    return torch.stack(list(found.values())).mean(dim=0)


def test_one_random_frame_has_the_whole_gradient_in_expectation():
    free = replace(SETTINGS, kl_weight=0.0)
    whole = chosen_gradients(free, lambda generator: None, 1)
    one = chosen_gradients(
        replace(free, gradient_frames=1), lambda g: int(torch.randperm(3, generator=g)[0]), 3
    )
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-7)


def test_one_random_reference_step_has_the_whole_gradient_in_expectation():
    whole = chosen_gradients(SETTINGS, lambda generator: None, 1)
    one = chosen_gradients(
        replace(SETTINGS, reference_steps=1), lambda g: int(torch.randperm(2, generator=g)[0]), 2
    )
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-7)


def test_an_anchor_by_chance_has_the_whole_gradient_in_expectation():
    # Half the videos are compared, at twice the weight: the mean of one that is and one that is not.
    whole = chosen_gradients(SETTINGS, lambda generator: None, 1)
    half = replace(SETTINGS, reference_chance=0.5)
    some = chosen_gradients(half, lambda g: bool(torch.rand((), generator=g) < 0.5), 2)
    torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-7)
    kl = []
    for seed in range(20):
        draw = Draw(sample(0), torch.Generator().manual_seed(seed))
        kl += [metrics["kl"] for metrics in objective(half).gradients([draw])]
        whole_kl = next(objective().gradients([Draw(sample(0), torch.Generator().manual_seed(seed))]))["kl"]
        assert kl[-1] == 0 or kl[-1] == pytest.approx(2 * whole_kl, rel=1e-5)
    assert 0 < kl.count(0) < 20


def test_steps_without_an_anchor_make_no_frozen_pass():
    of = objective(replace(SETTINGS, reference_steps=1))
    model: Any = of.model
    passes, frozen = [], model.frozen_velocity
    model.frozen_velocity = lambda *inputs: passes.append(1) or frozen(*inputs)
    model.velocity = lambda x, sigma, condition: frozen(x, sigma, condition) + model.up.sum() * x
    gradient_and_metrics(of, [sample(0)])
    assert len(passes) == 1


def test_nothing_is_compared_without_an_anchor_unless_it_is_asked_for():
    frozen = []
    without = {"kl_weight": 0.0, "reference_steps": 1}
    for settings in ({}, without, without | {"measure_kl": True}):
        of, passes = objective(replace(SETTINGS, **settings)), []
        model: Any = of.model
        velocity = model.frozen_velocity
        model.frozen_velocity = lambda *inputs, velocity=velocity, passes=passes: (
            passes.append(1) or velocity(*inputs)
        )
        model.velocity = lambda x, sigma, condition, velocity=velocity, model=model: (
            velocity(x, sigma, condition) + model.up.sum() * x
        )
        _, metrics = gradient_and_metrics(of, [sample(0)])
        frozen.append((len(passes), "kl" in metrics))
    assert frozen == [(2, True), (0, False), (1, True)]


def test_the_menu_of_estimators_is_a_menu_of_chains():
    tuned = replace(SETTINGS, steps=8, first_tuned_step=1, grad_steps=3)  # seven tuned steps
    wanted = {
        ("draft-k", "low-noise"): [(7, 4, 3)],
        ("draft-k", "high-noise"): [(7, 0, 3)],
        ("alignprop", "low-noise"): [(7, 6, 1), (7, 5, 2), (7, 4, 3)],
        ("alignprop", "high-noise"): [(7, 0, 1), (7, 0, 2), (7, 0, 3)],
        ("refl", "low-noise"): [(5, 4, 1), (6, 5, 1), (7, 6, 1)],
        ("refl", "high-noise"): [(1, 0, 1), (2, 1, 1), (3, 2, 1)],
    }
    for (estimator, at), chains in wanted.items():
        assert replace(tuned, estimator=estimator, placement=at).chains() == chains
    with pytest.raises(ValueError, match="draft-lv takes its gradient through the last step"):
        replace(tuned, estimator="draft-lv", placement="high-noise")


@pytest.mark.parametrize("at", ["low-noise", "high-noise"])
def test_refl_judges_what_one_step_predicts(at):
    # Xu et al. 2023: no gradient to a step drawn by chance, then R(x_t − sigma v(x_t)).
    settings = replace(SETTINGS, estimator="refl", placement=at, kl_weight=0.0, first_tuned_step=1)
    ours = chosen_gradients(settings, lambda g: int(torch.randint(2, (), generator=g)), 2)
    plain = []
    for step in (2, 3) if at == "low-noise" else (1, 2):
        of = objective(settings)
        draw = Draw(sample(0), torch.Generator())
        x = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))[None]
        x = sampled(of.model, x, draw.sample.condition, of.sigmas[:2], frozen=True)
        x = sampled(of.model, x, draw.sample.condition, of.sigmas[1 : step + 1])
        sigma = of.sigmas[step].item()
        predicted = x - sigma * of.model.velocity(x, sigma, draw.sample.condition)
        (-of.score(of.codec.decode(predicted)[0], draw).value).backward()
        gradients = [p.grad for p in of.model.adapter_parameters().values() if p.grad is not None]
        plain.append(torch.cat([gradient.flatten() for gradient in gradients]))
    torch.testing.assert_close(ours, torch.stack(plain).mean(dim=0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "how",
    [
        {"estimator": "refl"},
        {"estimator": "refl", "placement": "high-noise"},
        {"placement": "high-noise"},
        {"estimator": "draft-lv"},
    ],
    ids=str,
)
def test_every_estimator_raises_the_reward_and_feels_the_anchor(how):
    def tuned(kl_weight: float) -> list[dict[str, float]]:
        settings = replace(SETTINGS, **how, kl_weight=kl_weight, measure_kl=True, noise_seed=24)
        of = objective(settings)
        return [record.metrics for record in train(of.model, of, [sample(0)], replace(LOOP, batch_size=2))]

    free, held = tuned(0.0), tuned(30.0)
    assert free[-1]["reward"] > free[0]["reward"] + 0.05
    assert held[-1]["kl"] < 0.5 * free[-1]["kl"]


def test_the_plan_knows_what_each_estimator_goes_through():
    # Five tuned steps, K = 3, one pass kept, none compared.
    tuned = replace(SETTINGS, steps=8, first_tuned_step=3, grad_steps=3, kl_weight=0.0)
    wanted = {
        "draft-k": (5 + 3 - 1, 3, 1),
        "alignprop": (5 + 2 - 1, 2, 1),  # K is 2 in the mean
        "refl": (4, 1, 1),  # of steps 3, 4 and 5 one is the last
        "draft-lv": (5 + 2 * 1, 2, 2),
    }
    for estimator, numbers in wanted.items():
        passes = replace(tuned, estimator=estimator).passes()
        assert (passes.forward, passes.backward, passes.decodes) == numbers
    early = replace(tuned, placement="high-noise").passes()
    assert (early.forward, early.again, early.backward) == (5 + 5 - 1, 5, 5)
    anchored = replace(tuned, kl_weight=1.0).passes()
    assert (anchored.forward, anchored.backward) == (5 + 3 - 1 + 3, 3 + 2)


def test_settings_of_before_estimators_had_names_are_understood():
    old = PRESETS["tiny"].config()
    for name in ("estimator", "placement", "renoised_ends"):
        old["ipro"].pop(name)
    assert Preset.from_config(old) == PRESETS["tiny"]
    old["ipro"] |= {"random_grad_steps": True, "low_variance": 0}
    assert getattr(Preset.from_config(old).method, "estimator", "") == "alignprop"
    old["ipro"] |= {"random_grad_steps": False, "low_variance": 3}
    method: Any = Preset.from_config(old).method
    assert (method.estimator, method.renoised_ends) == ("draft-lv", 3)


def test_a_random_k_is_one_of_those_allowed():
    allowed = [chosen_gradients(replace(SETTINGS, grad_steps=k), lambda generator: None, 1) for k in (1, 2)]
    random = replace(SETTINGS, estimator="alignprop")
    mean = chosen_gradients(random, lambda g: int(torch.randint(1, 3, (), generator=g)), 2)
    torch.testing.assert_close(mean, (allowed[0] + allowed[1]) / 2, rtol=1e-4, atol=1e-7)


def test_draft_lv_averages_last_steps_that_begin_at_renoised_ends():
    of = objective(replace(SETTINGS, estimator="draft-lv", renoised_ends=2))
    generator = torch.Generator().manual_seed(3)
    for _ in of.gradients([Draw(sample(0), generator)]):
        pass
    gradient = torch.cat(
        [p.grad.flatten() for p in of.model.adapter_parameters().values() if p.grad is not None]
    )
    again, generator = objective(SETTINGS), torch.Generator().manual_seed(3)
    draw = Draw(sample(0), generator)
    condition, sigmas = draw.sample.condition, again.sigmas
    end = sampled(again.model, again.noise(draw)[None], condition, sigmas)
    for _ in range(2):
        noise = torch.randn(end.shape, generator=generator)
        x = (1 - sigmas[-2]) * end + sigmas[-2] * noise  # the flow's own mixture at the last level
        reward_gradient(
            again.model, again.codec, lambda frames, _: again.score(frames, draw), x, condition, sigmas[-2:],
            grad_steps=1, reward_weight=1.0, scale=0.5,
        )  # fmt: skip
    expected = torch.cat(
        [p.grad.flatten() for p in again.model.adapter_parameters().values() if p.grad is not None]
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
