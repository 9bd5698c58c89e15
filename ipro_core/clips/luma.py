"""Pictures without their colour, and how sharp they are."""

import torch
from torch import Tensor


def luma(frames_TCHW: Tensor) -> Tensor:
    """(T, H, W), Rec. 601."""
    return torch.einsum("c,tchw->thw", frames_TCHW.new_tensor([0.299, 0.587, 0.114]), frames_TCHW)


def sharpness(luma_THW: Tensor) -> Tensor:
    """(T,): the spread of luma's Laplacian over that of luma. It falls with blur and rises with noise;
    contrast and brightness leave it as it is."""
    inner_THW = luma_THW[:, 1:-1, 1:-1]
    beside_THW = luma_THW[:, 1:-1, :-2] + luma_THW[:, 1:-1, 2:]
    around_THW = luma_THW[:, :-2, 1:-1] + luma_THW[:, 2:, 1:-1] + beside_THW
    detail_T = (around_THW - 4 * inner_THW).flatten(1).std(dim=1)
    return detail_T / inner_THW.flatten(1).std(dim=1).clamp_min(1 / 255)
