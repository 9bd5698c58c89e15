"""What `ipro doctor` finds in a models folder, and what it says of the rest."""

import shutil
from pathlib import Path

import pytest
import tiny_wan
from test_commands import answer

from ipro_core.__main__ import main
from ipro_core.doctor import JOBS, diagnose
from ipro_core.types import Framing

PLACES = {
    "model": "diffusion_models/mine_low_noise.safetensors",
    "high-noise": "diffusion_models/sub/mine_high_noise.safetensors",
    "vae": "vae/some.safetensors",
    "text-encoder": "text_encoders/t.safetensors",
    "lightning": "loras/lightning_low.safetensors",
    "high-lightning": "loras/lightning_high.safetensors",
    "faces": "insightface/models/buffalo_x",
}


def models(folder: Path, kind: str) -> Path:
    """A models folder with all files of a job, under names of their owner's own."""
    for flag, file in tiny_wan.write_files(folder / "files", kind).items():
        target = folder / "models" / PLACES[flag]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    return folder / "models"


@pytest.fixture(scope="module")
def a14b(tmp_path_factory):
    return models(tmp_path_factory.mktemp("doctor"), "I2V-A14B")


def asked(capsys, *flags: object) -> dict:
    assert (
        main(["doctor", "--json", "--width", "32", "--height", "32", "--frames", "5", *map(str, flags)]) == 0
    )
    return answer(capsys)


def test_files_are_known_by_their_content_whatever_they_are_called(a14b, capsys):
    said = asked(capsys, "--job", "I2V-A14B", "--models", a14b)
    assert said["ready"]
    found = {entry["what"]: [Path(path).name for path in entry["found"]] for entry in said["files"]}
    assert found == {
        "low-noise expert": ["mine_low_noise.safetensors"],
        "high-noise expert": ["mine_high_noise.safetensors"],
        "few-step LoRA, low noise": ["lightning_low.safetensors"],
        "few-step LoRA, high noise": ["lightning_high.safetensors"],
        "VAE": ["some.safetensors"],
        "text encoder": ["t.safetensors"],
        "face pack (reward)": ["buffalo_x"],
    }
    assert "32x32, 5 frames" in said["plan"] and "GB of host memory" in said["machine"]


def test_what_is_missing_is_named_with_file_folder_licence_and_source(a14b, capsys):
    said = asked(capsys, "--job", "TI2V-5B", "--models", a14b)
    assert not said["ready"]
    gone = {entry["what"]: entry for entry in said["files"] if not entry["found"]}
    assert set(gone) == {
        "network",
        "VAE",
        "draft codec (finds faces sooner)",
    }  # the VAE that is there is A14B's
    assert gone["network"]["name"] == "wan2.2_ti2v_5B_fp16.safetensors"
    assert gone["network"]["folder"] == "diffusion_models" and gone["network"]["licence"] == "Apache-2.0"
    assert "Wan_2.2" in gone["network"]["source"]


def test_a_clean_pair_of_face_networks_is_named_where_a_pack_is_missing(tmp_path):
    text = diagnose("I2V-A14B", {}, Framing(832, 480, 81)).text()
    assert "AuraFace" in text and "YuNet" in text and "non-commercial" in text
    assert text.endswith("Something is missing.")


def test_a_damaged_file_is_not_taken_for_what_is_wanted(a14b, tmp_path, capsys):
    broken = tmp_path / "models"
    shutil.copytree(a14b, broken)
    path = broken / PLACES["model"]
    path.write_bytes(path.read_bytes()[:100])
    said = asked(capsys, "--models", broken)
    assert not said["ready"] and not said["files"][0]["found"]


def test_the_embedded_world_needs_nothing(capsys):
    said = asked(capsys, "--job", "tiny world")
    assert said["ready"] and said["files"] == []


def test_a_size_that_does_not_fit_gets_the_planner_s_sentence(a14b):
    plan = diagnose("I2V-A14B", {}, Framing(8320, 4800, 81), "cpu").plan
    assert "would fit" in plan or "choose a smaller model" in plan


def test_an_unknown_job_is_refused(capsys):
    with pytest.raises(ValueError, match="no job 3B: choose one of " + ", ".join(JOBS)):
        diagnose("3B", {}, Framing(1, 1, 1))
