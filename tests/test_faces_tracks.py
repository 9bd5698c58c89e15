"""One person through a video, and the pool of a clip: identity kept, gaps filled, every loss said."""

import math
from typing import Any

import pytest
import torch
from face_networks import RedCells, red_cells, write_pack

from ipro_core.faces.alignment import TEMPLATE_52
from ipro_core.faces.packs import load_face_models
from ipro_core.faces.pool import FacePool, build_pool, inspect_pool, merge_pools
from ipro_core.faces.tracks import face_box, find_person, person_faces, track_person
from ipro_core.types import Face, FaceTrack

ANNA, BEN = torch.eye(4)[0], torch.eye(4)[1]


def face(x: float, size: float = 40.0) -> Face:
    box = torch.tensor([x, 10.0, x + size, 10.0 + size])
    return Face(box, torch.tensor(RedCells.POINTS) * size / 32 + box[:2], 0.9)


def towards(person: torch.Tensor, cosine: float, axis: int = 2) -> torch.Tensor:
    return cosine * person + math.sqrt(1 - cosine**2) * torch.eye(4)[axis]


def lefts(track: FaceTrack) -> list[float]:
    return track.boxes_T4[:, 0].tolist()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_face_models(write_pack(tmp_path_factory.mktemp("pack")))


# Who is followed.


def crossing() -> tuple[list[list[Face]], list[torch.Tensor]]:
    """Anna walks right from 0 to 100, Ben left from 100 to 0; they overlap in the middle; order is mixed."""
    detections, embeddings = [], []
    for t in range(11):
        anna, ben = (face(10.0 * t), towards(ANNA, 0.8)), (face(100 - 10.0 * t, 38), towards(BEN, 0.8))
        pair = [anna, ben] if t % 2 else [ben, anna]
        detections.append([face for face, _ in pair])
        embeddings.append(torch.stack([embedding for _, embedding in pair]))
    return detections, embeddings


def test_two_people_who_cross_keep_their_identity():
    track = track_person(*crossing())
    assert track.seen_T.all()
    assert lefts(track) == pytest.approx([10.0 * t for t in range(11)])  # Anna is larger in frame 0


def test_a_reference_chooses_the_smaller_person():
    track = track_person(*crossing(), reference_D=BEN)
    assert lefts(track) == pytest.approx([100 - 10.0 * t for t in range(11)])


def test_someone_larger_who_comes_by_is_not_taken():
    detections = [[face(0)], [face(200, 90), face(2)], [face(190, 120)], [face(4), face(180, 120)]]
    embeddings = [ANNA[None], torch.stack([BEN, ANNA]), BEN[None], torch.stack([ANNA, BEN])]
    track = track_person(detections, embeddings)
    assert track.seen_T.tolist() == [True, True, False, True]
    assert lefts(track) == [0, 2, 3, 4]  # the gap lies halfway between 2 and 4
    assert lefts(track_person(detections, embeddings, choose="largest")) == [0, 200, 190, 180]


def test_another_face_at_the_same_place_is_not_the_subject():
    track = track_person([[face(0)], [face(1)], [face(2)]], [ANNA[None], BEN[None], ANNA[None]])
    assert track.seen_T.tolist() == [True, False, True]


def test_a_person_who_drifts_step_by_step_is_kept():
    # Cosines to the first frame fall to -1, to the frame before they stay at cos 18° = 0.95: identity loss
    # must show in the similarity, not vanish as a missing face.
    angles = [math.radians(18 * t) for t in range(11)]
    embeddings = [(math.cos(a) * ANNA + math.sin(a) * BEN)[None] for a in angles]
    assert track_person([[face(2.0 * t)] for t in range(11)], embeddings).seen_T.all()


def test_a_person_who_left_is_found_again_elsewhere():
    detections = [[face(0)], [], [face(500)]]
    assert track_person(detections, [ANNA[None], torch.zeros(0, 4), towards(ANNA, 0.5)[None]]).seen_T[2]
    assert not track_person(detections, [ANNA[None], torch.zeros(0, 4), towards(ANNA, 0.3)[None]]).seen_T[2]


