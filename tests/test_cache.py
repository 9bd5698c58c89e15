"""What is kept on disk comes back as it was, or not at all."""

import weakref

import pytest
import torch

from ipro_core.cache import MemoryCache, Stage, TensorCache
from ipro_core.files import fingerprint, sha256

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


class Double:
    """A network that doubles; it counts how often it is opened, and says whether it is still open."""

    def __init__(self):
        self.opened, self.doubled = 0, []
        self.alive = lambda: None

    def stage(self) -> Stage[int]:
        return Stage("doubles", lambda item: {"double": item}, self.open)

    def open(self):
        def network(item: int):
            self.doubled.append(item)
            return {"double": torch.tensor(2 * item)}

        self.opened, self.alive = self.opened + 1, weakref.ref(network)
        return network


@pytest.mark.parametrize("kind", ["on disk", "in memory"])
def test_a_stage_opens_its_network_for_what_is_missing_and_lets_it_go(tmp_path, kind):
    cache, double = TensorCache(tmp_path) if kind == "on disk" else MemoryCache(), Double()
    run = double.stage().run(cache, [1, 2, 3])
    assert next(run) == 1 and double.alive() is not None
    run.close()  # broken off
    assert double.alive() is None and double.stage().load(cache, 2) is None
    assert list(double.stage().run(cache, [1, 2, 3])) == [1, 2, 3]
    assert list(double.stage().run(cache, [3, 2, 1])) == [3, 2, 1]
    assert double.doubled == [1, 2, 3] and double.opened == 2 and double.alive() is None
    entry = double.stage().load(cache, 3)
    assert entry is not None and entry["double"] == 6


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
    cache.save(wanted, TENSORS)
    kept = cache.load(wanted)
    assert kept is not None and torch.equal(kept["seen"], TENSORS["seen"])


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


def test_a_digest_is_remembered_until_the_file_is_written_anew(tmp_path):
    path, memo = tmp_path / "weights", tmp_path / "cache" / "memo.json"
    path.write_bytes(b"abc")
    # SHA-256 of "abc", from FIPS 180-2.
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(path, memo) == sha256(path) == wanted
    memo.write_text(memo.read_text().replace(wanted, "remembered"))
    assert sha256(path, memo) == "remembered"
    path.write_bytes(b"abcd")
    assert sha256(path, memo) not in (wanted, "remembered")
    (tmp_path / "shards").mkdir()
    for name, content in (("a", b"abc"), ("b", b"")):
        (tmp_path / "shards" / name).write_bytes(content)
    whole = sha256(tmp_path / "shards")
    (tmp_path / "shards" / "a").rename(tmp_path / "shards" / "c")
    assert sha256(tmp_path / "shards") != whole
