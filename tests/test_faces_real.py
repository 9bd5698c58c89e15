"""Real packs, pictures and clips: equal to onnxruntime and to insightface, one person told from another."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from docs.face_speed import agreement, bgr_pictures
from ipro_core.evaluation.facesim import face_sim
from ipro_core.faces.alignment import crop_faces
from ipro_core.faces.detector import Detector
from ipro_core.faces.onnx_file import read_onnx
from ipro_core.faces.onnx_graph import OnnxGraph
from ipro_core.faces.packs import load_face_models, load_recognizer
from ipro_core.faces.pool import build_pool, inspect_pool
from ipro_core.faces.tracks import find_person, overlap, person_faces, see_faces

SHARED = Path(__file__).resolve().parents[2] / "shared"
PACKS = SHARED / "weights" / "insightface"
MEDIA = SHARED / "media"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not PACKS.is_dir(), reason="needs ../shared: real clips and networks"),
]
NETWORKS = sorted(PACKS.rglob("*.onnx"))

onnxruntime.set_default_logger_severity(3)  # it warns of every size that the files do not declare


def still(name: str) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return (
        torch.from_numpy(np.array(Image.open(MEDIA / "stills" / name).convert("RGB"))).movedim(2, 0)[None]
        / 255
    )


def clip(name: str, count: int, stride: int = 1) -> torch.Tensor:
    """Every stride-th frame, (count, 3, H, W) in [0, 1]."""
    import av

    frames = []
    with av.open(str(MEDIA / f"{name}.mp4")) as file:
        for index, frame in enumerate(file.decode(video=0)):
            if index % stride == 0:
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).movedim(2, 0) / 255)
            if len(frames) == count:
                break
    return torch.stack(frames)


@pytest.fixture(scope="module")
def models():
    return load_face_models(PACKS / "models" / "antelopev2")


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_network_equals_onnxruntime(path):
    network = OnnxGraph(read_onnx(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # Four different parts of a photograph, as the networks know them; a recogniser's input is 112 px.
    picture = (still("group_insightface_t1.jpg") * 255 - 127.5) / 128
    side = network.input.shape[-1] or 192
    images = torch.cat([picture[:, :, 64:, x:][:, :, :side, :side] for x in (0, 300, 600, 900)])
    with torch.no_grad():
        batched = network(images)
        for index in range(4):
            image = images[index : index + 1]
            theirs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
            for ours, one, expected in zip(batched, network(image), theirs, strict=True):
                assert (ours.reshape(4, *one.shape)[index] - one).abs().max() <= 1e-5 * one.abs().max()
                one = one.reshape(expected.shape).numpy()
                full_range = np.abs(expected).max()
                if path.stem == "det_yunet" and expected.shape[1] == 1:
                    # Scores are the root of two sigmoids. Near 0 onnxruntime's is off by 6e-8, the root by
                    # 2.4e-4 from float64; ours is within 1e-6. Compare what is under the root.
                    one, expected, full_range = one**2, expected**2, 1.0
                assert np.abs(one - expected).max() <= 1e-5 * full_range


@pytest.fixture(scope="module")
def insightface():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever its own libraries say while they load
        from insightface.app import FaceAnalysis

        app = FaceAnalysis(
            "antelopev2",
            root=str(PACKS),
            providers=["CPUExecutionProvider"],
            allowed_modules=["detection", "recognition"],
        )
        app.prepare(-1, det_size=(640, 640))
    return app


SAME = ["obama_1", "obama_2", "biden_1"]
STILLS = ["astronaut.png", "biden_1.jpg", "lacamoire_1.png", "obama_1.jpg", "obama_2.jpg", "two_people.jpg"]


@pytest.mark.parametrize("name", [*STILLS, "group_insightface_t1.jpg", "obama_small_240p.jpg"])
def test_end_to_end_equals_insightface_at_one_scale_and_two(models, insightface, name):
    frame = still(name)
    bgr = (frame[0].movedim(0, 2).numpy() * 255).round().astype(np.uint8)[:, :, ::-1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # skimage, once for every face
        theirs = sorted(insightface.get(bgr), key=lambda face: face.bbox[0])
    for long_sides in ((640,), (640, 320)):
        detector = Detector(models[0].network, "", long_sides)
        ours = sorted(detector.detect(frame)[0], key=lambda face: face.box_4[0].item())
        points = torch.stack([face.points_52 for face in ours])
        crops = crop_faces(frame.expand(len(ours), -1, -1, -1), points, antialias=False)
        for face, embedding, other in zip(ours, models[1].embed(crops), theirs, strict=True):
            # 1 % of the face's width; measured up to 0.4 %: we resize in floats, not in whole grey levels.
            width = other.bbox[2] - other.bbox[0]
            assert np.abs(face.box_4.numpy() - other.bbox).max() <= 0.01 * width
            assert np.abs(face.points_52.numpy() - other.kps).max() <= 0.01 * width
            assert face.score == pytest.approx(other.det_score, abs=0.01)
            assert (embedding.numpy() * other.normed_embedding).sum() >= 0.999


@pytest.mark.parametrize("name", ["i2v81_walk_lp_s18", "i2v81_dolly_lp_s20", "i2v81_small_s18"])
def test_the_batched_chain_on_clips_equals_insightfaces_loop(models, insightface, name):
    # What docs/face_speed.py times. Its crops are averaged where insightface takes one tap: hence 0.998.
    frames = clip(f"derived/{name}", 3, stride=20)
    one_scale = Detector(models[0].network, "", (640,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = [insightface.get(picture) for picture in bgr_pictures(frames)]
    worst = agreement(see_faces(frames, one_scale, models[1]), theirs)
    assert worst["faces"] == 3
    assert worst["boxes"] <= 0.002 and worst["points"] <= 0.002 and worst["scores"] <= 0.002
    assert worst["cosine"] >= 0.998


def test_no_agreement_is_claimed_where_the_faces_differ(models):
    frames = clip("derived/i2v81_small_s18", 1)
    with pytest.raises(AssertionError, match="1 faces and 0"):
        agreement(see_faces(frames, *models), [[]])


@pytest.mark.parametrize("pack", ["antelopev2", "judge"])
def test_the_same_person_is_above_others_by_a_clear_margin_with_both_recognisers(models, pack):
    recognizer = load_recognizer(PACKS / "models" / pack)
    seen = {
        name: person_faces(clip(f"derived/{name}", 3, stride=20), models[0], recognizer).embeddings_TD
        for name in ("i2v81_walk_lp_s18", "i2v81_small_s18", "i2v81_dolly_lp_s20")
    }
    one, small, other = (normalize(embeddings_TD.mean(dim=0), dim=0) for embeddings_TD in seen.values())
    face = {name: person_faces(still(f"{name}.jpg"), models[0], recognizer).embeddings_TD[0] for name in SAME}
    same = [one @ small, face["obama_1"] @ face["obama_2"]]
    different = [
        one @ other,
        small @ other,
        *(face[name] @ face["biden_1"] for name in ("obama_1", "obama_2")),
    ]
    # Measured: same 0.7 and more, different below 0.23 (174 pairs of clips).
    assert min(same) > 0.5 > 0.25 > max(different)
    assert min(same) - max(different) > 0.35


def test_small_faces_are_followed_through_their_clips(models):
    for name, least in (
        ("smallface_consisid", 0.7),
        ("smallface_lp_s13", 0.7),
        ("smallface_roll_video1", 0.35),
    ):
        frames = clip(f"clips/{name}", 5, stride=8)
        result = face_sim(frames, frames[0], *models)
        assert result.coverage == 1 and result.found > least, name


def test_who_is_often_out_of_sight_has_less_coverage_and_less_in_all(models):
    frames = clip("clips/lowcoverage_vbench_walking", 9, stride=5)
    at = next(t for t, faces in enumerate(models[0].detect(frames)) if faces)
    result = face_sim(frames, frames[at], *models, given=0)
    assert 0 < result.coverage < 1
    assert result.all == pytest.approx(result.found * result.coverage)
    assert result.first != result.first or result.seen_T[0], "frame 0 is NaN where it shows nobody"


def face_of(models, frame: torch.Tensor) -> torch.Tensor:
    """The embedding of the largest face."""
    return person_faces(frame, *models).embeddings_TD[0]


def test_the_same_person_is_told_from_another(models):
    obama_1, obama_2, biden = (
        face_of(models, still(f"{name}.jpg")) for name in ("obama_1", "obama_2", "biden_1")
    )
    assert obama_1 @ obama_2 > 0.5  # measured 0.7; the pairs of the file's authors lie above 0.50
    assert obama_1 @ biden < 0.25 and obama_2 @ biden < 0.25
    assert obama_1 @ obama_2 - max(obama_1 @ biden, obama_2 @ biden) > 0.4


def test_swapping_red_and_blue_loses_identity(models):
    frame = still("obama_1.jpg")
    track = find_person(frame, *models)
    right = person_faces(frame, *models, track=track).embeddings_TD[0]
    swapped = person_faces(frame.flip(1), *models, track=track).embeddings_TD[0]
    assert right @ swapped < 0.99
    assert face_of(models, still("obama_2.jpg")) @ swapped < face_of(models, still("obama_2.jpg")) @ right


def test_a_close_up_is_missed_at_640_alone_and_found_at_two_scales(models):
    frames = clip("clips/closeup_lp_d3", 3, stride=15)
    assert not any(Detector(models[0].network, "", (640,)).detect(frames))
    assert all(models[0].detect(frames))


@pytest.mark.parametrize(("name", "stride"), [("multi_hamilton", 21), ("closeup_lp_d3", 22)])
def test_nothing_is_missed_for_looking_at_the_second_scale_only_where_it_may_add(models, name, stride):
    frames = clip(f"clips/{name}", 3, stride)
    fine, coarse = (Detector(models[0].network, "", (side,)).detect(frames) for side in (640, 320))
    for faces, first, second in zip(models[0].detect(frames), fine, coarse, strict=True):
        alone = [face for face in second if all(overlap(face, other) <= 0.4 for other in first)]
        assert len(faces) == len(first) + len(alone)


def test_a_tracked_pool_is_one_person_where_the_largest_face_mixes_several(models):
    frames = clip("clips/multi_hamilton", 8, stride=12)  # a film that cuts from person to person
    tracked = inspect_pool(build_pool(frames, *models))
    largest = inspect_pool(build_pool(frames, *models, choose="largest"))
    assert largest.coverage == 1.0 and largest.self_similarity < 0.35
    assert tracked.coverage < 0.5 and tracked.self_similarity > 0.6


def test_a_pool_knows_its_person_at_another_size_and_no_other(models):
    walk = build_pool(clip("derived/i2v81_walk_lp_s18", 4, stride=16), *models)
    small = build_pool(clip("derived/i2v81_small_s18", 4, stride=16), *models)
    other = build_pool(clip("derived/i2v81_dolly_lp_s20", 4, stride=16), *models)
    cosine = lambda a, b: (a.embeddings_PD @ b.embeddings_PD.T).mean().item()  # noqa: E731
    assert inspect_pool(small).face_px[1] == pytest.approx(68, abs=3)  # known from how the clip was made
    assert cosine(walk, small) > 0.9
    assert cosine(walk, other) < 0.25


def test_a_clip_without_people_is_a_sentence(models):
    with pytest.raises(ValueError, match="shows a face: choose a clip that shows one"):
        build_pool(clip("clips/decoded_taew2_1", 2, stride=10), *models)


def test_the_gradient_through_crop_and_recogniser_is_the_slope():
    # In double precision, with a track as given: detection has no gradient to check.
    detector, recognizer = load_face_models(PACKS / "models" / "antelopev2")
    frame = still("astronaut.png")
    track = find_person(frame, detector, recognizer)
    recognizer.network.double()
    frame = frame.double().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(recognizer.dim, generator=generator, dtype=torch.float64)
    direction = torch.randn(frame.shape, generator=generator, dtype=torch.float64)

    def score(frames: torch.Tensor) -> torch.Tensor:
        return person_faces(frames, detector, recognizer, track=track).embeddings_TD[0] @ wanted

    (gradient,) = torch.autograd.grad(score(frame), frame)
    step = 1e-8  # at 1e-6 some of the network's half a million units pass their kink on the way
    with torch.no_grad():
        slope = (score(frame + step * direction) - score(frame - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_a_judge_is_another_recogniser_with_its_own_name(models):
    judge = load_recognizer(PACKS / "models" / "judge")
    assert judge.name.startswith("w600k_mbf.onnx sha256:") and judge.name != models[1].name
    obama_1, obama_2, biden = (
        face_of((models[0], judge), still(f"{name}.jpg")) for name in ("obama_1", "obama_2", "biden_1")
    )
    assert obama_1 @ obama_2 > 0.5 > 0.3 > obama_1 @ biden
