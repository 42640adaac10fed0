"""Rotary positions: rotate q and k by angles of their true position.

Paper    Su et al. 2021, "RoFormer", arXiv 2104.09864, section 3.4.2
"""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """x [B, H, N, D], D even; positions [B or 1, N]. Pairs (d, d + D/2) turn by positions * base^(-2 d / D).

    Angles are computed in float64, because float32 loses them beyond about a million positions.
    """
    half = x.shape[-1] // 2
    speed = base ** -(torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = positions[:, None, :, None].double() * speed  # [B or 1, 1, N, D/2]
    work = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(work), angle.sin().to(work)
    left, right = x[..., :half].to(work), x[..., half:].to(work)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
