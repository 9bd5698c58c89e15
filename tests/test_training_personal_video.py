"""PersonalVideo: exact gradients, objectives that reach a known optimum, pictures seen anew each time."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_training_ipro import ToyDetector, ToyRecognizer, pool_of
from torch import Tensor
from toys import ToyCodec, ToyModel

from ipro_core.faces.alignment import TEMPLATE_52, crop_faces
from ipro_core.faces.references import (
    AROUND,
    SQUARE,
    ReferenceFaces,
    embed_references,
    jitter_colours,
    reference_faces,
)
from ipro_core.models.condition import WanCondition
from ipro_core.models.wan import WanVideoModel
from ipro_core.rewards.face_pool import FacePoolReward
from ipro_core.rewards.semantic import semantic_divergence
from ipro_core.sampling.flow import euler_step
from ipro_core.training.base import TrainingSample
from ipro_core.training.loop import Draw, draw_batch, train
from ipro_core.training.personal_video import PersonalVideoObjective, PersonalVideoSettings
from ipro_core.training.presets import TINY, Preset
from ipro_core.training.settings import LoopSettings
from ipro_core.types import Face, Person

SIDE = 12
PLAIN = PersonalVideoSettings(
    steps=4, choose="largest", gradient_frames=0, semantic_frames=0, crop_jitter=0, colour_jitter=0
)
"""Nothing by chance but the noise."""


class ToyScorer:
    """A random linear map of the frame, told apart by the prompt's length."""

    name, size, dim, scale = "toy", SIDE, 1, 10.0

    def __init__(self):
        self.map = torch.randn(3 * SIDE**2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def values(self, frames_TCHW: Tensor, prompt: str) -> Tensor:
        return torch.tanh(frames_TCHW.flatten(1) @ self.map.to(frames_TCHW) / 10) * len(prompt) / 10

    def embed_images(self, frames_NCHW: Tensor) -> Tensor:
        return F.normalize(frames_NCHW.flatten(1) @ self.map[:, None].to(frames_NCHW), dim=1)


def objective(settings=PLAIN, model: Any = None, dtype=torch.float32) -> PersonalVideoObjective:
    recognizer: Any = ToyRecognizer()
    recognizer.map = recognizer.map.to(dtype)
    model = model or ToyModel(dtype=dtype, spread=0.1)
    parts: Any = (model, ToyCodec(dtype=dtype), ToyDetector(), recognizer, FacePoolReward())
    return PersonalVideoObjective(*parts, settings, ToyScorer())


def sample(seed: int = 0, dtype=torch.float32, **more: Any) -> TrainingSample:
    pool = pool_of(seed)
    pool = replace(pool, embeddings_PD=pool.embeddings_PD.to(dtype))
    more = {"condition": None, "latent_shape": (4, 3, SIDE, SIDE), **more}
    return TrainingSample(f"prompt {seed}", people=(Person(pool),), prompt="a person walks", **more)


def text_to_video(dtype: torch.dtype) -> WanVideoModel:
    """Wan's text-to-video at its smallest: 4 latent channels, none of an image; the adapter not at rest."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
            text_dim=8, freq_dim=16, ffn_dim=48, num_layers=2,
        )  # fmt: skip
    model: Any = WanVideoModel(network.to(dtype), Path("tiny"), dtype=dtype)
    model.new_adapter(2)
    for name, parameter in model.adapter_parameters().items():
        parameter.data = parameter.data.to(dtype)
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.data = parameter.data.to(dtype)
    return model


def test_the_gradient_of_text_to_video_is_autograds():
    torch.manual_seed(0)
    settings = replace(
        PLAIN, steps=5, first_tuned_step=3, identity_weight=0.7, semantic_weight=0.3, measure_kl=True
    )
    model = text_to_video(torch.float64)
    of = objective(settings, model, torch.float64)
    text = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given = sample(dtype=torch.float64, condition=WanCondition(text))
    (metrics,) = of.gradients([Draw(given, torch.Generator().manual_seed(3))])
    ours = [parameter.grad.clone() for parameter in model.adapter_parameters().values()]

    draw = Draw(given, torch.Generator().manual_seed(3))
    condition = given.condition
    levels = list(pairwise(of.sigmas.tolist()))
    x = of.noise(draw)[None].double()
    with torch.no_grad():
        for sigma, following in levels[:3]:
            x = euler_step(x, model.frozen_velocity(x, sigma, condition), sigma, following)
        frozen = x
        for sigma, following in levels[3:]:
            frozen = euler_step(frozen, model.frozen_velocity(frozen, sigma, condition), sigma, following)
    for sigma, following in levels[3:]:
        x = euler_step(x, model.velocity(x, sigma, condition), sigma, following)
    frames, before = of.codec.decode(x)[0], of.codec.decode(frozen)[0]
    likeness = of.score(frames, draw).value
    values = [ToyScorer().values(shown, given.prompt) for shown in (frames, before)]
    divergence = semantic_divergence(*values, 0.1).sum()
    loss = 0.3 * divergence - 0.7 * likeness
    for parameter in model.adapter_parameters().values():
        parameter.grad = None
    loss.backward()
    for one, parameter in zip(ours, model.adapter_parameters().values(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-9, atol=1e-12)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert metrics["semantic"] == pytest.approx(divergence.item()) and metrics["semantic"] > 0
    assert metrics["reward"] == pytest.approx(likeness.item()) and metrics["kl"] > 0


def tuned(of: PersonalVideoObjective, given: TrainingSample, updates: int = 25) -> list[dict[str, float]]:
    loop = LoopSettings(updates=updates, batch_size=1, learning_rate=0.05)
    return [record.metrics for record in train(of.model, of, [given], loop)]


SHORT = replace(PLAIN, steps=2, first_tuned_step=1, noise_seed=1)
"""One noise and one tuned step."""


def test_the_likeness_alone_reaches_a_face_that_another_adapter_makes():
    # Of one frame, with the reference that another adapter makes of this noise: the best likeness is 1.
    one_frame = {"latent_shape": (4, 1, SIDE, SIDE)}
    teacher = objective(replace(SHORT, semantic_weight=0.0), ToyModel(dtype=torch.float32, spread=1.0))
    draw, sigma = Draw(sample(**one_frame), torch.Generator()), teacher.sigmas[1].item()
    x = teacher.start([draw], None)
    frame = teacher.codec.decode(euler_step(x, teacher.model.velocity(x, sigma, None), sigma, 0.0))[0]
    crop = crop_faces(frame, torch.tensor(TEMPLATE_52)[None] * SIDE / 112, 16)
    pool = replace(pool_of(0), embeddings_PD=teacher.recognizer.embed(crop).detach())
    given = replace(draw.sample, people=(Person(pool),))
    assert teacher.score(frame, replace(draw, sample=given)).value.item() == pytest.approx(1)
    steps = tuned(objective(replace(SHORT, semantic_weight=0.0)), given)
    assert 1 - steps[-1]["reward"] < 0.1 * (1 - steps[0]["reward"])
    assert steps[-1]["loss"] == pytest.approx(-steps[-1]["reward"]) and steps[0]["semantic"] == 0


def test_the_order_of_frames_alone_goes_back_to_the_frozen_models():
    # Its optimum is known: 0, where the adapter changes no order; it begins at an adapter that does.
    model = ToyModel(dtype=torch.float32, spread=1.0)
    steps = tuned(objective(replace(SHORT, identity_weight=0.0, semantic_temperature=10.0), model), sample())
    assert steps[0]["semantic"] > 0.001
    assert steps[-1]["semantic"] < 0.1 * steps[0]["semantic"]


def test_the_adapter_is_on_in_the_last_quarter_of_the_steps():
    assert PersonalVideoSettings().begins(0) == 6 and PersonalVideoSettings(steps=20).begins(0) == 15
    assert PersonalVideoSettings(steps=2).begins(0) == 1  # there is always one
    assert PersonalVideoSettings(steps=8, first_tuned_step=4).begins(0) == 4
    assert PersonalVideoSettings(steps=4).begins(3) == 3  # and never before the tuned network's own part
    plan = TINY.changed(method="personal-video")
    assert plan.method.first_tuned_step == -1 and plan.method.microbatch == TINY.method.microbatch
    assert Preset.from_config(json.loads(json.dumps(plan.config()))) == plan
    of = objective(PersonalVideoSettings(choose="largest"))
    assert of.settings.first_tuned_step == 6
    # Before it the adapter is never asked.
    asked = []
    velocity, of.model = of.model.velocity, of.model
    of.model.velocity = lambda x, sigma, condition: asked.append(sigma) or velocity(x, sigma, condition)  # type: ignore
    list(of.gradients([Draw(sample(), torch.Generator().manual_seed(0))]))
    assert set(asked) == set(of.sigmas[6:8].tolist())


def test_without_a_scorer_only_the_likeness_can_be_had():
    assert "scorer" in PLAIN.wants and "scorer" not in replace(PLAIN, semantic_weight=0.0).wants
    of = objective()
    parts: Any = (of.model, of.codec, of.detector, of.recognizer, of.reward)
    with pytest.raises(
        ValueError, match="wants a text-image scorer: give HPSv2 or CLIP with --prompt-scorer"
    ):
        PersonalVideoObjective(*parts, PLAIN)
    PersonalVideoObjective(*parts, replace(PLAIN, semantic_weight=0.0))


def test_frames_by_chance_give_the_whole_gradient_in_expectation_and_the_same_for_the_same_draw():
    few = replace(PLAIN, gradient_frames=1, semantic_weight=0.0)

    def gradient(settings: PersonalVideoSettings, seed: int) -> Tensor:
        of = objective(replace(settings, noise_seed=2), dtype=torch.float64)
        list(of.gradients([Draw(sample(dtype=torch.float64), torch.Generator().manual_seed(seed))]))
        return torch.cat([p.grad.flatten() for p in of.model.adapter_parameters().values()])  # type: ignore

    drawn = torch.stack([gradient(few, seed) for seed in range(12)])
    distinct = torch.unique(drawn.round(decimals=12), dim=0)
    # One of three frames carries three times its gradient: the mean of the three kinds is the whole.
    assert len(distinct) == 3
    torch.testing.assert_close(distinct.mean(dim=0), gradient(PLAIN_LIKENESS, 0), rtol=1e-8, atol=1e-10)
    assert torch.equal(gradient(few, 7), gradient(few, 7))


PLAIN_LIKENESS = replace(PLAIN, semantic_weight=0.0)


def test_what_a_frozen_expert_left_earlier_is_carried_on_to_the_adapters_first_step():
    of = objective(replace(PLAIN, steps=8, first_tuned_step=6))
    start = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    draw = Draw(sample(starts=(lambda: start,), starts_at=3), torch.Generator().manual_seed(0))
    x, condition = start[None], None
    for sigma, following in list(pairwise(of.sigmas.tolist()))[3:6]:
        x = euler_step(x, of.model.frozen_velocity(x, sigma, condition), sigma, following)
    torch.testing.assert_close(of.start([draw], condition), x)
    there = replace(draw, sample=replace(draw.sample, starts_at=None))
    torch.testing.assert_close(of.start([there], condition), start[None])


def test_colours_are_jittered_as_by_hand_and_the_gradient_goes_through():
    crops = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    draws = 1 + 0.5 * (2 * torch.rand(3, 2, generator=torch.Generator().manual_seed(9)) - 1)
    seen = jitter_colours(crops, 0.5, torch.Generator().manual_seed(9))
    for n in range(2):
        light, contrast, colour = draws[:, n].tolist()
        lit = crops[n].detach() * light
        luma = 0.299 * lit[0] + 0.587 * lit[1] + 0.114 * lit[2]
        hard = luma.mean() + contrast * (lit - luma.mean())
        grey = 0.299 * hard[0] + 0.587 * hard[1] + 0.114 * hard[2]
        torch.testing.assert_close(seen[n].detach(), grey + colour * (hard - grey))
    seen.sum().backward()
    # Contrast and saturation keep the luma's mean: all that is left of it is the light.
    luma_gradient = torch.autograd.grad(
        (jitter_colours(crops, 0.5, torch.Generator().manual_seed(9)) * LUMA).sum(), crops
    )[0]
    torch.testing.assert_close(luma_gradient, draws[0].view(2, 1, 1, 1) * LUMA.expand_as(crops))
    assert jitter_colours(crops, 0.0, torch.Generator()) is crops


LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def test_a_square_around_a_face_gives_the_crop_that_the_picture_gives():
    y, x = torch.meshgrid(torch.linspace(0, 6, 300), torch.linspace(0, 5, 240), indexing="ij")
    picture = torch.stack([y.sin(), x.cos(), (x * y).sin()]) * 0.3 + 0.5
    points = torch.tensor(TEMPLATE_52) * 0.8 + torch.tensor([60.0, 90.0])
    face = Face(torch.tensor([60.0, 90.0, 150.0, 180.0]), points, 0.9)

    class Finds:
        def detect(self, frames, threshold=0.5):
            return [[face] for _ in frames]

    detector: Any = Finds()
    recognizer: Any = ToyRecognizer()
    faces = reference_faces([picture, picture[:, :260]], detector, recognizer)
    assert faces.squares_P3SS.shape == (2, 3, SQUARE, SQUARE)
    by_picture = crop_faces(picture[None], points[None], 64)
    by_square = crop_faces(faces.squares_P3SS[:1], faces.points_P52[:1], 64)
    assert (by_picture - by_square).abs().max() < 0.01  # of a range of 0.6: it was resized once more
    # The box's 90 pixels are 1 / 2.2 of the square.
    eyes = (faces.points_P52[0, 1] - faces.points_P52[0, 0]).norm()
    assert eyes == pytest.approx(SQUARE / (AROUND * 90) * (points[1] - points[0]).norm().item(), rel=1e-5)


def test_pictures_are_looked_at_anew_by_each_draw_and_plainly_where_nothing_jitters():
    squares = torch.rand(2, 3, SQUARE, SQUARE, generator=torch.Generator().manual_seed(0))
    squares = F.avg_pool2d(squares, 9, 1, 4)
    faces = ReferenceFaces(squares, torch.tensor(TEMPLATE_52).expand(2, 5, 2) + 70)
    recognizer: Any = ToyRecognizer()
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    looks = [
        embed_references(faces, recognizer, generator, crop_jitter=1.5, colour_jitter=0.3)
        for generator in generators
    ]
    assert torch.equal(looks[0], looks[1]) and not torch.allclose(looks[0], looks[2])
    plain = embed_references(faces, recognizer, torch.Generator())
    torch.testing.assert_close(plain, recognizer.embed(crop_faces(squares, faces.points_P52, 16)))
    # And they are what the video is compared with: the mean direction of a draw's own look.
    given = replace(PLAIN, crop_jitter=1.5, colour_jitter=0.3)
    frames = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    draw = Draw(sample(pictures=faces), torch.Generator().manual_seed(0))
    value = objective(given).score(frames, draw).value
    crops = crop_faces(frames, torch.tensor(TEMPLATE_52).expand(3, 5, 2) * SIDE / 112, 16)
    torch.testing.assert_close(value, (recognizer.embed(crops) @ looks[0].mean(dim=0)).mean())


def test_a_whole_batch_adds_up_to_its_parts():
    of = objective(replace(PLAIN, microbatch=2))
    batch = draw_batch([sample(0), sample(1)], LoopSettings(batch_size=3), 0)
    total: dict[str, float] = {}
    for part in of.gradients(batch):
        total |= {name: total.get(name, 0.0) + value for name, value in part.items()}
    alone = [next(iter(objective().gradients([Draw(d.sample, d.generator)]))) for d in
             draw_batch([sample(0), sample(1)], LoopSettings(batch_size=3), 0)]  # fmt: skip
    for name, value in total.items():
        assert value == pytest.approx(sum(one[name] for one in alone) / 3, rel=1e-4, abs=1e-6), name
    assert math.isfinite(total["loss"])
