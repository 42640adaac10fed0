"""The nearest centroids of every vector, by cosine of the centred vector plus a bias."""

import torch
from torch import Tensor

from mapformers.kernels.native.library import takes
from mapformers.kernels.native.nearest import MOST_NEAREST, native_nearest
from mapformers.kernels.softmax import at_least_float32

SHORTEST = 1e-12  # length that a vector counts as having at least


def centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [.., D] less its mean, and the length [.., 1] of that, never 0. In float32 or wider."""
    x = at_least_float32(x)
    rest = x - x.mean(-1, keepdim=True)
    return rest, torch.linalg.vector_norm(rest, dim=-1, keepdim=True).clamp(min=SHORTEST)


def cosines(x: Tensor, centroids: Tensor) -> Tensor:
    """[B, H, N, C] of x [B, H, N, D], centred, with unit centroids [G, C, D], G dividing H."""
    rest, length = centred(x)
    mu = centroids.repeat_interleave(x.shape[1] // centroids.shape[0], 0).to(rest.dtype)
    return rest @ mu.transpose(-1, -2) / length


@torch.no_grad()
def nearest(x: Tensor, centroids: Tensor, bias: Tensor, count: int) -> Tensor:
    """[B, H, N, count] the best centroids [G, C, D] for x [B, H, N, D] by cosine + bias [G, C], best first.

    Ties go to the lowest index, whatever the batch. No gradient.
    """
    if count <= MOST_NEAREST and takes(x):
        return native_nearest(x, centroids, bias, count, SHORTEST)
    per_head = bias.repeat_interleave(x.shape[1] // bias.shape[0], 0).unsqueeze(-2)
    similarity = cosines(x, centroids)
    return first_best(similarity + per_head.to(similarity.dtype), count)


def first_best(scores: Tensor, count: int) -> Tensor:
    """[.., C] to [.., count] indices of the largest; ties go to the lowest index."""
    chosen = [scores.argmax(-1, keepdim=True)]
    while len(chosen) < count:
        scores = scores.scatter(-1, chosen[-1], float("-inf"))
        chosen.append(scores.argmax(-1, keepdim=True))
    return torch.cat(chosen, -1)
