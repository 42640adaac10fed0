"""Rotary positions: rotate q and k by angles of their true position.

Paper    Su et al. 2021, "RoFormer", arXiv 2104.09864, section 3.4.2
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.kernels.rotate import rotate_pairs


class Rotation(NamedTuple):
    """cos and sin [B or 1, N, D/2] of the angles of N tokens."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, dim: int, dtype: torch.dtype, base: float = 10000.0) -> Rotation:
    """For positions [B or 1, N] and rows of even size `dim`: pair d turns by positions * base^(-2 d / dim).

    Angles are computed in float64, because float32 loses them beyond about a million positions; the result
    has `dtype`, or float32 where that is narrower.
    """
    half = dim // 2
    speed = base ** -(torch.arange(half, device=positions.device, dtype=torch.float64) / half)
    angle = positions[:, :, None].double() * speed  # [B or 1, N, D/2]
    work = torch.promote_types(dtype, torch.float32)
    return Rotation(angle.cos().to(work), angle.sin().to(work))


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x [B, H, N, D]: pairs (d, d + D/2) turned by the angles of their token."""
    return rotate_pairs(x, by.cos, by.sin)
