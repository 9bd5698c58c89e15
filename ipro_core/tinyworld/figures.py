"""What the tiny networks can do, measured on people that none of them was trained on
(weights/figures.json)."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..evaluation.facesim import embed_reference, find_reference, similarity
from ..evaluation.motion import head_motion, head_turn
from ..faces.alignment import crop_faces
from ..faces.detector import Detector
from ..faces.recognizer import Recognizer
from ..faces.tracks import find_person
from ..sampling.flow import shifted_sigmas
from ..sampling.rollout import sample
from ..studio import Studio
from ..training.base import stack_conditions
from ..training.settings import SamplingSettings
from .clips import draw_clips
from .painting import render
from .scenes import TinyScene, split_generator, world_prompts
from .scorer import TinyScorer
from .train_faces import draw_crops, draw_crowds


@torch.no_grad()
def verification(
    embed: Callable[[Tensor], Tensor],
    *,
    people: int = 150,
    views: int = 8,
    occluded: float = 0.13,
    seed: int = 9,
):
    """All pairs of views of held-out people: best accuracy (both kinds of pair weighing the same), EER, TAR.

    `embed` takes crops in [0, 1]. Poses to 43 degrees, any expression and light, landmarks 3 % off.
    """
    crops = draw_crops("checks", people, views, seed, occluded=occluded).flatten(0, 1)
    embeddings = normalize(torch.cat([embed(part) for part in crops.split(128)]))
    person = torch.arange(len(embeddings)) // views
    one, two = torch.triu_indices(len(embeddings), len(embeddings), 1)
    cosines, same = (embeddings @ embeddings.T)[one, two], person[one] == person[two]
    genuine, impostor = cosines[same].sort().values, cosines[~same].sort().values
    thresholds = torch.linspace(-1, 1, 2001)
    accepted = 1 - torch.searchsorted(genuine, thresholds) / len(genuine)
    fooled = 1 - torch.searchsorted(impostor, thresholds) / len(impostor)
    even = int((1 - accepted - fooled).abs().argmin())
    return {
        "accuracy": ((accepted + 1 - fooled) / 2).max().item(),
        "eer": ((1 - accepted + fooled) / 2)[even].item(),
        "tar_at_far_1e-2": accepted[fooled <= 1e-2].max().item(),
        "genuine_mean": genuine.mean().item(),
        "impostor_mean": impostor.mean().item(),
        "impostor_std": impostor.std().item(),
    }


def detection(detector: Detector, *, pictures: int = 400, seed: int = 9) -> dict[str, float]:
    """Pictures of 0 to 3 held-out people with occluders: AP at IoU 0.5, then at score 0.5 recall, false
    alarms and the mean landmark error as a share of the box's height."""
    frames, boxes_NK4, points_NK52, visible_NK = draw_crowds("checks", pictures, seed)
    hits, wanted, found, alarms, errors = [], 0, 0, 0, []
    for picture, faces in enumerate(detector.detect(frames, threshold=0.05)):
        open_faces = [k for k in range(3) if visible_NK[picture, k] >= 0.4]
        wanted += len(open_faces)
        for face in faces:
            overlaps = [
                (_iou(face.box_4, boxes_NK4[picture, k]), k) for k in range(3) if visible_NK[picture, k] > 0
            ]
            best, k = max(overlaps, default=(0.0, -1))
            hit = best >= 0.5 and k in open_faces
            if hit:
                open_faces.remove(k)
            elif best >= 0.3:
                continue  # a face that is mostly hidden, or one found twice beside a better answer
            hits.append((face.score, hit))
            if face.score >= 0.5:
                found += hit
                alarms += not hit
                if hit:
                    size = (boxes_NK4[picture, k, 3] - boxes_NK4[picture, k, 1]).item()
                    error = (face.points_52 - points_NK52[picture, k]).norm(dim=-1).mean().item()
                    errors.append(error / size)
    hits.sort(reverse=True)
    right, precision = 0, []
    for rank, (_, hit) in enumerate(hits, 1):
        right += hit
        if hit:
            precision.append(right / rank)
    return {
        "ap50": sum(precision) / max(wanted, 1),
        "recall": found / max(wanted, 1),
        "false_alarms_per_picture": alarms / pictures,
        "landmark_error_of_box": sum(errors) / max(len(errors), 1),
    }


def _iou(one_4: Tensor, two_4: Tensor) -> float:
    shared = (torch.minimum(one_4[2:], two_4[2:]) - torch.maximum(one_4[:2], two_4[:2])).clamp_min(0).prod()
    return (shared / ((one_4[2:] - one_4[:2]).prod() + (two_4[2:] - two_4[:2]).prod() - shared)).item()


