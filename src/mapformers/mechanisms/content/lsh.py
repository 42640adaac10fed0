"""Locality-sensitive hashing of directions: the nearest of a few random rows and of their opposites.

Paper    Andoni et al. 2015, "Practical and Optimal LSH for Angular Distance", arXiv 1509.02897; Kitaev et al.
         2020, arXiv 2001.04451, section 2
Formula  h(x) = argmax_c x . [R; -R]_c with R of size [b / 2, D], for b buckets
"""

import torch
from torch import Tensor

from mapformers.core.draw import normal
from mapformers.kernels.softmax import at_least_float32
from mapformers.mechanisms.sparse.draws import hashed


def antipodal(rows: Tensor) -> Tensor:
    """[.., C, D] to [.., 2 C, D]: the rows, then their opposites."""
    return torch.cat([rows, -rows], -2)


def draw_rotations(seed: Tensor, shape: tuple[int, ...], rounds: range) -> Tensor:
    """[G, rounds, b/2, D] normal numbers, shape being (G, b/2, D).

    Those of a round depend on the seed and the round alone: more rounds leave the first ones as they are.
    """
    drawn = []
    for r in rounds:
        generator = torch.Generator()
        if seed.device.type != "meta":
            generator.manual_seed(int(hashed(seed, r)))
        drawn.append(normal(shape, generator))
    return torch.stack(drawn, 1) if drawn else torch.zeros(shape)[:, None][:, :0]


@torch.no_grad()
def buckets_of(x: Tensor, rotations: Tensor) -> Tensor:
    """[B, G, N, R] the bucket of every row of x [B, G, N, D] in every round; ties go to the first bucket.

    rotations [G, R, b/2, D]. Scaling x changes nothing.
    """
    x, half = at_least_float32(x), rotations.shape[2]
    found = []
    for rows in rotations.to(x.dtype).unbind(1):  # one round at a time: O(N b) memory
        along = x @ rows.transpose(-1, -2)  # [B, G, N, b/2]
        most, least = along.max(-1), along.min(-1)
        found.append(torch.where(most.values >= -least.values, most.indices, half + least.indices))
    return torch.stack(found, -1)


def defined_buckets(x: Tensor, rotations: Tensor) -> Tensor:
    """The definition of `buckets_of`, by rank: no direction is nearer, and no earlier one as near."""
    along = x.unsqueeze(2) @ antipodal(rotations.to(x.dtype)).transpose(-1, -2)  # [B, G, R, N, b]
    index = torch.arange(along.shape[-1], device=x.device)
    mine, other = along.unsqueeze(-1), along.unsqueeze(-2)
    better = (other > mine) | ((other == mine) & (index < index[:, None]))
    return (~better.any(-1)).long().argmax(-1).transpose(2, 3)
