"""Causal sums of outer products: what Features divides by its denominator, without the division."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 64
STRETCH = 16 * CHUNK


def causal_sums(a: Tensor, b: Tensor, values: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y[i] = a[i] . (carried + sum_{j <= i} b[j] values[j]^T) and the sums behind the last row.

    a, b [B, H, N, F], values [B, H, N, E], y [B, H, N, E], sums [B, H, F, E]. Chunk by chunk; the backward
    computes stretches of chunks again, so memory is linear in N.
    """
    if carried is None:
        carried = b.new_zeros(*b.shape[:2], b.shape[-1], values.shape[-1])
    found = []
    for parts in zip(*(x.split(STRETCH, 2) for x in (a, b, values)), strict=True):
        y, carried = checkpoint(_stretch, *parts, carried, use_reentrant=False, preserve_rng_state=False)
        found.append(y)
    return torch.cat(found, 2), carried


def _stretch(a: Tensor, b: Tensor, values: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    n = a.shape[2]
    a, b, values = (F.pad(x, (0, 0, 0, -n % CHUNK)).unflatten(2, (-1, CHUNK)) for x in (a, b, values))
    inner = (a @ b.transpose(-1, -2)).tril() @ values  # [B, H, chunks, CHUNK, E]
    sums = torch.cat([carried.unsqueeze(2), b.transpose(-1, -2) @ values], 2).cumsum(2)
    return (inner + a @ sums[:, :, :-1]).flatten(2, 3)[:, :, :n], sums[:, :, -1]
