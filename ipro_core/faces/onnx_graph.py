"""Runs the graph of an .onnx file as a frozen torch module: batched, differentiable in its input."""

import torch
from torch import Tensor, nn

from .onnx_file import Node, OnnxFile, damaged, tensor
from .onnx_operators import FLOAT_NUMBERS, IN_PLACE, OPERATORS

MOST_PIXELS, MOST_NUMBERS = 1 << 28, 1 << 16
"""Limits of the trial run: one value (a hundred times what a face network needs), and a list of sizes."""


class OnnxGraph(nn.Module):
    """One input, one or more outputs.

    A file that declares one image at a time still takes any batch: in one go where its outputs grow with the
    batch, image by image where a size is written into the graph.

    Raises:
        ValueError: on building, if the file is damaged or uses an operator that is not known here.
    """

    def __init__(self, file: OnnxFile):
        super().__init__()
        if len(file.inputs) != 1 or not file.outputs:
            raise ValueError(f"{file.path} takes {len(file.inputs)} inputs, a face network takes one image.")
        unknown = sorted({node.operator for node in file.nodes} - OPERATORS.keys() - {"Constant"})
        if unknown:
            raise ValueError(
                f"{file.path} uses {', '.join(unknown)}, which is not known here: choose another network."
            )
        self.path = file.path
        self.input = file.inputs[0]
        self.output_names = tuple(port.name for port in file.outputs)
        self.nodes = tuple(node for node in file.nodes if node.operator != "Constant")
        self._numbers: dict[str, Tensor] = {}
        self._weights: dict[str, str] = {}
        try:
            self._read_constants(file)
            self._forget = self._last_uses()
            self._in_place = self._overwritten()
            shapes = self._trial_run(1)
        # Whatever a wrong number breaks in whatever operator, the file is at fault.
        except Exception as error:
            raise damaged(file.path, " ".join(f"{error}".split())[:200] or type(error).__name__) from error
        self.output_shapes: tuple[torch.Size, ...] = shapes
        """At the declared size (128 px where it is open), for one image."""
        try:
            pairs = zip(shapes, self._trial_run(2), strict=True)
            self._takes_batches = all(two == (2 * one[0], *one[1:]) for one, two in pairs)
        except Exception:  # a size written into the graph
            self._takes_batches = False

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs; where it leaves out the batch, the images' rows follow each other."""
        if self._takes_batches or len(images_BCHW) == 1:
            return self._run(images_BCHW, dict(self.named_buffers()))
        singles = [self._run(image, dict(self.named_buffers())) for image in images_BCHW.split(1)]
        return tuple(torch.cat(outputs) for outputs in zip(*singles, strict=True))

    def _run(self, images_BCHW: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {name: weights[key] for name, key in self._weights.items()}
        values |= self._numbers
        values[self.input.name] = images_BCHW
        for node, forget, in_place in zip(self.nodes, self._forget, self._in_place, strict=True):
            inputs = [values[name] if name else None for name in node.inputs]
            if in_place and not torch.is_grad_enabled():
                value = IN_PLACE[node.operator](node.attributes, *inputs)
            else:
                value = OPERATORS[node.operator](node.attributes, *inputs)
            if images_BCHW.is_meta and value.numel() > (MOST_PIXELS if value.is_meta else MOST_NUMBERS):
                raise ValueError(f"{node.operator} makes a value of the shape {list(value.shape)}")
            values[node.outputs[0]] = value
            for name in forget:
                del values[name]
        return tuple(values[name] for name in self.output_names)

    def _read_constants(self, file: OnnxFile) -> None:
        """Sort weights, which follow the module to its device, from numbers, which stay on the CPU."""
        constants = {name: tensor(message) for name, message in file.weights.items()}
        for node in file.nodes:
            if node.operator == "Constant":
                constants[node.outputs[0]] = _constant(node)
        numbers = {
            node.inputs[place]
            for node in file.nodes
            for place in FLOAT_NUMBERS.get(node.operator, ())
            if place < len(node.inputs)
        }
        for name, value in constants.items():
            if name in numbers or value.ndim == 0 or not value.is_floating_point():
                self._numbers[name] = value
                continue
            if not value.isfinite().all():
                raise ValueError(f"the weights {name} are not finite")
            self._weights[name] = f"weight_{len(self._weights)}"  # names in files hold dots
            self.register_buffer(self._weights[name], value)

    def _last_uses(self) -> list[list[str]]:
        """For every node, the values that nobody needs after it."""
        kept = {*self.output_names, ""}
        forget: list[list[str]] = []
        for node in reversed(self.nodes):
            names = {*node.inputs, *node.outputs[:1]} - kept
            forget.append(sorted(names))
            kept |= names
        return forget[::-1]

    def _overwritten(self) -> list[bool]:
        """For every node, whether it may write into its input: what nobody else needs, fresh from a
        convolution or a sum and so no view of another value. It saves a tenth of a detector's time."""
        fresh = {node.outputs[0] for node in self.nodes if node.operator in ("Conv", "Add")}
        return [
            node.operator in IN_PLACE and node.inputs[0] in fresh and node.inputs[0] in forget
            for node, forget in zip(self.nodes, self._forget, strict=True)
        ]

    def _trial_run(self, batch: int) -> tuple[torch.Size, ...]:
        """The graph on shapes alone: nothing is computed, every value's size is seen before it is real."""
        _, *image = self.input.shape
        if len(image) != 3 or image[0] not in (None, 3):
            raise ValueError(f"it takes an input of the shape {self.input.shape}, not a colour picture")
        images = torch.empty(batch, 3, *(side or 128 for side in image[1:]), device="meta")
        weights = {name: value.to("meta") for name, value in self.named_buffers()}
        return tuple(output.shape for output in self._run(images, weights))


def _constant(node: Node) -> Tensor:
    for value in node.attributes.values():
        return value if isinstance(value, Tensor) else torch.tensor(value)
    raise ValueError("a constant without a value")
