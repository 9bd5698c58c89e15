"""Tiny random Wan checkpoints in every layout that ComfyUI users have: 256 wide, two blocks, two heads."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ipro_core.models.wan_keys import to_diffusers, to_official

CHANNELS = {"I2V-A14B": (36, 16), "TI2V-5B": (48, 48), "2.1 I2V": (36, 16), "T2V-1.3B": (16, 16)}
HADAMARD = 64
FP8 = torch.float8_e4m3fn


def tiny_network(kind: str = "I2V-A14B", seed: int = 0):
    """diffusers' network, its norms and tables random as well."""
    from diffusers import WanTransformer3DModel

    channels, out_channels = CHANNELS[kind]
    image = {"image_dim": 1280, "added_kv_proj_dim": 256} if kind == "2.1 I2V" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=128, in_channels=channels, out_channels=out_channels,
            ffn_dim=768 if kind == "TI2V-5B" else 512, num_layers=2, **image,
        )  # fmt: skip
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "norm" in name or "table" in name:
                    parameter += 0.2 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def tiny_state(kind: str = "I2V-A14B", seed: int = 0) -> dict[str, Tensor]:
    """`tiny_network`'s tensors under official names, float32."""
    return {to_official(key): tensor for key, tensor in tiny_network(kind, seed).state_dict().items()}


def inputs(kind: str = "I2V-A14B") -> dict[str, Tensor]:
    """x_in, t, text and, for Wan 2.1, CLIP's embedding: 2 × 2 × 2 tokens."""
    draw = torch.Generator().manual_seed(9)
    given = {
        "x": torch.randn(1, CHANNELS[kind][0], 2, 4, 4, generator=draw),
        "t": torch.tensor([625.0]),
        "text": torch.randn(1, 512, 4096, generator=draw),
    }
    return given | ({"image": torch.randn(1, 257, 1280, generator=draw)} if kind == "2.1 I2V" else {})


def output(network, given: dict[str, Tensor]) -> Tensor:
    """v of a diffusers network."""
    return network(given["x"], given["t"], given["text"], given.get("image"), return_dict=False)[0]


