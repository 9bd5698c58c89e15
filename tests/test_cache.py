"""What is kept on disk comes back as it was, or not at all."""

import pytest
import torch

from ipro_core.cache import TensorCache, fingerprint

KEY = {"made_by": "vae abc", "size": [832, 480], "seed": 3}
TENSORS = {
    "latents": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "seen": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
}


def test_an_entry_comes_back_bit_for_bit_under_an_equal_key(tmp_path):
    cache = TensorCache(tmp_path / "cache")
    assert cache.load(KEY) is None
    cache.save(KEY, TENSORS)
    kept = TensorCache(tmp_path / "cache").load({"seed": 3, "size": [832, 480], "made_by": "vae abc"})
    assert kept is not None and kept.keys() == TENSORS.keys()
    assert all(kept[name].dtype == TENSORS[name].dtype for name in kept)
    assert all(torch.equal(kept[name], TENSORS[name]) for name in kept)
    assert cache.load({**KEY, "seed": 4}) is None


def test_what_is_there_is_not_made_again(tmp_path):
    cache, made = TensorCache(tmp_path), []

    def make():
        made.append(1)
        return TENSORS

    for _ in range(3):
        cache.load_or_make(KEY, make)
    assert len(made) == 1


@pytest.mark.parametrize("fault", ["cut short", "one bit", "renamed"])
def test_a_damaged_entry_is_made_again_with_a_warning(tmp_path, fault, caplog):
    cache = TensorCache(tmp_path)
    cache.save(KEY, TENSORS)
    path = cache.path(KEY)
    content = bytearray(path.read_bytes())
    if fault == "cut short":
        path.write_bytes(content[:-4])
    elif fault == "one bit":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.rename(cache.path({**KEY, "seed": 4}))
    wanted = {**KEY, "seed": 4} if fault == "renamed" else KEY
    assert cache.load(wanted) is None
    assert "made again" in caplog.text
    assert torch.equal(cache.load_or_make(wanted, lambda: TENSORS)["seen"], TENSORS["seen"])


def test_the_fingerprint_knows_names_types_shapes_and_values():
    a = torch.arange(4.0)
    prints = {
        fingerprint({"a": a}),
        fingerprint({"b": a}),
        fingerprint({"a": a.reshape(2, 2)}),
        fingerprint({"a": a.double()}),
        fingerprint({"a": a + 1}),
    }
    assert len(prints) == 5
    assert fingerprint({"a": a, "b": a}) == fingerprint({"b": a, "a": a.clone()})
