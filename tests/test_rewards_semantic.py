"""SCR's divergence by hand, and face crops by CLIP in ArcFace's place."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ipro_core.faces.alignment import crop_faces
from ipro_core.faces.clip_face import ClipFace
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.pool import build_pool
from ipro_core.faces.tracks import find_person, person_faces
from ipro_core.rewards.semantic import SemanticConsistency, semantic_divergence
from ipro_core.tinyworld import FACE_PACK
from ipro_core.tinyworld.scenes import tiny_scenes
from ipro_core.types import GeneratedVideo


class Brightness:
    """A frame's value is its mean, times a number of the prompt's letters; an embedding, its channels'."""

    name, size, dim, scale = "brightness", 8, 3, 2.0

    def values(self, frames_TCHW: Tensor, prompt: str) -> Tensor:
        return frames_TCHW.mean(dim=(1, 2, 3)) * len(prompt)

    def embed_images(self, frames_NCHW: Tensor) -> Tensor:
        return F.normalize(frames_NCHW.mean(dim=(2, 3)) + 0.1, dim=1)


def flat(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def test_the_divergence_of_two_frames_is_the_one_by_hand():
    # Values log 3 and 0 over temperature 1: shares 3/4 and 1/4; frozen ones alike: 1/2 and 1/2.
    # 3/4 log(3/4 : 1/2) + 1/4 log(1/4 : 1/2) = 3/4 log(3/2) − 1/4 log 2 = 0.13081.
    by_hand = 0.75 * math.log(1.5) - 0.25 * math.log(2)
    terms = semantic_divergence(torch.tensor([math.log(3), 0.0]), torch.zeros(2))
    assert terms.tolist() == pytest.approx([0.75 * math.log(1.5), -0.25 * math.log(2)], abs=1e-6)
    assert by_hand == pytest.approx(0.13081, abs=1e-5)
    # Tuned || frozen, not the other way: that would be 1/2 log(2/3) + 1/2 log 2 = 0.14384.
    assert terms.sum().item() == pytest.approx(by_hand, abs=1e-6)
    # Twice the values at twice the temperature are the same shares.
    warm = semantic_divergence(torch.tensor([2 * math.log(3), 0.0]), torch.zeros(2), 2.0)
    torch.testing.assert_close(warm, terms)


def test_the_divergence_ignores_what_all_frames_gain_and_is_never_negative():
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        tuned, frozen = torch.randn(2, 6, generator=draw)
        total = semantic_divergence(tuned, frozen).sum()
        assert total > 0
        torch.testing.assert_close(
            semantic_divergence(tuned + 3, frozen - 1).sum(), total, rtol=1e-4, atol=1e-6
        )
    assert semantic_divergence(tuned + 3, tuned).sum().abs() < 1e-6


def test_the_reward_is_minus_the_divergence_and_its_gradient_leads_back_to_the_frozen_order():
    scorer: Any = Brightness()
    frozen, tuned = flat(0.2, 0.5, 0.8), flat(0.5, 0.5, 0.5).requires_grad_()
    reward = SemanticConsistency(scorer, 0.2)  # of a scorer whose own is 1/2: 0.1
    score = reward(GeneratedVideo((), "ab", tuned, frozen))
    # Shares 1/3 each against softmax(0.4, 1.0, 1.6 over 0.1) = (e⁻¹², e⁻⁶, 1) / s, s = 1 + e⁻⁶ + e⁻¹²:
    # −log 3 + (12 + 6 + 0) / 3 + log s.
    by_hand = -math.log(3) + 6 + math.log(1 + math.exp(-6) + math.exp(-12))
    assert score.value.item() == pytest.approx(-by_hand, rel=1e-5)
    assert score.per_frame_T.sum().item() == pytest.approx(-by_hand, rel=1e-5) and score.seen_T.all()
    score.value.backward()
    assert tuned.grad is not None
    darker, _, brighter = tuned.grad.sum(dim=(1, 2, 3)).tolist()
    assert darker < 0 < brighter  # as in the frozen video: the first frame darker, the last one brighter
    assert reward(GeneratedVideo((), "ab", frozen, frozen)).value.item() == pytest.approx(0, abs=1e-7)


def test_clip_compares_faces_and_the_recogniser_says_whose():
    detector, recognizer = load_face_models(FACE_PACK)
    frames = next(iter(tiny_scenes("checks", 1))).frames_TCHW
    encoder: Any = Brightness()
    face = ClipFace(encoder, recognizer)
    pool, by_arcface = (build_pool(frames, detector, one, min_face=0) for one in (face, recognizer))
    assert pool.embeddings_PD.shape == (len(pool.frames_P), 3) and pool.recognizer == "brightness"
    assert pool.frames_P.tolist() == by_arcface.frames_P.tolist()
    torch.testing.assert_close(pool.boxes_P4, by_arcface.boxes_P4)
    given = frames.clone().requires_grad_()
    # A reference of CLIP's says nothing of who it is, and is kept for the reward.
    person = person_faces(given, detector, face, pool=pool, reference_D=pool.embeddings_PD[0])
    followed = find_person(frames, detector, recognizer)
    assert person.seen_T.tolist() == followed.seen_T.tolist()
    # By hand: the channels' mean over the crop of 8 pixels, a tenth more, at unit length.
    crops = crop_faces(frames, followed.points_T52, 8)
    wanted = F.normalize(crops.mean(dim=(2, 3)) + 0.1, dim=1)
    torch.testing.assert_close(person.embeddings_TD.detach(), wanted, rtol=1e-4, atol=1e-5)
    person.embeddings_TD[:, 0].sum().backward()
    assert given.grad is not None and given.grad.abs().sum() > 0