def is_linear(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight")


def fp8_scaled(weight: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax() / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def _cast(dtype: torch.dtype) -> Callable:
    return lambda state: ({name: tensor.to(dtype) for name, tensor in state.items()}, {})


def _prefixed(prefix: str) -> Callable:
    return lambda state: ({prefix + name: tensor.bfloat16() for name, tensor in state.items()}, {})


def _plain_fp8(dtype: torch.dtype, *, everything: bool) -> Callable:
    def write(state):
        rounded = lambda name, tensor: everything or (is_linear(name, tensor) and "blocks." in name)  # noqa: E731
        return {
            name: tensor.to(dtype if rounded(name, tensor) else torch.bfloat16)
            for name, tensor in state.items()
        }, {}

    return write


def _scaled_fp8(state):
    tensors = {"scaled_fp8": torch.zeros(2, dtype=FP8)}
    for name, tensor in state.items():
        if is_linear(name, tensor):
            layer = name.removesuffix(".weight")
            tensors[name], tensors[f"{layer}.scale_weight"] = fp8_scaled(tensor)
            tensors[f"{layer}.scale_input"] = torch.tensor(1.0)
        else:
            tensors[name] = tensor
    return tensors, {}


def _comfy_quant(format: str, quantise: Callable, *, in_metadata: bool = False, **options) -> Callable:
    """Newer ComfyUI's: the blocks' linears quantised, a note for each in a tensor or in the metadata."""

    def write(state):
        tensors, layers = {}, {}
        for name, tensor in state.items():
            if not is_linear(name, tensor) or not name.startswith("blocks."):
                tensors[name] = tensor.bfloat16()
                continue
            layer = name.removesuffix(".weight")
            tensors[name], tensors[f"{layer}.weight_scale"] = quantise(tensor)
            layers[layer] = {"format": format, **options}
        if in_metadata:
            return tensors, {"_quantization_metadata": json.dumps({"layers": layers})}
        notes = {f"{layer}.comfy_quant": bytes(json.dumps(note), "utf-8") for layer, note in layers.items()}
        return tensors | {key: torch.tensor(list(note), dtype=torch.uint8) for key, note in notes.items()}, {}

    return write


def _int8(weight: Tensor, *, rows: bool = False) -> tuple[Tensor, Tensor]:
    scale = (weight.abs().amax(dim=1, keepdim=True) if rows else weight.abs().amax()) / 127
    return (weight / scale).round().to(torch.int8), scale


def _int8_rotated(weight: Tensor) -> tuple[Tensor, Tensor]:
    return _int8((weight.unflatten(1, (-1, HADAMARD)) @ hadamard(HADAMARD)).flatten(1), rows=True)


def hadamard(size: int) -> Tensor:
    """By its definition: entry (i, j) is a product over the base-4 digits, −1 where they sum to 3."""
    digits = torch.stack([torch.arange(size) // 4**place % 4 for place in range(size.bit_length() // 2)])
    signs = torch.where(digits[:, :, None] + digits[:, None, :] == 3, -1.0, 1.0)
    return signs.prod(dim=0) / size**0.5


def _diffusers(state):
    return {to_diffusers(name): tensor.bfloat16() for name, tensor in state.items()}, {}


OLDER = {
    "fp32": _cast(torch.float32),
    "bf16": _cast(torch.bfloat16),
    "fp16": _cast(torch.float16),
    "model.diffusion_model.": _prefixed("model.diffusion_model."),
    "fp8 e4m3fn": _plain_fp8(FP8, everything=False),
    "fp8 e5m2": _plain_fp8(torch.float8_e5m2, everything=True),
    "scaled_fp8": _scaled_fp8,
}
"""Layouts that ComfyUI 0.3.64 reads too: state → tensors and metadata."""
NEWER = {
    "comfy_quant e4m3fn": _comfy_quant("float8_e4m3fn", fp8_scaled),
    "comfy_quant e5m2": _comfy_quant("float8_e5m2", lambda weight: fp8_scaled(weight, torch.float8_e5m2)),
    "fp8 in metadata": _comfy_quant("float8_e4m3fn", fp8_scaled, in_metadata=True),
    "int8": _comfy_quant("int8_tensorwise", _int8),
    "int8 rows": _comfy_quant("int8_tensorwise", lambda weight: _int8(weight, rows=True)),
    "int8 rotated": _comfy_quant("int8_tensorwise", _int8_rotated, convrot=True, convrot_groupsize=HADAMARD),
}
"""Layouts that ComfyUI reads since 0.4 or later."""
OURS = {"diffusion_model.": _prefixed("diffusion_model."), "diffusers": _diffusers}
"""Layouts for which ComfyUI has no loader, or the same one."""
LAYOUTS = OLDER | NEWER | OURS


def meaning(layout: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the written numbers stand for, float32, by the formats' definitions."""
    tensors, _ = LAYOUTS[layout](state)
    meant = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("model.").removeprefix("diffusion_model.")
        name = to_official(name) if layout == "diffusers" else name
        if name not in state:
            continue
        layer = key.removesuffix(".weight")
        scale = tensors.get(f"{layer}.weight_scale", tensors.get(f"{layer}.scale_weight"))
        meant[name] = tensor.float() if scale is None else tensor.float() * scale
        if layout == "int8 rotated" and scale is not None:
            meant[name] = (meant[name].unflatten(1, (-1, HADAMARD)) @ hadamard(HADAMARD).T).flatten(1)
    return meant


def network_of(state: dict[str, Tensor], kind: str = "I2V-A14B"):
    """diffusers' network with these numbers."""
    network = tiny_network(kind)
    network.load_state_dict({to_diffusers(name): tensor for name, tensor in state.items()})
    return network


def write_layout(layout: str, state: dict[str, Tensor], path: Path) -> Path:
    tensors, metadata = LAYOUTS[layout](state)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"} | metadata
    )
    return path


def write_folder(state: dict[str, Tensor], folder: Path, *, heads: int = 2) -> Path:
    """A folder as diffusers saves it: two shards, their index, config.json."""
    tensors, _ = _diffusers(state)
    folder.mkdir(parents=True)
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    names = list(tensors)
    weight_map = {name: shards[n % 2] for n, name in enumerate(names)}
    for shard in shards:
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": heads}))
    return folder


def write_gguf(state: dict[str, Tensor], path: Path, type: str, *, flattened: bool = False) -> Path:
    """As ComfyUI-GGUF has it: linears of the blocks in that type, the rest F32; patch_embedding in 5
    dimensions, or in 4 with its shape in the metadata."""
    import gguf

    quantised = gguf.GGMLQuantizationType[type]
    writer = gguf.GGUFWriter(path, arch="wan")
    for name, tensor in state.items():
        kept = not is_linear(name, tensor) or not name.startswith("blocks.")
        if flattened and tensor.ndim == 5:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            tensor = tensor.flatten(0, 1)
        of = gguf.GGMLQuantizationType.F32 if kept else quantised
        array = gguf_blocks(tensor, quantised) if not kept else tensor.numpy()
        writer.add_tensor(name, array, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_blocks(weight: Tensor, type):
    """The gguf package's own rounding; K types, which it only reads, are random blocks of about W's size."""
    import gguf

    from ipro_core.models.frozen import GGUF_SCALES

    try:
        return gguf.quants.quantize(weight.numpy(), type)
    except NotImplementedError:
        numbers, width = gguf.GGML_QUANT_SIZES[type]
        draw = torch.Generator().manual_seed(weight.shape[0])
        blocks = torch.randint(0, 256, (weight.numel() // numbers, width), generator=draw, dtype=torch.uint8)
        scales = 1e-4 * torch.rand(len(blocks), 1, generator=draw)
        for at in GGUF_SCALES[int(type)]:
            blocks[:, at : at + 2] = scales.half().view(torch.uint8)
        return blocks.reshape(len(weight), -1).numpy()
