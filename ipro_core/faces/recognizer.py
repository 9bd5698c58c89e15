"""The identity network φ (ArcFace): aligned crops to unit embeddings, with gradients, in bounded memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..chunks import in_chunks
from .onnx_graph import OnnxGraph


class Recognizer:
    """A recogniser of an InsightFace pack."""

    def __init__(self, network: OnnxGraph, name: str):
        """`name`: file and SHA-256; pools carry it, because two recognisers' embeddings do not compare."""
        self.network, self.name = network, name
        self.size: int = network.input.shape[-1] or 112
        """Side of the crops, in pixels."""
        self.dim: int = network.output_shapes[0][-1]
        # InsightFace's rule: files converted from mxnet hold the normalisation as their first nodes.
        first = [node.name for node in network.nodes[:8]]
        normalises = any(name.startswith(("Sub", "_minus")) for name in first) and any(
            name.startswith(("Mul", "_mul")) for name in first
        )
        self._mean, self._std = (0.0, 1.0) if normalises else (127.5, 127.5)

    def embed(self, crops_T3HW: Tensor, chunk: int = 8) -> Tensor:
        """Embeddings of aligned faces.

        Args:
            crops_T3HW: RGB in [0, 1], of `size` px.
            chunk: faces at a time; with gradients each chunk is computed again on the way back, so that only
                one chunk's activations are alive (71 MB a face for a ResNet-100).

        Returns:
            (T, dim), unit length, on the crops' device and differentiable in them.
        """
        assert crops_T3HW.shape[1:] == (3, self.size, self.size), "crops of the recogniser's size"
        if not len(crops_T3HW):
            return crops_T3HW.new_zeros(0, self.dim)
        return in_chunks(self._embed, crops_T3HW, chunk)

    def _embed(self, crops_B3HW: Tensor) -> Tensor:
        weight = next(self.network.buffers())
        pixels = ((crops_B3HW * 255 - self._mean) / self._std).to(weight)
        # Channels last takes a seventh less time on a CPU.
        (features_BD,) = self.network(pixels.contiguous(memory_format=torch.channels_last))
        return F.normalize(features_BD.reshape(len(crops_B3HW), -1), dim=1).to(crops_B3HW.device)
