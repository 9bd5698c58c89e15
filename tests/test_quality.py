"""VBench's formulas on features that are known, networks from tiny files, official vbench by a stand-in."""

import json
import stat
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from ipro_core.clips.video import write_video
from ipro_core.evaluation import quality
from ipro_core.evaluation.quality_measures import open_meter
from ipro_core.evaluation.quality_networks import farneback, open_network
from ipro_core.evaluation.quality_settings import QualitySettings
from ipro_core.evaluation.quality_weights import NotHere, find_weights
from ipro_core.evaluation.vbench_runner import run_vbench


def grey(*levels: float, side: int = 32):
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, side, side).contiguous()


def test_consistency_halves_the_cosines_to_the_frame_before_and_to_the_first():
    # Angles 0, 60, 120 degrees: to the one before ½ and ½, to the first ½ and −½, which counts 0.
    angle = torch.tensor([0.0, torch.pi / 3, 2 * torch.pi / 3])
    features = 5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert quality.consistency(features) == pytest.approx(((0.5 + 0.5) / 2 + (0.5 + 0) / 2) / 2)
    assert quality.consistency(features[:1].expand(4, -1)) == pytest.approx(1)


def test_frames_are_resized_as_vbench_does():
    frames = torch.full((2, 3, 480, 832), 255 * 0.485)
    assert quality.dino_frames(frames).shape == (2, 3, 224, 388)  # int(224 · 832 / 480), not cropped
    assert quality.dino_frames(frames)[:, 0].abs().max() < 1e-5  # the mean of the first channel
    # The middle square: a picture whose left and right thirds are white comes out with its middle alone.
    wide = torch.full((1, 3, 224, 672), 255.0)
    wide[:, :, :, 200:472] = 0
    middle = quality.clip_frames(wide)
    assert middle.shape == (1, 3, 224, 224)
    assert middle.amax() == pytest.approx(-0.40821073 / 0.27577711, abs=1e-5)


def test_networks_see_every_frame_once_and_in_order():
    seen = []

    def network(pictures):
        seen.append(len(pictures))
        return pictures.mean(dim=(2, 3))

    frames = grey(*torch.linspace(10, 250, 70).tolist(), side=224)
    together = quality.subject_consistency(frames, network)
    assert seen == [32, 32, 6]
    assert together == pytest.approx(
        quality.consistency(quality.dino_frames(quality.levels(frames)).mean(dim=(2, 3)))
    )


def test_the_aesthetic_head_is_given_unit_features_and_marked_out_of_ten():
    squares = quality.aesthetic_quality(
        grey(10, 200), lambda p: 7 * p.flatten(1)[:, :5], lambda f: f.square().sum(1, keepdim=True)
    )
    assert squares == pytest.approx(0.1)


def test_imaging_quality_looks_at_pictures_of_at_most_512():
    sizes = []

    def musiq(picture):
        sizes.append(tuple(picture.shape))
        return picture.mean() * 100

    wide = torch.full((2, 3, 480, 832), 0.4)
    assert quality.imaging_quality(wide, musiq) == pytest.approx(0.4)
    assert sizes == [(1, 3, 295, 512)] * 2  # int(480 · 512 / 832)


def test_flickering_is_the_mean_change_of_8_bit_frames():
    assert quality.temporal_flickering(grey(100, 110, 100, 110)) == pytest.approx(245 / 255)
    assert quality.temporal_flickering(grey(100, 100.4)) == 1  # the same level of 255
    assert quality.temporal_flickering(grey(7, 7, 7)) == 1


def test_smoothness_compares_odd_frames_with_what_is_made_of_the_even():
    def mean(before, after):
        return (before + after) / 2

    assert quality.motion_smoothness(grey(0, 10, 20, 30, 40), mean) == pytest.approx(1, abs=1e-6)
    # Frames 1 and 3 are off by 10 and 20 levels; the last even frame has no partner and no odd one after it.
    assert quality.motion_smoothness(grey(0, 20, 20, 50, 40, 99), mean) == pytest.approx((255 - 15) / 255)