def test_a_subject_who_comes_late_is_followed_backwards_too():
    detections = [[face(300, 60)], [face(300, 60), face(10)], [face(20), face(300, 60)]]
    embeddings = [BEN[None], torch.stack([BEN, towards(ANNA, 0.3)]), torch.stack([ANNA, BEN])]
    # Surely Anna only in frame 2; in frame 1 she is less clear (0.3) but at her place; frame 0 shows Ben.
    track = track_person(detections, embeddings, reference_D=ANNA)
    assert track.seen_T.tolist() == [False, True, True]
    assert lefts(track) == [10, 10, 20]


def test_without_embeddings_the_place_decides():
    track = track_person([[face(0)], [face(300, 90), face(5)], [face(300, 90)]])
    assert track.seen_T.tolist() == [True, True, False] and lefts(track) == [0, 5, 5]


def test_gaps_are_linear_between_seen_frames_and_constant_outside():
    track = track_person([[], [face(10)], [], [], [face(40)], []], choose="largest")
    assert lefts(track) == pytest.approx([10, 10, 20, 30, 40, 40])
    assert track.seen_T.tolist() == [False, True, False, False, True, False]
    torch.testing.assert_close(track.points_T52[2], (face(10).points_52 * 2 + face(40).points_52) / 3)


def test_a_video_without_faces_is_a_track_of_zeros():
    track = track_person([[], [], []])
    assert not track.seen_T.any() and not track.boxes_T4.any() and track.points_T52.shape == (3, 5, 2)


# Embeddings of one person.


def test_every_frame_has_an_embedding_with_a_gradient_seen_or_not(models):
    frames = red_cells([[(1, 1)], [], [(1, 1)]]).requires_grad_()
    faces = person_faces(frames, *models)
    assert faces.seen_T.tolist() == [True, False, True]
    torch.testing.assert_close(faces.embeddings_TD.norm(dim=1), torch.ones(3))
    faces.embeddings_TD[:, 0].sum().backward()
    assert all(frames.grad[t].abs().sum() > 0 for t in range(3))
    # The face's pixels alone: the crop reaches about half a face beyond the cell, not to the far corner.
    assert not frames.grad[:, :, :, 110:].any()


def test_a_video_without_any_face_has_zero_embeddings_and_a_zero_gradient(models):
    frames = red_cells([[], []]).requires_grad_()
    faces = person_faces(frames, *models)
    assert not faces.seen_T.any() and faces.embeddings_TD.shape == (2, 32)
    faces.embeddings_TD.sum().backward()
    assert not frames.grad.any()


def test_a_known_track_saves_detection_and_gives_the_same(models):
    frames = red_cells([[(1, 1)], [(2, 1)]])
    track = find_person(frames, *models)
    known = person_faces(frames, *models, track=track)
    assert torch.equal(known.embeddings_TD, person_faces(frames, *models).embeddings_TD)


