"""What people would prefer, learnt from pairs: a small head over what faces tell of identity, trained by the
Bradley–Terry model (Identity-GRPO, arXiv:2510.14256, whose scorer is a vision-language model; see
`identity_scorer`).

The head sees no pixel: of each person and frame how like the matched face is, how like the face at the place
where they began, how like somebody else, how steady, whether doubled, whether found; as statistics over the
frames, so that neither the order of people nor the length of the video counts. Hence it is a few kilobytes,
trained in seconds, and its file knows of one recogniser only.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..faces.sight import Sight
from ..files import write_atomically
from ..types import GeneratedVideo, RewardScore, knob
from .people import found, sight_of

SIGNS = ("kept", "place", "other", "steady", "double", "found")
STATISTICS = ("mean", "least", "most", "spread", "drift")
NUM_FEATURES = len(SIGNS) * len(STATISTICS)
HIDDEN = 16
SHIPPED = Path(__file__).parents[1] / "tinyworld" / "weights" / "preference.safetensors"
"""Trained on distortions of the embedded world's clips."""


def features(sight: Sight) -> Tensor:
    """What a video's faces tell of each person, (N, F): every statistic of every sign."""
    signs_TNS = torch.tensor(
        [[_signs(sight, t, n) for n in range(sight.people)] for t in sight.counted], dtype=torch.float32
    ).reshape(len(sight.counted), sight.people, len(SIGNS))
    third = max(1, len(signs_TNS) // 3)
    statistics = (
        signs_TNS.mean(dim=0),
        signs_TNS.amin(dim=0),
        signs_TNS.amax(dim=0),
        signs_TNS.std(dim=0, correction=0),
        signs_TNS[-third:].mean(dim=0) - signs_TNS[:third].mean(dim=0),
    )
    return torch.cat(statistics, dim=1)


def _signs(sight: Sight, t: int, n: int) -> list[float]:
    face, first = sight.matched[t][n], sight.first_tracks[n].get(t)
    place = 0.0 if first is None else float(sight.likeness[t][first, n])
    double = sight.double(t, n)
    if face is None:
        return [0.0, place, 0.0, 0.0, double, 0.0]
    likeness_N = sight.likeness[t][face]
    other = max([0.0, *(float(one) for m, one in enumerate(likeness_N) if m != n)])
    before = sight.matched[t - 1][n] if t else face
    steady = 0.0
    if before is not None:
        steady = (sight.seen.embeddings[t][face] @ sight.seen.embeddings[max(t - 1, 0)][before]).item()
    return [float(likeness_N[n]), place, other, steady, double, 1.0]


@dataclass(frozen=True, eq=False)
class Head:
    """features (N, F) → the video's worth: one layer for each person, then the people's mean and least."""

    middle_F: Tensor
    """Of the features it was trained on, as is their spread."""
    spread_F: Tensor
    weight_HF: Tensor
    bias_H: Tensor
    out_H2: Tensor
    """How the mean and the least count."""

    def __call__(self, features_NF: Tensor) -> Tensor:
        """A scalar, or one for each of (..., N, F); of two videos the better one wins with the probability
        sigmoid(difference)."""
        one_NF = (features_NF - self.middle_F) / self.spread_F
        hidden_NH = torch.tanh(F.linear(one_NF, self.weight_HF, self.bias_H))
        pooled_H2 = torch.stack((hidden_NH.mean(dim=-2), hidden_NH.amin(dim=-2)), dim=-1)
        return (pooled_H2 * self.out_H2).sum(dim=(-2, -1))

    def save(self, path: Path | str, recognizer: str) -> None:
        """Write the head as safetensors, complete or not at all."""
        tensors = {part.name: getattr(self, part.name).detach().contiguous() for part in fields(self)}
        note = {"kind": "preference head", "recognizer": recognizer, "signs": SIGNS, "statistics": STATISTICS}
        write_atomically(path, save(tensors, metadata={"ipro": json.dumps(note)}))


def load_head(path: Path | str) -> tuple[Head, str]:
    """A head that `Head.save` wrote, and the recogniser it knows.

    Raises:
        ValueError: the file is missing, damaged, or no preference head.
    """
    advice = "give a .safetensors file written by `ipro preferences`"
    try:
        with safe_open(str(path), framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("ipro", "{}"))
            if note.get("kind") != "preference head":
                raise ValueError(f"{path} is no preference head: {advice}.")
            if (note["signs"], note["statistics"]) != (list(SIGNS), list(STATISTICS)):
                raise ValueError(f"{path} was trained on other signs than this version's: train it anew.")
            return Head(*(file.get_tensor(part.name) for part in fields(Head))), note["recognizer"]
    except FileNotFoundError:
        raise ValueError(f"There is no preference head at {path}: {advice}.") from None
    except (SafetensorError, json.JSONDecodeError, OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a preference head ({error}): {advice}.") from None


@dataclass(frozen=True, eq=False)
class Preference:
    """Two videos by their features, and how often the first is preferred: 1, or 1/2 for a tie."""

    first_NF: Tensor
    second_NF: Tensor
    share: float = 1.0


def bradley_terry_loss(difference: Tensor, share: Tensor) -> Tensor:
    """−share · log σ(d) − (1 − share) · log σ(−d), d the first's worth less the second's; mean over pairs. A
    tie pulls the two together."""
    return -(share * F.logsigmoid(difference) + (1 - share) * F.logsigmoid(-difference)).mean()


def train_head(
    pairs: Sequence[Preference],
    *,
    updates: int = 400,
    learning_rate: float = 0.01,
    decay: float = 1.0,
    seed: int = 0,
) -> Head:
    """The head that makes the preferences most likely; all pairs in every update, the same for the same seed.

    Args:
        decay: of the weights (AdamW): pairs that a head tells apart would raise its weights for ever.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("There is no preference to learn from: give clips or a study with votes.")
    rows = torch.cat([row for pair in pairs for row in (pair.first_NF, pair.second_NF)])
    generator = torch.Generator().manual_seed(seed)
    weight_HF = (torch.randn(HIDDEN, NUM_FEATURES, generator=generator) / NUM_FEATURES**0.5).requires_grad_()
    bias_H = torch.zeros(HIDDEN, requires_grad=True)
    out_H2 = (torch.randn(HIDDEN, 2, generator=generator) / HIDDEN**0.5).requires_grad_()
    head = Head(rows.mean(dim=0), rows.std(dim=0).clamp_min(1e-2), weight_HF, bias_H, out_H2)
    optimizer = torch.optim.AdamW((weight_HF, bias_H, out_H2), lr=learning_rate, weight_decay=decay)
    alike = list(_by_people(pairs).values())
    firsts, seconds = (
        [torch.stack([getattr(pairs[place], which) for place in places]) for places in alike]
        for which in ("first_NF", "second_NF")
    )
    share_P = torch.tensor([pairs[place].share for places in alike for place in places])
    for _ in range(updates):
        optimizer.zero_grad()
        difference_P = torch.cat(
            [head(first) - head(second) for first, second in zip(firsts, seconds, strict=True)]
        )
        bradley_terry_loss(difference_P, share_P).backward()
        optimizer.step()
    return Head(*(getattr(head, part.name).detach() for part in fields(head)))


def _by_people(pairs: Sequence[Preference]) -> dict[int, list[int]]:
    """The pairs, by number, of each number of people."""
    places: dict[int, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(len(pair.first_NF), []).append(place)
    return places


@torch.no_grad()
def accuracy(head: Head, pairs: Sequence[Preference]) -> float:
    """Share of the pairs, ties left out, whose better video the head values more; NaN if there is none."""
    right = [
        ((head(pair.first_NF) - head(pair.second_NF)).item() > 0) == (pair.share > 0.5)
        for pair in pairs
        if pair.share != 0.5
    ]
    return sum(right) / len(right) if right else float("nan")


@dataclass(frozen=True)
class PreferenceReward:
    """What a head that was trained on preferences says of who is who: `ipro preferences` trains one, from
    distortions of clips and from a blind study's votes. It has no gradient: for GRPO."""

    differentiable: ClassVar[bool] = False
    everybody: ClassVar[bool] = True

    head: str = knob("", "The head's file, by `ipro preferences`; empty: the embedded world's.")

    @torch.no_grad()
    def __call__(self, video: GeneratedVideo) -> RewardScore:
        head, recognizer = load_head(self.head or SHIPPED)
        for person in video.people:
            if person.pool is not None and person.pool.recognizer != recognizer:
                raise ValueError(
                    f"The preference head was trained on faces as {recognizer} sees them, and these are "
                    f"{person.pool.recognizer}'s: train one with `ipro preferences` and this face pack."
                )
        sight = sight_of(video)
        value = head(features(sight))
        return RewardScore(value, value.expand(len(sight.counted)).clone(), found(sight).all(dim=1))