@torch.no_grad()
def sample_scenes(scenes: Sequence[TinyScene], studio: Studio, *, shift: float, seed: int = 0) -> Tensor:
    """Videos (N, 9, 3, 48, 48) of the scenes' first frames and prompts, 8 Euler steps."""
    for work in studio.prepare(scenes, SamplingSettings(), (), faces=False):
        deque(work.items, maxlen=0)
    model, codec = studio.model.open(), studio.codec.open()
    noise = torch.randn(len(scenes), 16, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    sigmas = shifted_sigmas(8, shift)
    videos = []
    for at in range(0, len(scenes), 16):
        condition = stack_conditions([studio.condition(scene) for scene in scenes[at : at + 16]])
        videos.append(codec.decode(sample(model, noise[at : at + 16], condition, sigmas)))
    return torch.cat(videos).clamp(0, 1)


@torch.no_grad()
def likeness(
    videos_NTCHW: Tensor,
    scenes: Sequence[TinyScene],
    detector: Detector,
    recognizer: Recognizer,
    judge: Recognizer,
) -> dict[str, float | list[float]]:
    """FaceSim to the first frame (frames 1 to 8, a lost face counts 0) and to the real clip's pool, both also
    by the judge; frame by frame; and motion. Means over videos whose first frame has a face."""
    rows = []
    for video_TCHW, scene in zip(videos_NTCHW, scenes, strict=True):
        if not detector.detect(scene.first()[None])[0]:
            continue
        face = find_reference(scene.first(), detector)
        reference_D = embed_reference(scene.first(), face, recognizer)
        track = find_person(video_TCHW, detector, recognizer, reference_D=reference_D)
        sim = similarity(video_TCHW, track, reference_D, recognizer)
        seen_by_judge = embed_reference(scene.first(), face, judge)
        made = crop_faces(video_TCHW[track.seen_T], track.points_T52[track.seen_T])
        real = crop_faces(scene.frames_TCHW, scene.points_TK52[:, 0])
        rows.append(
            (
                sim.all,
                similarity(video_TCHW, track, seen_by_judge, judge).all,
                *((by.embed(made) @ by.embed(real).T).mean().item() for by in (recognizer, judge)),
                sim.coverage,
                head_motion(track.points_T52, track.seen_T),
                head_turn(track.points_T52, track.seen_T),
                *sim.cosine_T.nan_to_num(0.0).tolist(),
            )
        )
    names = ("first", "judge", "pool", "judge_pool", "coverage", "head_motion", "head_turn")
    means = torch.tensor(rows).nanmean(0).tolist()
    count = len(names)
    return {
        **dict(zip(names, means[:count], strict=True)),
        "per_frame": [round(x, 3) for x in means[count:]],
    }


@torch.no_grad()
def stranger_floor(scenes: Sequence[TinyScene], recognizer: Recognizer) -> float:
    """Mean similarity of first frames of different people."""
    frames = torch.stack([scene.first() for scene in scenes])
    points = torch.stack([scene.points_TK52[0, 0] for scene in scenes])
    embeddings = recognizer.embed(crop_faces(frames, points))
    cosines = embeddings @ embeddings.T
    return ((cosines.sum() - len(cosines)) / (len(cosines) * (len(cosines) - 1))).item()


@torch.no_grad()
def retrieval(scorer: TinyScorer, world: str, *, repeats: int = 4) -> dict[str, float]:
    """How often the scorer ranks a clip's prompt first among all of its world, for people of no training.

    By a whole clip's mean, by its first and its last frame; by the last frame also the prompts that training
    held out alone, and how often the move or the expression of the first in rank is right.
    """
    shown, held_out = world_prompts(world)
    prompts = (*shown, *held_out)
    clips = draw_clips(prompts * repeats, split_generator("checks", 31, world), world=world)
    texts_PD = scorer.embed_texts(list(prompts))
    cosines_NTP = torch.stack([scorer.embed_images(frames) @ texts_PD.T for frames in render(clips)])

    def share(cosines_NP: Tensor, same: Callable[[str], str] = str, chosen: slice = slice(None)) -> float:
        ranked_first = cosines_NP.argmax(-1).view(repeats, -1)[:, chosen].flatten().tolist()
        wanted = prompts[chosen] * repeats
        pairs = zip(ranked_first, wanted, strict=True)
        return sum(same(prompts[k]) == same(want) for k, want in pairs) / len(wanted)

    last_NP = cosines_NTP[:, -1]
    return {
        "clip": share(cosines_NTP.mean(1)),
        "first_frame": share(cosines_NTP[:, 0]),
        "last_frame": share(last_NP),
        "last_frame, prompt held out": share(last_NP, chosen=slice(len(shown), None)),
        "last_frame, move": share(last_NP, lambda prompt: prompt.split(" and ")[0]),
        "last_frame, expression": share(last_NP, lambda prompt: prompt.split(" and ")[1]),
        "chance": 1 / len(prompts),
    }