def moving(pixels):
    """A flow that is `pixels` long on the fastest tenth of the picture and nothing elsewhere."""

    def flow(before, after):
        _, height, width = before.shape
        assert height % 8 == 0 and width % 8 == 0
        out = torch.zeros(2, height, width)
        out[0, : height // 10] = 0.6 * pixels
        out[1, : height // 10] = 0.8 * pixels
        return out

    return flow


def test_dynamic_degree_has_three_named_figures():
    frames = torch.rand(17, 3, 90, 170)
    fastest = quality.fastest_flow(frames, 16, moving(9.0))
    # 16 fps: every second frame; 9 frames, 8 pairs. The fastest 5 % lie within the moving tenth.
    assert len(fastest) == 8 and fastest == pytest.approx([9.0] * 8)
    figures = quality.flow_figures(fastest, 90, 170, 16)
    assert figures["top5_px"] == pytest.approx(9)
    assert figures["top5_rel"] == pytest.approx(9 * 8 / 90)
    assert figures["dynamic"] == 1


@pytest.mark.parametrize(
    ("fps", "stride"), [(8, 1), (10, 1), (16, 2), (20, 2), (24, 3), (25, 3), (30, 4), (4, 1)]
)
def test_frames_for_the_flow_lie_an_eighth_of_a_second_apart(fps, stride):
    assert quality.flow_stride(fps) == stride


def test_a_clip_is_dynamic_when_enough_pairs_pass_the_limit():
    # 480 px: 6 · 480 / 256 = 11.25 px; 16 frames want round(4 · 16 / 16) = 4 pairs.
    above, below = 11.3, 11.2
    assert quality.is_dynamic([above] * 4 + [below] * 11, 480, 832)
    assert not quality.is_dynamic([above] * 3 + [below] * 12, 480, 832)
    assert not quality.is_dynamic([below] * 15, 832, 480)


def test_farneback_measures_a_shift_under_its_own_name():
    generator = torch.Generator().manual_seed(0)
    texture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 24, 40, generator=generator), (96, 160), mode="bicubic"
    )[0].clamp(0, 1)
    frames = torch.stack([texture.roll(3 * t, dims=2) for t in range(4)])
    figures = open_meter(QualitySettings(quality="farneback"))(frames, 8)
    assert figures.keys() == {"farneback_top5_px", "farneback_top5_rel"}
    flow = farneback(255 * frames[0], 255 * frames[1])
    assert flow[0, 20:-20, 20:-20].median() == pytest.approx(3, abs=0.3)
    assert flow[1, 20:-20, 20:-20].median() == pytest.approx(0, abs=0.3)


def test_what_cannot_be_computed_says_why_and_is_no_number(tmp_path):
    meter = open_meter(QualitySettings(quality="all, iq"), [tmp_path])
    figures = meter(grey(100, 110), 8)
    assert figures.pop("tf") == pytest.approx(245 / 255)
    assert set(figures) == {"sc", "bc", "aq", "dd_dynamic", "dd_top5_px", "dd_top5_rel", "iq"}
    assert all(value != value for value in figures.values())
    assert set(meter.reasons) == {"sc", "bc", "aq", "dd", "iq"}
    assert "facebook/dino-vitb16" in meter.reasons["sc"]
    assert "no commercial use" in meter.reasons["iq"]
    one = open_meter(QualitySettings(quality="tf"))
    assert one(grey(100), 8)["tf"] != one(grey(100), 8)["tf"]
    assert one.reasons == {"tf": "It takes at least 2 frames."}


def test_an_unknown_dimension_is_refused():
    with pytest.raises(ValueError, match=r"no dimension xy .* choose of sc, bc"):
        open_meter(QualitySettings(quality="sc,xy"))


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    raft = tmp_path / "raft_large_C_T_V1-22a6c225.pth"
    torch.save({"weight": torch.ones(1)}, raft)
    with pytest.raises(
        NotHere, match=r"is a pickle.*weights_only=True.*raft_large_C_T_V1-22a6c225.safetensors"
    ):
        find_weights("raft", str(raft), [])
    snapshot = tmp_path / "dino-vitb16"
    snapshot.mkdir()
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(NotHere, match=r"pytorch_model\.bin is a pickle"):
        find_weights("dino", str(snapshot), [])
    with pytest.raises(NotHere, match="There is no RAFT at"):
        find_weights("raft", str(tmp_path / "nowhere"), [])


def tiny_dino(folder):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**sizes), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    return model


