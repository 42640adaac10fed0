"""Rotation of the pairs (d, d + D/2) of every row, in one pass where the native kernel runs."""

import torch
from torch import Tensor

from mapformers.kernels.native.library import takes
from mapformers.kernels.native.rotate import native_rotate


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, N, D] with cos, sin [B or 1, N, D/2] of the angles; the angles get no gradient."""
    if takes(x):
        return native_rotate(x, cos, sin, False)
    half = x.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]  # [B or 1, 1, N, D/2]
    left, right = x[..., :half].to(cos.dtype), x[..., half:].to(cos.dtype)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
