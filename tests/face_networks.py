"""Small networks in the layouts of InsightFace's files, as .onnx: random ones, and one with known answers."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)


class SmallIResNet(nn.Module):
    """ArcFace's residual network in small: batch norms before and after the convolutions, PReLU, one Gemm."""

    def __init__(self, dim: int = 32, width: int = 8):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.PReLU(width),
                nn.Conv2d(width, width, 3, 2, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            for _ in range(3)
        )
        self.shortcuts = nn.ModuleList(nn.Conv2d(width, width, 1, 2, bias=False) for _ in range(3))
        self.dense = nn.Linear(width * 49, dim)
        self.features = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, shortcut in zip(self.blocks, self.shortcuts, strict=True):
            x = block(x) + shortcut(x)
        return self.features(self.dense(x.flatten(1)))


class SmallScrfd(nn.Module):
    """SCRFD in small: a pyramid with upsampling by the size of the finer map, un-batched rows of 1, 4, 10."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if not i else width, width, 3, 2, 1) for i in range(5))
        self.heads = nn.ModuleList(nn.Conv2d(width, 2 * columns, 3, 1, 1) for columns in (1, 4, 10))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for conv in self.down:
            x = torch.relu(conv(x))
            maps.append(x)
        fine, middle, coarse = maps[2:]
        middle = middle + nn.functional.interpolate(coarse, size=middle.shape[2:], mode="nearest")
        fine = fine + nn.functional.interpolate(middle, size=fine.shape[2:], mode="nearest")
        outputs = []
        for columns, head in zip((1, 4, 10), self.heads, strict=True):
            for level in (fine, middle, coarse):
                rows = head(level).permute(0, 2, 3, 1).reshape(-1, columns)
                outputs.append(rows.sigmoid() if columns == 1 else rows)
        return outputs


class RedCells(nn.Module):
    """A detector with known answers: a 32 px cell of pure red is a face (score 0.99), all else is none.

    Box: the cell from its top left corner (x, y) to (x + 31, y + 31); points: `POINTS`. Only the first of the
    two anchors of stride 32 ever answers.
    """

    POINTS = ((8.0, 10.0), (24.0, 10.0), (16.0, 18.0), (10.0, 25.0), (22.0, 25.0))
    """Within the cell, in pixels."""

    def forward(self, x: Tensor) -> list[Tensor]:
        # Normalised red is 0.996 where pure, -0.996 where absent; green and blue count against it.
        purity = nn.functional.avg_pool2d(x[:, :1] - x[:, 1:2] - x[:, 2:3], 32) / 3
        face = (20 * (purity - 0.76)).sigmoid()  # 1 → 0.992
        outputs = []
        for stride in STRIDES:
            plane = nn.functional.interpolate(face, scale_factor=32 // stride, mode="nearest")
            score = torch.cat([plane * float(stride == 32), plane * 0], dim=1)
            outputs.append(score.permute(0, 2, 3, 1).reshape(-1, 1))
        for numbers in ((0.0, 0.0, 31.0, 31.0), sum(self.POINTS, ())):
            for level in range(3):
                zeros = outputs[level] * 0
                outputs.append(zeros + torch.tensor(numbers) / STRIDES[level])
        return outputs


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, running statistics and slopes as a trained network has them: none at its default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
            elif value.is_floating_point():
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return network.eval()


def write(network: nn.Module, path: Path, size: int | None = 112) -> Path:
    """Export as InsightFace does: opset 11, one image; `size` None leaves height and width open."""
    side = size or 64
    outputs = network(torch.zeros(1, 3, side, side))
    names = [f"out{index}" for index in range(len(outputs))] if isinstance(outputs, list) else ["embedding"]
    open_sides = {} if size else {"input.1": {2: "height", 3: "width"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # The exporter that InsightFace's files come from is deprecated and says so in several ways.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, side, side),),
            str(path),
            input_names=["input.1"],
            output_names=names,
            dynamic_axes=open_sides,
            opset_version=11,
            dynamo=False,
        )
    return path


def write_pack(folder: Path, seed: int = 0) -> Path:
    """A pack with the detector of known answers, at 128 px, and a random recogniser."""
    write(RedCells(), folder / "det_cells.onnx", size=128)
    write(randomise(SmallIResNet(), seed), folder / "w600k_small.onnx")
    return folder


def red_cells(places: list[list[tuple[int, int]]]) -> Tensor:
    """Frames (T, 3, 128, 128) with a face at each (column, row) of the 4 × 4 cells, on a dark blue ground."""
    frames = torch.zeros(len(places), 3, 128, 128)
    frames[:, 2] = 0.3
    for t, cells in enumerate(places):
        for column, row in cells:
            cell = frames[t, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            cell.copy_(torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 32))
    return frames
