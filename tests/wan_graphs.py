"""The shipped workflows for Wan as the page queues them, with small numbers and stand-ins for their files."""

import time
from pathlib import Path

import tiny_wan
from face_networks import red_cells
from graphs import read, to_api
from host import PACK
from wan_layouts import tiny_state, write_layout

SMALL = {"width": 32, "height": 32, "frames": 5, "updates": 2, "batch_size": 1, "rank": 2, "sample_every": 2}
SMALL |= {"boundary_seeds": 2, "max_frames": 12, "seeds": 1, "warmup": 0}
ANY_CLIP = {"least_side": 0, "least_fps": 0, "least_seconds": 0, "least_sharpness": 0, "least_distance": 0}
ANY_CLIP |= {"most_clipped": 0, "most_people": 0}
"""Limits of a curation that keeps the stand-ins for clips."""
OURS = {
    "model": ("diffusion_models", "model"),
    "high_noise": ("diffusion_models", "high-noise"),
    "vae": ("vae", "vae"),
    "text_encoder": ("text_encoders", "text-encoder"),
    "lightning": ("loras", "lightning"),
    "high_lightning": ("loras", "high-lightning"),
}
"""Load Wan Expert's widget → folder, and what `tiny_wan.write_files` calls the file."""
STOCK = {
    "unet_name": ("diffusion_models", "model", "high-noise"),
    "vae_name": ("vae", "vae"),
    "clip_name": ("text_encoders", "text-encoder"),
    "lora_name": ("loras", "lightning", "high-lightning"),
}
"""The host's own loaders' widgets; of two files the second is the high-noise expert's."""


def small_graph(host, workflow, /, **changed):
    prompt = to_api(read(PACK / "workflows" / f"{workflow}.json"), host.get("/object_info"))
    for node in prompt.values():
        inputs = node["inputs"]
        widgets = {knob for knob, value in inputs.items() if not isinstance(value, list)}
        inputs |= {knob: value for knob, value in {**SMALL, **changed}.items() if knob in widgets}
    return prompt


def put_networks(host, prompt, kind, folder: Path, layout: str = "fp32"):
    """Stand-ins where the loaders of the graph look for their files; the experts in that layout, in a folder
    of its own, because a host that has a file open must not find another in its place."""
    files = tiny_wan.write_files(folder, kind)
    for seed, expert in enumerate(("model", "high-noise"), start=1):
        if expert in files and layout != "fp32":
            write_layout(layout, tiny_state(kind, seed), files[expert])
    models = host.base / "models"
    for node in prompt.values():
        known = OURS if node["class_type"] == "IPRO_LoadWanExpert" else STOCK
        for knob, (place, *which) in known.items():
            name = node["inputs"].get(knob, "none")
            if not isinstance(name, str) or name == "none":
                continue
            if layout != "fp32":
                name = node["inputs"][knob] = f"{layout}/{name}"
            path = models / place / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[which[-1 if "high_noise" in name else 0]].read_bytes())
    pack = models / "insightface" / "models" / "antelopev2"
    if not pack.exists():
        pack.parent.mkdir(parents=True, exist_ok=True)
        pack.symlink_to(tiny_wan.write_pack(host.base / "pack"))


def put_clips(host):
    """Clips of a person in input/my_clips, of another one in input/other_people, and a picture."""
    from PIL import Image

    tiny_wan.write_clips(host.base / "input" / "my_clips")
    tiny_wan.write_clips(host.base / "input" / "other_people", count=1, first=3)
    frame_HWC = (255 * red_cells([[(0, 0)]])[0].movedim(0, -1)).byte()
    Image.fromarray(frame_HWC.numpy()).save(host.base / "input" / "person.png")


def only(prompt, kind):
    """The graph that leads to the one node of a kind, and its id."""
    (wanted,) = [name for name, node in prompt.items() if node["class_type"] == kind]
    kept, ahead = {}, [wanted]
    while ahead:
        name = ahead.pop()
        kept[name] = prompt[name]
        ahead += [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    return kept, wanted


def the(prompt, kind):
    """The id of the one node of a kind."""
    return only(prompt, kind)[1]


def forgotten(host, prompt, node):
    """A graph queued again after the host has forgotten it; what the node then tells."""
    for _ in range(20):  # the host forgets when it is idle, sooner or later
        host.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.5)
        history = host.wait(host.queue(prompt))
        (cached,) = [told for name, told in history["status"]["messages"] if name == "execution_cached"]
        if node not in cached["nodes"]:
            assert history["status"]["status_str"] == "success", history["status"]
            return history["outputs"][node]
    raise AssertionError("the host did not forget")