def test_jitter_changes_the_crop_by_its_generator(models):
    frames = red_cells([[(1, 1)]])

    def embed(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return person_faces(frames, *models, jitter=1.0, generator=generator).embeddings_TD

    assert torch.equal(embed(1), embed(1)) and not torch.equal(embed(1), embed(2))


# Pools.


def test_a_pool_holds_the_seen_faces_of_the_clip(models):
    pool = build_pool(red_cells([[(1, 1)], [], [(2, 1)]]), *models, source="clip.mp4")
    assert pool.frames_P.tolist() == [0, 2] and pool.seen_T.tolist() == [True, False, True]
    assert pool.recognizer == models[1].name and pool.source == "clip.mp4"
    figures = inspect_pool(pool)
    assert (figures.faces, figures.frames, figures.face_px) == (2, 3, (31.0, 31.0, 31.0))
    assert figures.coverage == pytest.approx(2 / 3)
    # The same face on the same ground, cell by cell: the same crop.
    assert figures.self_similarity == pytest.approx(1, abs=1e-3)
    assert figures.ceiling == pytest.approx(1, abs=1e-3)


def test_frame_0_can_be_left_out_as_the_authors_do(models):
    frames = red_cells([[(1, 1)], [(1, 1)]])
    assert build_pool(frames, *models, keep_first=False).frames_P.tolist() == [1]
    with pytest.raises(ValueError, match=r"Only frame 0 of the clip shows a face"):
        build_pool(red_cells([[(1, 1)], []]), *models, keep_first=False)


def test_a_clip_without_a_face_or_with_small_ones_says_so(models):
    with pytest.raises(ValueError, match=r"None of the 2 frames of dark\.mp4 shows a face"):
        build_pool(red_cells([[], []]), *models, source="dark.mp4")
    with pytest.raises(ValueError, match="too small for a pool, at most 31 px where 40 px"):
        build_pool(red_cells([[(1, 1)]]), *models, min_face=40)


def test_a_pool_comes_back_from_disk_as_it_was(models, tmp_path):
    pool = build_pool(red_cells([[(1, 1)], [], [(2, 1)]]), *models, source="clip.mp4")
    pool.save(tmp_path / "pool.safetensors")
    again = FacePool.load(tmp_path / "pool.safetensors")
    for name in ("embeddings_PD", "frames_P", "seen_T", "boxes_P4"):
        assert torch.equal(getattr(again, name), getattr(pool, name))
    assert (again.recognizer, again.source) == (pool.recognizer, pool.source)
    (tmp_path / "no.safetensors").write_bytes(b"no pool")
    with pytest.raises(ValueError, match="cannot be read as a face pool"):
        FacePool.load(tmp_path / "no.safetensors")


def test_merged_pools_count_frames_on_and_refuse_another_recogniser(models):
    a = build_pool(red_cells([[(1, 1)], []]), *models, source="a")
    b = build_pool(red_cells([[], [(1, 1)]]), *models, source="b")
    merged = merge_pools([a, b])
    assert merged.frames_P.tolist() == [0, 3]  # b's frame 1 comes after a's two frames
    assert merged.seen_T.tolist() == [True, False, False, True] and merged.source == "a, b"
    assert merged.coverage == 0.5 and len(merged.embeddings_PD) == 2
    other = FacePool(b.embeddings_PD, b.frames_P, b.seen_T, b.boxes_P4, "other.onnx sha256:0")
    with pytest.raises(ValueError, match="Pools of different recognisers do not compare"):
        merge_pools([a, other])
    with pytest.raises(ValueError, match="no pool to merge"):
        merge_pools([])


# The box that a codec decodes truly.


class Finds:
    """A detector that finds what it is told to."""

    def __init__(self, detections: list[list[Face]]):
        self.detections = detections

    def detect(self, frames_TCHW: torch.Tensor) -> list[list[Face]]:
        return self.detections


def upright(left: float, top: float, side: float) -> Face:
    """A face whose crop is the square of that side, whose first pixel is (left, top)."""
    points = torch.tensor(TEMPLATE_52) * side / 112 + torch.tensor([left, top])
    return Face(torch.tensor([left, top, left + side, top + side]), points, 0.9)


def test_the_box_holds_every_crop_with_its_border():
    # A crop of 56 px at (60, 40) reaches from 59.75 (half a crop pixel is a quarter of a frame's) to 115.75,
    # with an eighth of 56 as its border from 52.75 to 122.75: columns 52 to 123, rows 32 to 103. One of 28 px
    # at (100, 20) reaches from row 19.875 - 3.5 to column 127.875 + 3.5: row 16, columns to 132.
    finds: Any = Finds([[upright(60, 40, 56)], [], [upright(100, 20, 28)]])
    frames = torch.zeros(3, 3, 200, 200)
    assert face_box(frames[:1], finds) is not None
    assert face_box(frames, finds) == (16, 104, 52, 133)
    assert face_box(frames[..., :100, :120], finds) == (16, 100, 52, 120)
    nobody: Any = Finds([[], [], []])
    assert face_box(frames, nobody) is None


def test_a_reward_moves_no_pixel_outside_the_box(models):
    detector, recognizer = models
    frames = red_cells([[(1, 1)], [(2, 1)]])
    given = frames.clone().requires_grad_()
    person_faces(given, detector, recognizer).embeddings_TD.sum().backward()
    box = face_box(frames, detector, size=recognizer.size, border=0)
    assert given.grad is not None and given.grad.any() and box is not None
    top, bottom, left, right = box
    given.grad[..., top:bottom, left:right] = 0
    assert not given.grad.any()
