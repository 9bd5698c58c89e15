"""Run by test_models_lora_host.py in a process of its own: LoRA files through ComfyUI's loader and WanModel.

    python host_lora.py <ComfyUI's folder> <folder with network, inputs and loras>

Writes to each LoRA's name with `.out`: the velocity, and in the metadata what ComfyUI did not load.
"""

import json
import logging
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from unittest.mock import MagicMock


class Absent(MetaPathFinder, Loader):
    """Empty modules for packages that ComfyUI imports for other models than Wan, where they are missing."""

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in ("torchvision", "torchaudio") and PathFinder.find_spec(root) is None:
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return MagicMock(__path__=[])

    def exec_module(self, module):
        pass


host, folder = sys.argv[1], Path(sys.argv[2]).resolve()
sys.argv = sys.argv[:1]
os.chdir(host)
sys.path.insert(0, host)
import torch  # noqa: E402
import transformers  # noqa: E402, F401 (before the empty modules, which it would take for real ones)
from safetensors.torch import load_file, save_file  # noqa: E402

sys.meta_path.append(Absent())
from comfy.cli_args import args  # noqa: E402

args.cpu = True
from comfy import lora, lora_convert, model_detection, model_management, model_patcher  # noqa: E402

model_management.in_training = True  # newer hosts: the rotary embedding in plain torch
weights, inputs = load_file(folder / "network.safetensors"), load_file(folder / "inputs.safetensors")
config = model_detection.model_config_from_unet(weights, "")
config.set_inference_dtype(torch.float32, None)
network = config.get_model(weights, "")
network.load_model_weights(weights, "")
network.eval()

told = []
logging.getLogger().addHandler(handler := logging.Handler())
handler.emit = lambda record: told.append(record.getMessage())
for path in sorted(folder.glob("lora*.safetensors")):
    told.clear()
    patcher = model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
    keys = lora.model_lora_keys_unet(network, {})
    patches = lora.load_lora(lora_convert.convert_lora(load_file(path)), keys)
    placed = patcher.add_patches(patches, 1.0)
    told += [f"NOT LOADED {key}" for key in patches.keys() - set(placed)]
    patcher.patch_model()
    with torch.no_grad():
        v = network.diffusion_model(inputs["x"], inputs["t"], inputs["text"])
    patcher.unpatch_model()
    metadata = {"told": json.dumps(told), "patched": str(len(placed)), "kind": type(network).__name__}
    save_file({"v": v.contiguous()}, path.with_suffix(".out"), metadata=metadata)
