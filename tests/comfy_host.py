"""Run in a process of its own: a ComfyUI checkout's loader and WanModel on files that a test wrote.

    python comfy_host.py CHECKOUT FOLDER

For every NAME.safetensors with an input in FOLDER/inputs, writes FOLDER/outputs/NAME.safetensors: v as the
host computes it, and `weights.*`, the first block's matrices as the host dequantises them.
"""

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path
from unittest.mock import MagicMock


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The host imports these for models other than Wan, and not every machine has them."""

    names = ("torchvision", "torchaudio", "kornia", "spandrel", "aiohttp")

    def find_spec(self, name, path, target=None):
        absent = name.split(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec):
        module = MagicMock()
        module.__spec__, module.__path__ = spec, []
        return module

    def exec_module(self, module):
        pass


def main(checkout: str, folder: Path) -> None:
    sys.path.insert(0, checkout)
    sys.argv = sys.argv[:1]
    sys.meta_path.append(_Absent())
    import torch
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sd
    import comfy.utils
    from safetensors.torch import load_file, save_file

    (folder / "outputs").mkdir()
    for given in sorted((folder / "inputs").glob("*.safetensors")):
        inputs = load_file(given)
        state, metadata = comfy.utils.load_torch_file(str(folder / given.name), return_metadata=True)
        new = "metadata" in comfy.sd.load_diffusion_model_state_dict.__code__.co_varnames
        more = {"metadata": metadata} if new else {}
        patcher = comfy.sd.load_diffusion_model_state_dict(state, **more)
        model = patcher.model
        network = model.diffusion_model
        dtype = model.manual_cast_dtype or model.get_dtype()
        with torch.no_grad():
            v = network(
                inputs["x"].to(dtype), inputs["t"], inputs["text"].to(dtype), clip_fea=inputs.get("image")
            )
        result = {"v": v.float()}
        for name, module in network.named_modules():
            weight = getattr(module, "weight", None)
            if name.startswith("blocks.0.") and weight is not None and weight.ndim == 2:
                matrix = weight.dequantize() if hasattr(weight, "dequantize") else weight
                scale = getattr(module, "scale_weight", None)
                matrix = matrix.float() if scale is None else matrix.float() * scale.float()
                result[f"weights.{name}.weight"] = matrix.contiguous().clone()
        save_file(result, folder / "outputs" / given.name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
