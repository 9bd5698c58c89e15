"""The tiny world's face networks, in the layouts of InsightFace's files.

Two recognisers of different make (so that one can judge what the other has been rewarded for) and a detector
with SCRFD's nine outputs. At run time nobody needs them: the ONNX files are opened like any user's.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

CROP = 112
DETECTOR_SIDE = 128
STRIDES = (8, 16, 32)
WIDTH = 64
"""Length of an embedding."""


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, activation: bool = True
) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.PReLU(outputs)] if activation else []))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, 3, stride), conv(outputs, outputs, activation=False))
        plain = inputs == outputs and stride == 1
        self.short = nn.Identity() if plain else conv(inputs, outputs, 1, stride, activation=False)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.short(x))


class Recognizer(nn.Module):
    """The reward's network: a small IResNet (BatchNorm, PReLU) that ends in a depthwise 7x7 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)  # the world's faces have no more than 28 px of detail
        self.body = nn.Sequential(
            conv(3, 24, 4, 2),
            Residual(24, 24),
            Residual(24, 56, 2),
            Residual(56, 56),
            conv(56, 128, 1),
            nn.Conv2d(128, 128, 7, groups=128, bias=False),
            nn.BatchNorm2d(128),
        )
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(128, WIDTH), nn.BatchNorm1d(WIDTH))

    def forward(self, crops_N3HW: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [-1, 1] → (N, 64), not normalised."""
        return self.embed_small(self.pool(crops_N3HW))

    def embed_small(self, small_N3HW: Tensor) -> Tensor:
        """The same from 28 px, where training starts."""
        return self.embed(self.body(small_N3HW))


class _Norm(nn.Module):
    """GroupNorm with 8 groups, spelt in operators that every ONNX reader knows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], 8, -1)
        centred = groups - groups.mean(2, keepdim=True)
        flat = centred / ((centred * centred).mean(2, keepdim=True) + 1e-5).sqrt()
        return flat.reshape(x.shape) * self.scale + self.shift


class _Step(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            _Norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Judge(nn.Module):
    """The judge's network: pre-activation GroupNorm and SiLU, and one linear layer over all places of the
    face."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), _Step(24), nn.Conv2d(24, 56, 3, 2, 1), _Step(56), _Norm(56), nn.SiLU(),
        )  # fmt: skip
        self.mix = nn.Sequential(nn.Conv2d(56, 24, 1), nn.Flatten(), nn.Linear(24 * 49, WIDTH))

    def forward(self, crops_N3HW: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [-1, 1] → (N, 64), not normalised."""
        return self.embed_small(self.pool(crops_N3HW))

    def embed_small(self, small_N3HW: Tensor) -> Tensor:
        """The same from 28 px, where training starts."""
        return self.mix(self.body(small_N3HW))


class Detector(nn.Module):
    """Strides 8, 16, 32 with two anchors per cell, as SCRFD; both anchors learn the same faces."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 24, 5, 4)
        self.stages = nn.ModuleList(
            (
                nn.Sequential(conv(24, 32, 3, 2), Residual(32, 32)),
                nn.Sequential(conv(32, 48, 3, 2), Residual(48, 48)),
                nn.Sequential(conv(48, 48, 3, 2), conv(48, 48)),
            )
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, 32, 1) for channels in (32, 48, 48))
        self.smooth = nn.ModuleList(conv(32, 32) for _ in STRIDES)
        self.heads = nn.ModuleList(nn.Conv2d(32, 2 * 15, 1) for _ in STRIDES)
        for head in self.heads:
            nn.init.constant_(head.bias[:2], -4.0)  # type: ignore[index]

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, ...]:
        """RGB (x − 127.5) / 128 → three scores [N·cells·2, 1], three box distances [·, 4], three point
        offsets [·, 10]."""
        x, levels = self.stem(images_N3HW), []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for fine in (1, 0):
            levels[fine] = levels[fine] + interpolate(levels[fine + 1], scale_factor=2.0, mode="nearest")
        scores, boxes, points = [], [], []
        for level, smooth, head in zip(levels, self.smooth, self.heads, strict=True):
            out = head(smooth(level)).permute(0, 2, 3, 1)  # rows run over y, x, anchor
            scores.append(out[..., :2].reshape(-1, 1).sigmoid())
            boxes.append(out[..., 2:10].reshape(-1, 4))
            points.append(out[..., 10:].reshape(-1, 10))
        return (*scores, *boxes, *points)


def anchor_centres() -> list[Tensor]:
    """(cells·2, 2) x and y in pixels per stride, InsightFace's: the cell's corner, no half pixel."""
    centres = []
    for stride in STRIDES:
        axis = torch.arange(DETECTOR_SIDE // stride, dtype=torch.float32) * stride
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
        centres.append(grid.reshape(-1, 1, 2).expand(-1, 2, -1).reshape(-1, 2))
    return centres


def export(network: nn.Module, path: str, example: Tensor, outputs: list[str], *, batched: bool) -> None:
    """Write an ONNX file as InsightFace's are: input `input.1`, first dimension 'None' where a batch may
    come."""
    names = {"input.1": {0: "None"}, **{name: {0: "None"} for name in outputs}} if batched else None
    torch.onnx.export(
        network.eval(),
        (example,),
        path,
        input_names=["input.1"],
        output_names=outputs,
        dynamic_axes=names,
        opset_version=12,
        dynamo=False,
    )
