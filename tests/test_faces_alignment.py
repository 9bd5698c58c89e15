"""Crops: the similarity in closed form, pixel centres, antialiasing, gradients, jitter."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipro_core.faces.alignment import crop_faces, similarity, template


def moved(points_52, scale: float, degrees: float, shift: tuple[float, float]):
    """Points turned by an angle, scaled, then shifted."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], dtype=torch.float64)
    return scale * points_52.double() @ turn.T + torch.tensor(shift, dtype=torch.float64)


def ramp(height: int, width: int, dx: float, dy: float, start: float = 0.1) -> torch.Tensor:
    """A frame whose brightness is start + dx x + dy y: bilinear sampling is exact on it."""
    y, x = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    return (start + dx * x + dy * y).expand(1, 3, height, width)


def test_the_similarity_of_a_quarter_turn_is_known_by_hand():
    # Frame points = 2 R t + (10, 20), t the template and R a quarter turn (x, y) → (-y, x). So
    # crop = R⁻¹ (p - (10, 20)) / 2 with R⁻¹ (x, y) → (y, -x): M = [[0, 1/2, -10], [-1/2, 0, 5]].
    points = moved(template(112), 2.0, 90.0, (10.0, 20.0))
    expected = torch.tensor([[0.0, 0.5, -10.0], [-0.5, 0.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(similarity(points[None])[0], expected)


@given(
    st.lists(st.floats(-20, 20), min_size=10, max_size=10),
    st.floats(0.3, 8),
    st.floats(-180, 180),
    st.floats(-50, 2000),
)
def test_the_similarity_equals_umeyama(noise, scale, degrees, shift):
    # Umeyama (1991): cov(target, source) = U D Vᵀ, R = U S Vᵀ, S = diag(1, det U det V), scale tr(D S) / var.
    points = moved(template(112), scale, degrees, (shift, -shift)) + torch.tensor(noise).reshape(5, 2)
    source, target = points.numpy(), template(112).numpy()
    p, q = source - source.mean(0), target - target.mean(0)
    if (p**2).sum() < 1:
        return
    u, d, vt = np.linalg.svd(q.T @ p / 5)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    linear = (d * sign).sum() / (p**2).sum() * 5 * (u * sign @ vt)
    expected = np.concatenate([linear, (target.mean(0) - linear @ source.mean(0))[:, None]], axis=1)
    np.testing.assert_allclose(similarity(points[None])[0].numpy(), expected, atol=1e-5)


def test_the_similarity_equals_insightfaces():
    from insightface.utils.face_align import estimate_norm

    points = moved(template(112), 1.7, 12.0, (300.0, 80.0))
    points += torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    for size in (112, 128, 224, 256):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # skimage, of the way insightface calls it
            expected = estimate_norm(points.float().numpy(), size)
        np.testing.assert_allclose(similarity(points[None], size)[0].numpy(), expected, atol=1e-4)


def test_five_equal_points_crop_without_a_crash():
    crops = crop_faces(torch.rand(1, 3, 40, 40), torch.zeros(1, 5, 2))
    assert crops.shape == (1, 3, 112, 112) and crops.isfinite().all()


@pytest.mark.parametrize("antialias", [True, False])
def test_the_crop_of_a_ramp_equals_the_ramp(antialias):
    # Crop pixel (i, j) shows the frame at 3 (i, j) + (20, 10): 0.1 + 0.002 (3 i + 20) + 0.001 (3 j + 10).
    # Half a frame pixel off, as with align_corners mixed up, would be 0.0015; half a crop pixel 0.0045.
    frame = ramp(360, 370, 0.002, 0.001)
    crop = crop_faces(frame, moved(template(112), 3.0, 0.0, (20.0, 10.0))[None].float(), antialias=antialias)
    j, i = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    expected = 0.1 + 0.002 * (3 * i + 20) + 0.001 * (3 * j + 10)
    torch.testing.assert_close(crop[0, 1], expected, atol=1e-5, rtol=0)


def test_without_antialiasing_the_crop_equals_insightfaces_norm_crop():
    from insightface.utils.face_align import norm_crop

    generator = np.random.default_rng(0)
    # Smooth and rough at once, with a face that hangs over the frame's border.
    picture = generator.integers(0, 256, (90, 120, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    points = moved(template(112), 1.3, -20.0, (90.0, 60.0)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = norm_crop(picture, points.numpy())
    frame = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    ours = crop_faces(frame, points[None], antialias=False)[0].permute(1, 2, 0).numpy() * 255
    assert (ours == 0).any() and (theirs == 0).all(axis=2).any()  # black outside in both
    difference = np.abs(ours - theirs)
    assert difference.mean() <= 0.5 and np.quantile(difference, 0.999) <= 6  # OpenCV rounds places to 1/32 px


def test_antialiasing_averages_what_a_crop_pixel_covers():
    # Stripes of one frame pixel, at three frame pixels per crop pixel: their average is 0.5 ± 1/6 (2 of 3
    # taps against 1), while a single tap sees only black and white.
    frame = (torch.arange(400) % 2).float().expand(1, 3, 400, 400)
    points = moved(template(112), 3.0, 0.0, (20.0, 20.0))[None].float()
    fine, coarse = crop_faces(frame, points), crop_faces(frame, points, antialias=False)
    assert (fine - 0.5).abs().max() <= 1 / 6 + 1e-4
    assert ((coarse < 0.01) | (coarse > 0.99)).all()


def test_antialiased_gradients_reach_every_pixel_of_a_large_face():
    points = moved(template(112), 4.0, 0.0, (10.0, 10.0))[None].float()
    reached = []
    for antialias in (True, False):
        frame = torch.rand(1, 3, 470, 470, generator=torch.Generator().manual_seed(0)).requires_grad_()
        crop_faces(frame, points, antialias=antialias).sum().backward()
        reached.append((frame.grad[0, 0, 12:450, 12:450] != 0).float().mean().item())
    # 16 taps on 16 pixels, between pixel centres: all. One tap at an integer place: 1 of 16.
    assert reached[0] == 1.0
    assert reached[1] == pytest.approx(1 / 16, abs=0.15)


def test_the_gradient_is_exact_in_the_pixels_and_absent_in_the_points():
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 3, 60, 70, generator=generator, dtype=torch.float64).requires_grad_()
    points = moved(template(16), 2.3, 15.0, (10.0, 5.0)).expand(2, 5, 2).clone().requires_grad_()
    weight = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    direction = torch.randn(frames.shape, generator=generator, dtype=torch.float64)
    score = (crop_faces(frames, points, 16) * weight).sum()
    score.backward()
    # A crop is linear in the pixels: the directional derivative is the crop of the direction.
    slope = (crop_faces(direction, points, 16) * weight).sum().item()
    assert (frames.grad * direction).sum().item() == pytest.approx(slope, rel=1e-10)
    assert points.grad is None


def test_jitter_moves_landmarks_as_far_as_asked_and_repeats_by_its_generator():
    # A ramp of one grey level a pixel reads off the shift; small crops in larger frames keep it cheap.
    frames = ramp(80, 80, 1.0, 0.0, 0.0).expand(400, -1, -1, -1)
    points = moved(template(16), 2.0, 0.0, (20.0, 20.0)).expand(400, 5, 2).float()
    crop = lambda seed: crop_faces(  # noqa: E731
        frames, points, 16, jitter=0.5, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(crop(3), crop(3)) and not torch.equal(crop(3), crop(4))
    # At the template's centre, near pixel (8, 10), the crop moves by the mean of five shifts of 0.5 crop px,
    # 1 frame px each: standard deviation 1 / √5 = 0.447, known to 0.447 / √800 from 400 frames.
    assert template(16).mean(dim=0).round().tolist() == [8, 10]
    shift = crop(5)[:, 0, 10, 8] - (2 * 8 + 20)
    assert shift.std().item() == pytest.approx(0.447, abs=4 * 0.016)
    assert shift.mean().item() == pytest.approx(0, abs=4 * 0.447 / 20)


def test_no_frames_give_no_crops():
    assert crop_faces(torch.zeros(0, 3, 50, 50), torch.zeros(0, 5, 2)).shape == (0, 3, 112, 112)
