"""Tuning on several people: exact, mean over them, and each one's reward rises."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import ToyCodec, ToyModel

from ipro_core.faces.alignment import TEMPLATE_52, crop_faces
from ipro_core.job import Job, Tuner
from ipro_core.rewards.face_pool import FacePoolReward
from ipro_core.rewards.reference import ReferenceReward
from ipro_core.rewards.weighted_sum import Part, WeightedSum
from ipro_core.tinyworld import open_tiny_world
from ipro_core.tinyworld.scenes import tiny_scenes
from ipro_core.training.base import TrainingSample
from ipro_core.training.ipro import IproObjective, IproSettings
from ipro_core.training.loop import Draw, LoopSettings, train
from ipro_core.training.presets import TINY
from ipro_core.types import Face, FacePool, GeneratedVideo, Person, PersonFaces

SIDE = 12
LEFT, RIGHT = (torch.tensor(TEMPLATE_52) * SIDE / 112 + torch.tensor([x, 0.0]) for x in (0.0, SIDE))
SETTINGS = IproSettings(steps=4, grad_steps=2, reward_weight=0.7, kl_weight=0.0, people=2, noise_seed=3)


class TwoFaces:
    """Finds a face in each half of the picture; the right one from the frame on that it is told."""

    def __init__(self, right_from: int = 0):
        self.right_from = right_from

    def detect(self, frames_TCHW: Tensor, threshold: float = 0.5) -> list[list[Face]]:
        boxes = torch.tensor([[0.0, 0, SIDE - 1, SIDE - 1], [SIDE, 0, 2 * SIDE - 1, SIDE - 1]])
        both = [Face(box, points, 0.9) for box, points in zip(boxes, (LEFT, RIGHT), strict=True)]
        return [both if t >= self.right_from else both[:1] for t in range(len(frames_TCHW))]


class LinearRecognizer:
    """A random linear map of the crop, to unit length, in double precision."""

    name, size, dim = "toy", 16, 6

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.map = torch.randn(3 * self.size**2, self.dim, generator=generator, dtype=torch.float64)

    def embed(self, crops_N3HW: Tensor) -> Tensor:
        return F.normalize((crops_N3HW.double() - 0.5).flatten(1) @ self.map, dim=1)


def objective(settings: IproSettings = SETTINGS, detector: Any = None, reward: Any = None) -> IproObjective:
    recognizer: Any = LinearRecognizer()
    parts = ToyModel(), ToyCodec(), detector or TwoFaces(), recognizer, reward or FacePoolReward()
    return IproObjective(*parts, settings)


def rollout(of: IproObjective, grad_steps: int) -> Tensor:
    """The frames that the objective samples, by plain autograd, (T, 3, 12, 24)."""
    x, sigmas = of.noise(Draw(sample(of, people=()), torch.Generator()))[None], of.sigmas.tolist()
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        with torch.set_grad_enabled(i >= len(sigmas) - 1 - grad_steps):
            x = x + (after - sigma) * of.model.velocity(x, sigma, None)
    return of.codec.decode(x)[0]


def faces_of(frames_TCHW: Tensor, points_52: Tensor) -> Tensor:
    recognizer = LinearRecognizer()
    return recognizer.embed(
        crop_faces(frames_TCHW, points_52.expand(len(frames_TCHW), 5, 2), recognizer.size)
    )


def people_of(of: IproObjective) -> tuple[Person, ...]:
    """Somewhat like what is sampled, each in another way, so that there is something to gain."""
    with torch.no_grad():
        seen = [faces_of(rollout(of, 0), points_52)[:2].float() for points_52 in (LEFT, RIGHT)]
    people = []
    for faces_PD, axis in zip(seen, torch.eye(6), strict=False):
        faces_PD = F.normalize(faces_PD + 0.8 * axis, dim=1)
        told = torch.arange(2), torch.ones(3, dtype=torch.bool), torch.zeros(2, 4)
        people.append(Person(FacePool(faces_PD, *told, "toy"), faces_PD[0]))
    return tuple(people)


def sample(of: IproObjective, people: tuple[Person, ...] | None = None) -> TrainingSample:
    return TrainingSample("two", None, (4, 3, SIDE, 2 * SIDE), people_of(of) if people is None else people)


def gradient(of: IproObjective, one: TrainingSample) -> tuple[Tensor, dict[str, float]]:
    metrics = dict(next(iter(of.gradients([Draw(one, torch.Generator())]))))
    parameters = of.model.adapter_parameters().values()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), metrics


def test_the_gradient_of_two_people_equals_plain_autograd():
    of = objective()
    one = sample(of)
    frames_TCHW = rollout(of, grad_steps=2)
    rewards = [
        (faces_of(frames_TCHW, points_52) @ person.pool.embeddings_PD.double().mean(dim=0)).mean()
        for points_52, person in zip((LEFT, RIGHT), one.people, strict=True)
        if person.pool is not None
    ]
    parameters = list(of.model.adapter_parameters().values())
    # Each person's part alone, then the loss: −0.7 times the mean over the people of Eq. 6.
    parts = [torch.autograd.grad(-0.7 * one / 2, parameters, retain_graph=True) for one in rewards]
    vectors = [torch.cat([tensor.flatten() for tensor in part]) for part in parts]
    found, metrics = gradient(of, one)
    expected = vectors[0] + vectors[1]
    assert (found - expected).norm() <= 1e-6 * expected.norm()  # the pools are float32
    assert min(vector.norm() for vector in vectors) > 0.1 * expected.norm()
    assert metrics["reward"] == pytest.approx(sum(reward.item() for reward in rewards) / 2)
    assert metrics["worst"] == pytest.approx(min(reward.item() for reward in rewards))
    assert (metrics["coverage"], metrics["faceless"]) == (1, 0)


def test_a_person_who_is_lost_for_frames_lowers_the_coverage_by_their_share():
    # Of two people and three frames, five faces of six are seen.
    of = objective(detector=TwoFaces(right_from=1))
    _, metrics = gradient(of, sample(of))
    assert metrics["coverage"] == pytest.approx(5 / 6) and metrics["faceless"] == 0


def test_the_rewards_of_both_rise_where_both_are_tuned_for():
    loop = LoopSettings(updates=25, batch_size=1, learning_rate=0.02)

    def each(people: int) -> list[float]:
        """How much the reward of each rises."""
        of = objective(replace(SETTINGS, people=people))
        one = sample(of)
        two = [Draw(one, torch.Generator())]
        before = of.score(rollout(of, 0), two[0])
        list(train(of.model, of, [replace(one, people=one.people[: people or None])], loop))
        after = of.score(rollout(of, 0), two[0])
        return [(b.value - a.value).item() for a, b in zip(before.people, after.people, strict=True)]

    alone, both = each(1), each(2)
    # The toy's few weights serve both halves of the picture: what the subject gains alone, the other pays.
    assert min(both) > 0.03 and alone[0] > 0.03 and alone[1] < 0


def test_a_sum_of_rewards_keeps_each_persons_part():
    faces_TD = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    seen_T, pool_PD = torch.ones(2, dtype=torch.bool), torch.tensor([[0.0, 1.0]])
    pool = FacePool(pool_PD, torch.zeros(1, dtype=torch.int64), seen_T, torch.zeros(1, 4), "toy")
    people = PersonFaces(faces_TD, seen_T, pool, faces_TD[0]), PersonFaces(faces_TD, seen_T, pool, pool_PD[0])
    both = WeightedSum((Part(2.0, FacePoolReward()), Part(1.0, ReferenceReward())))
    score = both(GeneratedVideo(people))
    # To the pool 0 and 0.707; to the first frame's face 1 and 0.707, to the other 0 and 0.707.
    wanted = [2 * 0.3536 + 0.8536, 2 * 0.3536 + 0.3536]
    assert [one.value.item() for one in score.people] == pytest.approx(wanted, abs=1e-3)
    assert score.value.item() == pytest.approx(sum(wanted) / 2, abs=1e-3)
    assert FacePoolReward()(GeneratedVideo(people[:1])).people == ()


def test_the_largest_face_of_each_frame_is_nobody_among_several():
    with pytest.raises(ValueError, match="told apart by following them"):
        IproSettings(people=2, choose="largest")


def test_the_knob_says_how_many_of_a_clips_people_count_and_an_update_scores_them():
    crowded = next(scene for scene in tiny_scenes("tuning", 30) if (scene.visible_TK[:, 1] > 0.7).all())
    lone = next(scene for scene in tiny_scenes("tuning", 30) if not scene.visible_TK[:, 1].any())
    studio, plan = open_tiny_world(), TINY.changed(people=2, updates=1, batch_size=1, microbatch=1)
    job = Job(studio, plan, {"model": ""})
    for work in job.prepare([crowded, lone]):
        assert len(list(work.items)) == 2

    def people(scene: Any, most: int) -> tuple[Person, ...]:
        settings = plan.changed(people=most).method
        return studio.training_sample(scene, settings, job.seeds).people

    assert [len(people(crowded, most)) for most in (0, 1, 2, 3)] == [2, 1, 2, 2]
    assert [len(people(lone, most)) for most in (0, 1, 2)] == [1, 1, 1]
    subject, bystander = people(crowded, 0)
    assert subject.pool is not None and bystander.pool is not None and subject.reference_D is not None
    assert torch.equal(subject.reference_D, subject.pool.embeddings_PD[0])
    sides = [pool.boxes_P4[0, [0, 2]].mean() for pool in (subject.pool, bystander.pool)]
    truth_2 = crowded.boxes_TK4[0, :, [0, 2]].mean(dim=1)
    assert torch.stack(sides).sub(truth_2).abs().max() < 4
    (record,) = Tuner(job, [crowded]).records()
    assert 0 < record.metrics["worst"] < record.metrics["reward"] < 1