def test_dino_is_found_in_the_folders_of_models_and_gives_its_class_token(tmp_path):
    model = tiny_dino(tmp_path / "clip_vision" / "dino-vitb16")
    opened = open_network("dino", "", [tmp_path / "none", tmp_path])
    pictures = torch.randn(2, 3, 224, 288)
    with torch.no_grad():
        known = model(pictures, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert torch.equal(opened.ask(pictures), known)
    assert opened.name.startswith("dino-vitb16 sha256:")
    meter = open_meter(QualitySettings(quality="sc"), [tmp_path])
    assert meter(grey(10, 10, 10), 8)["sc"] == pytest.approx(1, abs=1e-6)
    assert meter.networks["sc"] == opened.name


def test_clip_gives_its_projected_features_from_a_folder(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(
        vision_config={**small, "image_size": 224, "patch_size": 32, "projection_dim": 8},
        text_config={**small, "vocab_size": 64, "projection_dim": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip-vit-base-patch32")
    opened = open_network("clip_b32", str(tmp_path / "clip-vit-base-patch32"), [])
    pictures = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        known = model.visual_projection(model.vision_model(pictures).pooler_output)
    assert torch.allclose(opened.ask(pictures), known, atol=1e-6)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    tiny_dino(tmp_path / "dino")
    (tmp_path / "dino" / "config.json").unlink()  # without it, it should be the released network
    with pytest.raises(NotHere, match="is not what it should be"):
        open_network("dino", str(tmp_path / "dino" / "model.safetensors"), [])
    save_file({"weight": torch.ones(1, 512), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(NotHere, match="no linear head on 768"):
        open_network("aesthetic", str(tmp_path / "head.safetensors"), [])
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(NotHere, match="cannot be read"):
        open_network("aesthetic", str(tmp_path / "broken.safetensors"), [])


def test_the_aesthetic_head_is_a_line(tmp_path):
    save_file({"weight": torch.full((1, 768), 2.0), "bias": torch.ones(1)}, tmp_path / "head.safetensors")
    head = open_network("aesthetic", str(tmp_path / "head.safetensors"), []).ask
    assert head(torch.full((3, 768), 0.5)).tolist() == [[769.0]] * 3


FAKE_VBENCH = """
import json, pathlib
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        assert device == "cpu"
        self.out = pathlib.Path(output_path)
    def evaluate(self, videos_path, name, dimension_list, mode):
        assert mode == "custom_input"
        (dimension,) = dimension_list
        if dimension == "imaging_quality":
            raise ImportError("No module named 'pkg_resources'")
        if dimension == "motion_smoothness":
            (self.out / f"{name}_eval_results.json").write_text("{}")
            return
        videos = sorted(pathlib.Path(videos_path).glob("*.mp4"))
        rows = [{"video_path": str(v), "video_results": dimension == "dynamic_degree"} for v in videos]
        (self.out / f"{name}_eval_results.json").write_text(json.dumps({dimension: [0.25, rows]}))
"""


@pytest.fixture
def fake_python(tmp_path):
    """An interpreter that has a vbench which writes what vbench writes."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "vbench.py").write_text(textwrap.dedent(FAKE_VBENCH))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/packages exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_official_vbench_is_run_elsewhere_and_its_result_read(fake_python, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "b"):
        write_video(videos / f"{name}.mp4", grey(10, 20), 8)
    scores = run_vbench(fake_python, videos, ("sc", "dd", "iq", "ms"), device="cpu")
    assert scores["sc"].value == 0.25 and scores["sc"].dimension == "subject_consistency"
    assert scores["dd"].videos == {"a.mp4": 1.0, "b.mp4": 1.0}
    assert scores["iq"].value is None
    assert scores["iq"].reason == "ImportError: No module named 'pkg_resources'"
    assert scores["ms"].value is None and "cannot be read" in scores["ms"].reason


def test_official_vbench_scores_base_and_tuned_of_every_pair(fake_python):
    from ipro_core.evaluation.compare import SceneVideos
    from ipro_core.evaluation.guards import Guards
    from ipro_core.evaluation.guards_page import guard_sections

    guards = Guards(8.0, vbench_python=fake_python)
    pairs = [SceneVideos(f"scene {n}", "", 0, grey(1)[0], grey(1, 2), grey(3, 4)) for n in range(3)]
    assert len(list(guards.watch(pairs))) == 3
    results = guards.results()
    assert results.official and len(results.official["tuned"]["dd"].videos) == 3
    figures = results.figures()["official_vbench"]
    assert figures["base"]["sc"] == {"value": 0.25, "reason": None}
    assert "pkg_resources" in figures["base"]["iq"]["reason"]
    assert "0.2500" in guard_sections(results)


def test_an_environment_without_vbench_is_told(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    with pytest.raises(ValueError, match=r"holds no \.mp4"):
        run_vbench(sys.executable, videos)
    write_video(videos / "a.mp4", grey(10, 20), 8)
    with pytest.raises(ValueError, match=r"No module named 'vbench'.*pip install vbench"):
        run_vbench(sys.executable, videos)
    with pytest.raises(ValueError, match="There is no Python at"):
        run_vbench(tmp_path / "nowhere", videos)
    with pytest.raises(ValueError, match="vbench has no xy"):
        run_vbench(sys.executable, videos, ("xy",))


def test_figures_of_every_kind_are_json(tmp_path):
    from ipro_core.evaluation.guards import GuardResults
    from ipro_core.evaluation.quality_measures import ClipQuality, Quality

    meter = open_meter(QualitySettings(quality="tf,dd"), [tmp_path])
    clips = tuple(
        ClipQuality(f"scene {n}", 0, {"base": meter(grey(0, 10), 8), "tuned": meter(grey(0, 5), 8)})
        for n in range(3)
    )
    told = json.loads(json.dumps(GuardResults(Quality(clips, meter)).figures(), allow_nan=False))["quality"]
    assert told["official"] is False
    assert told["figures"]["tf"]["gain"] == pytest.approx(5 / 255)
    assert told["figures"]["tf"]["real"] is None
    assert told["figures"]["dd_top5_px"]["tuned"] is None
    assert "RAFT" in told["figures"]["dd_top5_px"]["reason"]
