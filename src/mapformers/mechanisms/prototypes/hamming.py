"""Clusters of queries by hashed bits: Lloyd's algorithm in Hamming space.

Paper    Vyas, Katharopoulos, Fleuret 2020, "Fast Transformers with Clustered Attention", arXiv 2007.04825,
         section 3.1 and supplementary material
Formula  bit b of x is sign([x, 1] . plane_b); a row joins the nearest code, a code takes the majority of its
         rows' bits
Differs  Starts from rows at equal steps, so that equal inputs give equal clusters and batch mates do not
         matter; ties go to the first code, an even vote keeps the bit, an empty cluster its code. Planes stay
         as they were drawn. Bits are numbers of size 1, since products count what agrees.
"""

import torch
from torch import Tensor

from mapformers.kernels.softmax import at_least_float32


def bits_of(x: Tensor, planes: Tensor) -> Tensor:
    """[B, H, N, bits] of 1 and -1 for x [B, H, N, D] and planes [H, bits, D + 1], the last a bias."""
    x, planes = at_least_float32(x), planes.to(at_least_float32(x).dtype)
    side = x @ planes[..., :-1].mT + planes[..., -1].unsqueeze(1)
    return torch.where(side >= 0, 1.0, -1.0)


@torch.no_grad()
def clusters_of(bits: Tensor, real: Tensor, count: int, iterations: int) -> Tensor:
    """[B, H, N] int: the cluster of every row of bits [B, H, N, bits]; -1 where real [B or 1, N] is False.

    With no more real rows than clusters, each is a cluster of its own.
    """
    ranks = (real.long().cumsum(-1) - 1).clamp(min=0)  # [B or 1, N]
    total = real.sum(-1, keepdim=True)  # [B or 1, 1]
    count = min(count, bits.shape[2])
    step = torch.arange(count, device=bits.device)
    wanted = step * total // count  # ranks of the rows to start from, [B or 1, count]
    start = torch.searchsorted(real.long().cumsum(-1), wanted + 1).clamp(max=bits.shape[2] - 1)
    codes = bits.gather(2, start[:, None, :, None].expand(*bits.shape[:2], count, bits.shape[3]))
    voters = bits * real[:, None, :, None]
    for _ in range(iterations):
        nearest = _nearest(bits, codes)
        votes = torch.zeros_like(codes).scatter_add_(2, nearest.unsqueeze(-1).expand_as(bits), voters)
        codes = torch.where(votes == 0, codes, votes.sign())
    found = torch.where((total <= count)[:, None], ranks[:, None], _nearest(bits, codes))
    return found.masked_fill(~real[:, None], -1)


def _nearest(bits: Tensor, codes: Tensor) -> Tensor:
    """[B, H, N] the first of the codes [B, H, C, bits] with the fewest different bits."""
    count = codes.shape[2]
    agree = (bits @ codes.mT) * count - torch.arange(
        count, device=bits.device
    )  # whole numbers, all different
    return agree.argmax(-1)


def tiles_of(cluster: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Members of clusters in tiles of at most `size`: rows [B, H, T, size] and clusters [B, H, T].

    cluster [B, H, N] below `count`, -1 = in none. Places left over hold -1. T = N / size + count at most.
    """
    n = cluster.shape[-1]
    key = torch.where(cluster < 0, count, cluster)
    order = key.argsort(dim=-1, stable=True)
    ordered = key.gather(-1, order)  # [B, H, N]
    sizes = torch.zeros(*key.shape[:2], count + 1, dtype=torch.long, device=key.device)
    sizes = sizes.scatter_add_(-1, key, torch.ones_like(key))
    tiles = (sizes + size - 1) // size
    first = tiles.cumsum(-1) - tiles  # the first tile of each cluster
    place = torch.arange(n, device=key.device) - (sizes.cumsum(-1) - sizes).gather(-1, ordered)
    tile = first.gather(-1, ordered) + place // size
    most = -(-n // size) + count + 1
    kept = ordered < count
    spot = torch.where(kept, tile * size + place % size, most * size)  # the last place takes the rest
    rows = key.new_full((*key.shape[:2], most * size + 1), -1).scatter_(-1, spot, order)
    owner = key.new_full((*key.shape[:2], most + 1), -1)
    owner = owner.scatter_(-1, torch.where(kept, tile, most), ordered)
    return rows[..., :-1].unflatten(-1, (most, size)), owner[..., :-1]
