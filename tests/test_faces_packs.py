"""Packs as users have them: found, told apart, and when something is missing, said in one sentence."""

import hashlib
import logging
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from face_networks import RedCells, SmallIResNet, randomise, write, write_pack

from ipro_core.faces.packs import (
    face_model_names,
    find_pack,
    load_face_models,
    load_recognizer,
    recognizer_name,
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    return write_pack(tmp_path_factory.mktemp("insightface") / "models" / "small")


def sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_pack_opens_by_what_its_networks_take_and_give(pack):
    detector, recognizer = load_face_models(pack)
    assert detector.fixed_size == (128, 128) and detector.strides == (8, 16, 32)
    assert (recognizer.size, recognizer.dim) == (112, 32)


def test_a_recognisers_name_is_its_file_and_the_start_of_its_sha256(pack):
    digest = hashlib.sha256((pack / "w600k_small.onnx").read_bytes()).hexdigest()
    assert load_face_models(pack)[1].name == f"w600k_small.onnx sha256:{digest[:16]}"
    assert load_recognizer(pack).name == load_recognizer(pack / "w600k_small.onnx").name


def test_a_recognisers_name_is_known_before_it_is_opened(pack):
    assert recognizer_name(pack) == load_recognizer(pack).name == face_model_names(pack)[1]


def test_landmark_and_attribute_networks_in_the_folder_are_passed_over(pack, tmp_path):
    class Attributes(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    folder = shutil.copytree(pack, tmp_path / "full")
    write(Attributes(), folder / "1k3d68.onnx", size=192)  # first by name, as in antelopev2
    write(Attributes(), folder / "genderage.onnx", size=96)
    assert load_face_models(folder)[1].name.startswith("w600k_small.onnx")


def test_a_nested_folder_is_used_and_said(pack, tmp_path, caplog):
    shutil.copytree(pack, tmp_path / "antelopev2" / "antelopev2")
    with caplog.at_level(logging.INFO, "ipro"):
        load_face_models(tmp_path / "antelopev2")
    assert "one folder deeper" in caplog.text


def test_a_missing_recogniser_names_what_is_there(pack, tmp_path):
    folder = shutil.copytree(pack, tmp_path / "half")
    (folder / "w600k_small.onnx").unlink()
    with pytest.raises(ValueError) as error:
        load_face_models(folder)
    assert "holds no recogniser (found: det_cells.onnx)" in sentence(error)
    with pytest.raises(ValueError, match="holds no recogniser"):
        load_recognizer(folder)


def test_a_missing_detector_names_what_is_wanted(pack, tmp_path):
    folder = shutil.copytree(pack, tmp_path / "half")
    (folder / "det_cells.onnx").unlink()
    with pytest.raises(ValueError) as error:
        load_face_models(folder)
    assert "holds no detector (found: w600k_small.onnx)" in sentence(error)
    assert "det_*.onnx" in sentence(error)


def test_an_empty_folder_a_missing_one_and_the_folder_above_say_what_to_give(pack, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError) as error:
        load_face_models(tmp_path / "empty")
    assert "holds no .onnx file" in sentence(error)
    with pytest.raises(ValueError) as error:
        load_face_models(tmp_path / "nowhere")
    assert "There is no face pack at" in sentence(error)
    with pytest.raises(ValueError) as error:
        load_face_models(pack.parents[1])
    assert "packs lie in its folder models: small" in sentence(error)
    shutil.copytree(pack, tmp_path / "two" / "a")
    shutil.copytree(pack, tmp_path / "two" / "b")
    with pytest.raises(ValueError) as error:
        load_face_models(tmp_path / "two")
    assert "several face packs (a, b)" in sentence(error)


def test_a_truncated_recogniser_is_a_sentence_with_its_name(pack, tmp_path):
    folder = shutil.copytree(pack, tmp_path / "cut")
    whole = (folder / "w600k_small.onnx").read_bytes()
    (folder / "w600k_small.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError) as error:
        load_face_models(folder)
    assert "w600k_small.onnx cannot be read" in sentence(error)


def test_a_detector_without_points_is_refused(pack, tmp_path):
    class BoxesOnly(RedCells):
        def forward(self, x):
            return super().forward(x)[:6]

    folder = shutil.copytree(pack, tmp_path / "boxes")
    write(BoxesOnly(), folder / "det_cells.onnx", size=128)
    with pytest.raises(ValueError) as error:
        load_face_models(folder)
    assert "without the five points" in sentence(error)


def test_a_network_that_answers_otherwise_is_refused(pack, tmp_path):
    class Other(RedCells):
        def forward(self, x):
            return [rows[:, :1] for rows in super().forward(x)]

    folder = shutil.copytree(pack, tmp_path / "other")
    write(Other(), folder / "det_cells.onnx", size=128)
    with pytest.raises(ValueError) as error:
        load_face_models(folder)
    assert "does not answer as SCRFD does" in sentence(error)
    write(randomise(SmallIResNet(dim=3)), tmp_path / "three.onnx")
    with pytest.raises(ValueError, match="does not answer with an embedding"):
        load_recognizer(tmp_path / "three.onnx")


def test_a_pack_is_found_by_path_or_by_name_under_a_root(pack):
    root = pack.parents[1]
    assert find_pack(pack) == pack
    assert find_pack("small", [root / "elsewhere", root]) == pack
    with pytest.raises(ValueError) as error:
        find_pack("buffalo_l", [root])
    assert "There is no face pack buffalo_l" in sentence(error) and "(found: small)" in sentence(error)


def test_files_of_mxnet_get_raw_pixels(pack, tmp_path):
    # InsightFace's rule: among the first eight nodes one is called Sub... and one Mul..., or as mxnet has it.
    model = onnx.load(pack / "w600k_small.onnx")
    model.graph.node[0].name, model.graph.node[1].name = "_minusscalar0", "_mulscalar0"
    onnx.save(model, tmp_path / "mxnet.onnx")
    raw, usual = load_recognizer(tmp_path / "mxnet.onnx"), load_recognizer(pack)
    crops = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    normalize = torch.nn.functional.normalize
    torch.testing.assert_close(raw.embed(crops), normalize(raw.network(crops * 255)[0]))
    torch.testing.assert_close(usual.embed(crops), normalize(usual.network((crops * 255 - 127.5) / 127.5)[0]))
