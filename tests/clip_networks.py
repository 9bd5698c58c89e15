"""Small random CLIPs in the layouts that users have: transformers' folder, and open_clip's file."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE, LENGTH, WIDTH = 32, 12, 16
VOCABULARY = len(WORDS) + 2


def write_tokenizer(folder: Path) -> None:
    """CLIP's, with single letters and no merges."""
    words = [*WORDS, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_folder(folder: Path, act: str = "quick_gelu") -> Path:
    """As Hugging Face has CLIP: config.json, model.safetensors, tokeniser."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    vision = {**TOWER, "image_size": SIZE, "patch_size": 8, "hidden_act": act}
    text = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "hidden_act": act}
    text |= {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.parameters():  # transformers begins with hardly any
            nn.init.normal_(parameter, std=0.2)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    write_tokenizer(folder)
    return folder


class OpenClip(nn.Module):
    """The same network as open_clip writes it, from its description: blocks of torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = _Visual()
        self.transformer = _Transformer(32, 4)
        self.token_embedding = nn.Embedding(VOCABULARY, 32)
        self.positional_embedding = nn.Parameter(torch.zeros(LENGTH, 32))
        self.ln_final = nn.LayerNorm(32)
        self.text_projection = nn.Parameter(torch.zeros(32, WIDTH))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def texts(self, ids: list[int]) -> Tensor:
        x = self.token_embedding(torch.tensor([ids])) + self.positional_embedding[: len(ids)]
        later = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
        return self.ln_final(self.transformer(x, later))[0, -1] @ self.text_projection


class _Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(32))
        self.positional_embedding = nn.Parameter(torch.zeros(17, 32))
        self.ln_pre, self.ln_post = nn.LayerNorm(32), nn.LayerNorm(32)
        self.transformer = _Transformer(32, 4)
        self.proj = nn.Parameter(torch.zeros(32, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding), None)
        return self.ln_post(x[:, 0]) @ self.proj


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 48))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(48, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def write_open_clip(folder: Path, name: str = "open_clip_model.safetensors") -> tuple[Path, OpenClip]:
    """open_clip's file with its config and a tokeniser beside it, and the network that it is of."""
    folder.mkdir(parents=True, exist_ok=True)
    model = OpenClip().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / name)
    towers = {"vision_cfg": {"width": 32, "head_width": 8}, "text_cfg": {"width": 32, "heads": 4}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": towers}))
    write_tokenizer(folder)
    return folder / name, model
