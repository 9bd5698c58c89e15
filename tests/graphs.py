"""Graphs in the host's two forms: what is queued, and a workflow's file for the page (flat, 0.4)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]
"""The host's /object_info."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
BYPASSED, WIDE = 4, 7
ROW, COLUMN, TALL, TEXT = 26, 380, 56, 60
"""Pixels of the page: a widget, a column of nodes, a node's head and foot, what a longer text takes more."""


PANELS = {
    "UserStudy": 200,
    "Train": 350,
    "ResumeRun": 350,
    "LoadRun": 350,
    "CompareRuns": 340,
    "FaceSimilarity": 340,
}
PANELS |= {"BuildFacePool": 230, "LoadImage": 240, "PreviewImage": 200}
"""Pixels that a node's own panel takes (web/ipro.js), or the host's picture."""


def to_api(workflow: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """A workflow's file as the page would queue it."""
    links, nodes = (
        {link[0]: link for link in workflow["links"]},
        {node["id"]: node for node in workflow["nodes"]},
    )

    def source(number: int) -> list[Any]:
        """What a link brings: of a bypassed node its own input of the same kind."""
        _, node, index, _, _, kind = links[number]
        if nodes[node]["mode"] != BYPASSED:
            return [str(node), index]
        return next(source(given["link"]) for given in nodes[node]["inputs"] if given["type"] == kind)

    prompt = {}
    for node in workflow["nodes"]:
        if node["mode"] == BYPASSED:
            continue
        if node["type"] not in facts:
            assert node["type"] in ("Note", "MarkdownNote"), f"{node['type']} is no node of this host"
            continue
        inputs: dict[str, Any] = {}
        values = iter(node.get("widgets_values") or [])
        for name, options in widgets(facts[node["type"]]):
            inputs[name] = next(values, options.get("default"))
            if options.get("control_after_generate"):
                next(values, None)
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = source(socket["link"])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def to_page(
    prompt: Mapping[str, Any], facts: Facts, notes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A graph that is told by node names, laid out in columns from left to right.

    Args:
        prompt: name → {"class_type", "inputs", also "title", "properties", "mode"}; a link is [name, index].
            Nodes that have "column" and "row" stand in a table, each column theirs alone.
        notes: of the workflow: {"text": …} becomes a note at the left.
    """
    ids = {name: number for number, name in enumerate(prompt, start=1)}
    sources = {
        name: [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        for name, node in prompt.items()
    }
    depth: dict[str, int] = {}
    while len(depth) < len(prompt):
        for name, above in sources.items():
            if name not in depth and all(source in depth for source in above):
                depth[name] = 1 + max((depth[source] for source in above), default=-1)
    columns = _columns(depth)
    nodes, links, below = [], [], dict[int, int]()
    for name, node in prompt.items():
        about = facts[node["class_type"]]
        known = {**about["input"].get("required", {}), **about["input"].get("optional", {})}
        sockets, values = [], []
        for socket, (kind, *_) in known.items():
            given = node["inputs"].get(socket)
            if isinstance(given, list):
                source, index = given
                link = [len(links) + 1, ids[source], index, ids[name], len(sockets), "*"]
                link[5] = facts[prompt[source]["class_type"]]["output"][index]
                links.append(link)
                sockets.append({"name": socket, "type": _type(kind), "link": link[0]})
                if _type(kind) in WIDGETS:
                    sockets[-1]["widget"] = {"name": socket}
            elif _type(kind) not in WIDGETS:
                sockets.append({"name": socket, "type": _type(kind), "link": None})
        for socket, options in widgets(about):
            given = node["inputs"].get(socket, options.get("default"))
            values.append(options.get("default", "") if isinstance(given, list) else given)
            if options.get("control_after_generate"):
                values.append("fixed")
        rows = len(values) + max(len(sockets), len(about["output"]))
        tall = PANELS.get(node["class_type"].removeprefix("IPRO_"), 0)
        tall += sum(TEXT for _, options in widgets(about) if options.get("multiline"))
        size = [COLUMN - 50, TALL + ROW * rows + tall]
        place = node.get("column", columns[name])
        top = below.get(place, 0)
        below[place] = top + size[1] + 60
        nodes.append(
            {
                "id": ids[name],
                "type": node["class_type"],
                "pos": [place * COLUMN, top],
                "size": size,
                "flags": {},
                "order": len(nodes),
                "mode": node.get("mode", 0),
                "inputs": sockets,
                "outputs": [
                    {"name": label, "type": kind, "links": None, "slot_index": index}
                    for index, (label, kind) in enumerate(
                        zip(about["output_name"], about["output"], strict=True)
                    )
                ],
                "properties": {"Node name for S&R": node["class_type"], **node.get("properties", {})},
                "widgets_values": values,
                **({"title": node["title"]} if "title" in node else {}),
            }
        )
    rows = dict[int, list[Any]]()
    for told, placed in zip(prompt.values(), nodes, strict=True):
        if "row" in told:
            rows.setdefault(told["row"], []).append(placed)
    top = 0
    for _, abreast in sorted(rows.items()):
        for placed in abreast:
            placed["pos"][1] = top
        top += max(placed["size"][1] for placed in abreast) + 60
    for link, source, index, *_ in links:
        output = nodes[source - 1]["outputs"][index]
        output["links"] = [*(output["links"] or []), link]
    if notes:
        note = {
            "id": len(nodes) + 1,
            "type": "MarkdownNote",
            "pos": [-420, 0],
            "size": [380, 380],
            "flags": {},
        }
        note |= {"order": len(nodes), "mode": 0, "inputs": [], "outputs": [], "properties": {}}
        nodes.append({**note, "widgets_values": [notes["text"]]})
    counts = {"last_node_id": len(nodes), "last_link_id": len(links)}
    return {**counts, "nodes": nodes, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def _columns(depth: Mapping[str, int]) -> dict[str, int]:
    """By node: a column for each depth; of a wide graph a chain of single nodes goes down in one."""
    if max(depth.values()) < WIDE:
        return dict(depth)
    alone = [sum(other == place for other in depth.values()) == 1 for place in range(max(depth.values()) + 1)]
    column, at = 0, []
    for place, single in enumerate(alone):
        column += bool(place) and not (single and alone[place - 1])
        at.append(column)
    return {name: at[place] for name, place in depth.items()}


def widgets(about: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """A node's widgets in the page's order: name and options."""
    known = {**about["input"].get("required", {}), **about["input"].get("optional", {})}
    found = []
    for name, (kind, *rest) in known.items():
        options = dict(rest[0]) if rest else {}
        if name in ("seed", "noise_seed"):
            options.setdefault("control_after_generate", True)
        if _type(kind) in WIDGETS and not options.get("forceInput"):
            if isinstance(kind, list):
                options.setdefault("default", kind[0] if kind else "")
            elif kind == "COMBO":
                options.setdefault("default", (options.get("options") or [""])[0])
            elif kind == "COMFY_DYNAMICCOMBO_V3":
                options.setdefault("default", options["options"][0]["key"])
            found.append((name, options))
    return found


def _type(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
