"""Detection, embedding and the memory both take, on a detector whose answers are known."""

import pytest
import torch
from face_networks import RedCells, red_cells, write_pack

from ipro_core.faces.detector import Detector, _best
from ipro_core.faces.packs import load_face_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_face_models(write_pack(tmp_path_factory.mktemp("pack")))


def test_boxes_and_points_are_where_the_network_says(models):
    detector, _ = models
    none, one, two = detector.detect(red_cells([[], [(1, 2)], [(0, 0), (3, 1)]]))
    assert none == [] and len(one) == 1 and len(two) == 2
    # The cell in column 1 and row 2 starts at (32, 64); its box reaches 31 px further, points lie within.
    torch.testing.assert_close(one[0].box_4, torch.tensor([32.0, 64.0, 63.0, 95.0]))
    torch.testing.assert_close(one[0].points_52, torch.tensor(RedCells.POINTS) + torch.tensor([32.0, 64.0]))
    # Pure red is 0.99609 after (x - 127.5) / 128, absent -0.99609: sigmoid(20 (0.99609 - 0.76)) = 0.9912.
    assert one[0].score == pytest.approx(0.9912, abs=1e-3)


def test_a_frame_of_another_size_is_fitted_at_the_top_left(models):
    detector, _ = models
    # 256 × 192 shrinks by 2 to 128 × 96 of the 128 × 128: the cell comes back twice as large.
    frame = torch.nn.functional.interpolate(red_cells([[(1, 2)]]), scale_factor=2)[:, :, :192]
    (face,) = detector.detect(frame)[0]
    torch.testing.assert_close(face.box_4, torch.tensor([64.0, 128.0, 126.0, 190.0]))


def test_chunks_change_nothing_and_gradients_stop(models):
    detector, _ = models
    frames = red_cells([[(t % 4, t // 4)] for t in range(11)]).requires_grad_()
    whole, pieces = detector.detect(frames, chunk=11), detector.detect(frames, chunk=4)
    for ours, theirs in zip(whole, pieces, strict=True):
        torch.testing.assert_close(ours[0].box_4, theirs[0].box_4)
        assert not ours[0].box_4.requires_grad and not ours[0].points_52.requires_grad


def rows(*faces: tuple[float, float]) -> torch.Tensor:
    """Detections of (score, left) with boxes of 9 × 9 px beside each other."""
    return torch.tensor([[score, left, 0.0, left + 9, 9.0, *[left] * 10] for score, left in faces])


def test_overlapping_boxes_are_one_face_the_finest_scale_first():
    # Boxes count both border pixels: 10 × 10. Moved by 4 they share 60 of 140 = 0.43 > 0.4, by 5 50 of 150.
    fine, coarse = rows((0.6, 0.0), (0.7, 4.0)), rows((0.9, 5.0), (0.9, 9.0), (0.8, 100.0))
    faces = _best([fine, coarse])
    # Fine 0.7 at 4 beats 0.6 at 0; coarse 0.9 at 5 is the same face and falls though surer; at 9 it stays.
    assert [(round(face.score, 1), face.box_4[0].item()) for face in faces] == [
        (0.9, 9),
        (0.8, 100),
        (0.7, 4),
    ]
    assert len(_best([fine, coarse[:0]])) == 1 and _best([fine[:0]]) == []


def test_two_scales_look_at_two_sizes_in_multiples_of_32(models):
    detector, _ = models
    two = Detector(detector.network, "", (320, 640))
    two.fixed_size = None
    frame = torch.zeros(1, 3, 480, 832)
    # 640 px: 832 → 640 is 10 / 13, 480 → 369.2, cut to 369; with 64 px of black 433 → 448. 320 px: 184 → 256.
    sizes = [
        (two._fit(frame, (side, side))[0].shape[2:], two._fit(frame, (side, side))[1]) for side in (640, 320)
    ]
    assert two.long_sides == (640, 320)
    assert [tuple(size) for size, _ in sizes] == [(448, 640), (256, 320)]
    assert [scale for _, scale in sizes] == [369 / 480, 184 / 480]


class Scripted(Detector):
    """Answers every look with rows that are written down: (frame, score, left, width) by scale."""

    def _look(self, frames_BCHW, window, threshold, border=64):
        self.looks = [*getattr(self, "looks", []), (window[0], len(frames_BCHW))]
        rows = [
            [frame, score, left, 0.0, left + width, width, *[left] * 10]
            for frame, score, left, width in self.script[window[0]]
            if score >= threshold
        ]
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 16)


def test_the_coarser_scale_is_looked_at_only_where_a_face_may_be_missing(models):
    detector = Scripted(models[0].network, "", (640, 320))
    detector.fixed_size = None
    face = (0.9, 100.0, 60.0)
    # A glance at 160 px of those with a face: the face itself; one elsewhere; one of 20 / 4 = 5 pixels, whose
    # 0.3 counts for 0.3 · 5 / 16 = 0.09.
    glance = [(0, 0.3, 98.0, 62.0), (1, 0.12, 300.0, 80.0), (2, 0.3, 300.0, 20.0)]
    coarse = [(0, 0.7, 50.0, 400.0), (1, 0.6, 300.0, 90.0)]
    detector.script = {640: [(t, *face) for t in (1, 2, 3)], 160: glance, 320: coarse}
    found = detector.detect(torch.zeros(4, 3, 640, 640), chunk=4)
    assert detector.looks == [(640, 4), (160, 3), (320, 2)]
    lefts = [sorted(face.box_4[0].item() for face in faces) for faces in found]
    assert lefts == [[50], [100], [100, 300], [100]]


def test_embeddings_have_unit_length_and_do_not_depend_on_chunks(models):
    _, recognizer = models
    crops = torch.rand(9, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    embeddings = recognizer.embed(crops, chunk=9)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(recognizer.embed(crops, chunk=2), embeddings)
    assert recognizer.embed(crops[:0]).shape == (0, 32)


def test_gradients_by_chunks_equal_the_gradient_at_once(models):
    _, recognizer = models
    crops = torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    gradients = []
    for chunk in (5, 2):
        leaf = crops.clone().requires_grad_()
        recognizer.embed(leaf, chunk)[:, :3].sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


def kept_bytes(recognizer, faces: int) -> int:
    """What the backward pass holds on to after embedding so many faces."""
    kept = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    crops = torch.zeros(faces, 3, 112, 112).requires_grad_()
    weights = {buffer.untyped_storage().data_ptr() for buffer in recognizer.network.buffers()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        embeddings = recognizer.embed(crops, chunk=4)
    assert embeddings.requires_grad
    own = weights | {crops.untyped_storage().data_ptr()}
    return sum(size for place, size in kept.items() if place not in own)


def test_memory_of_the_gradient_is_flat_in_the_frames(models):
    _, recognizer = models
    # One chunk keeps its activations; eight chunks keep none, only the crops, which are the caller's.
    assert kept_bytes(recognizer, 32) < kept_bytes(recognizer, 4) / 4
