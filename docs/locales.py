"""Writes locales/: English from the nodes' own schemas, Chinese from that by docs/chinese.json, text by text.

    python docs/locales.py          with a ComfyUI checkout at hand, see tests/host.py

What changes in a node is missing in docs/chinese.json from then on, and what was there stale: both are told.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from host import Host, find_host  # noqa: E402

LOCALES, WORDS = ROOT / "locales", ROOT / "docs" / "chinese.json"


def english(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The files of locales/en by name, from the host's /object_info."""
    ours = {name: about for name, about in sorted(facts.items()) if name.startswith("IPRO_")}
    folders = sorted({about["category"].split("/")[1] for about in ours.values()})
    return {
        "nodeDefs": {name: _node(about) for name, about in ours.items()},
        "main": {"nodeCategories": {folder: folder for folder in folders}},
    }


def _node(about: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {**about["input"].get("required", {}), **about["input"].get("optional", {})}
    outputs = zip(about["output_name"], about["output_tooltips"], strict=True)
    return {
        "display_name": about["display_name"],
        "description": about["description"],
        "inputs": {
            name: {"name": name, "tooltip": options[0]["tooltip"]} for name, (_, *options) in inputs.items()
        },
        "outputs": {str(n): {"name": name, "tooltip": told} for n, (name, told) in enumerate(outputs)},
    }


def texts(tree: Any) -> Iterator[str]:
    """All texts of a locale's files."""
    if isinstance(tree, str):
        yield tree
    else:
        for branch in tree.values():
            yield from texts(branch)


def translated(tree: Any, words: Mapping[str, str]) -> Any:
    """The same files in other words; what has none stays as it is."""
    if isinstance(tree, str):
        return words.get(tree, tree)
    return {name: translated(branch, words) for name, branch in tree.items()}


def missing_and_stale(files: Any, words: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Texts without a translation, and translations of texts that are no more."""
    said = dict.fromkeys(texts(files))
    return [text for text in said if text not in words], [text for text in words if text not in said]


def read_words() -> dict[str, str]:
    return json.loads(WORDS.read_text(encoding="utf-8"))


def read(language: str) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in (LOCALES / language).glob("*.json")}


def write(language: str, files: Mapping[str, Any]) -> None:
    (LOCALES / language).mkdir(parents=True, exist_ok=True)
    for name, tree in files.items():
        told = json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
        (LOCALES / language / f"{name}.json").write_text(told, encoding="utf-8")


def main() -> int:
    checkout = find_host()
    assert checkout, "a ComfyUI checkout is wanted: set COMFYUI_DIR"
    with tempfile.TemporaryDirectory() as base, Host(checkout, Path(base)) as host:
        files = english(host.get("/object_info"))
    words = read_words()
    write("en", files)
    write("zh", translated(files, words))
    missing, stale = missing_and_stale(files, words)
    for what, ones in (("missing", missing), ("stale", stale)):
        for text in ones:
            print(f"{what} in docs/chinese.json: {text}")
    return int(bool(missing or stale))


if __name__ == "__main__":
    sys.exit(main())
