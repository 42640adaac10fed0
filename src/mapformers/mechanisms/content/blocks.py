"""Blocks of a fixed size, counted by rank inside each document, and the choice of the best among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.scope import Scope
from mapformers.kernels.nearest import first_best
from mapformers.mechanisms.sparse.draws import document_lengths

SCORES_ALIVE = 2**18  # scores of one stretch of queries, over all heads and batch rows


class Blocks(NamedTuple):
    """The blocks of a row, numbered through all its documents. Documents are contiguous runs.

    own    [B or 1, M] number of the block in which each token lies; padding goes with the token before it
    first  [B or 1, M] number of the first block of the token's document
    end    [B or 1, M] one more than the number of its last block
    most   blocks of the longest row
    """

    own: Tensor
    first: Tensor
    end: Tensor
    most: int

    def of_queries(self, scope: Scope, n: int) -> Blocks:
        """The same of the queries, which are the keys from scope.query_start on."""
        rows = slice(scope.query_start, scope.query_start + n)
        return Blocks(self.own[:, rows], self.first[:, rows], self.end[:, rows], self.most)


def blocks_of(scope: Scope, m: int, size: int, device: torch.device) -> Blocks:
    """The blocks of `size` real tokens that m keys make."""
    inside = scope.ranks_of_keys(m, device) // size
    each = -(-document_lengths(scope, m, device) // size)  # blocks of the document
    each, inside = torch.broadcast_tensors(each, inside)
    first, documents = torch.zeros_like(inside), scope.documents_of_keys()
    if documents is not None:
        border = documents[:, 1:] != documents[:, :-1]
        first[:, 1:] = torch.where(border, each[:, :-1], 0).cumsum(1)
    own = first + inside
    return Blocks(own, first, first + each, int(own.max()) + 1)


def block_means(k: Tensor, blocks: Blocks, key_is_real: Tensor | None) -> Tensor:
    """[B, G, S, D] in float64, the mean of the real keys k [B, G, M, D] of each block."""
    batch, groups, m, dim = k.shape
    real = torch.ones(1, m, dtype=torch.bool, device=k.device) if key_is_real is None else key_is_real
    block = blocks.own.expand(batch, -1)
    count = k.new_zeros(batch, blocks.most, dtype=torch.float64)
    count.scatter_add_(1, block, real.expand(batch, -1).to(count.dtype))
    total = k.new_zeros(batch, groups, blocks.most, dim, dtype=torch.float64)
    index = block[:, None, :, None].expand(batch, groups, m, dim)
    total.scatter_add_(2, index, torch.where(real[:, None, :, None], k.double(), 0.0))
    return total / count.clamp(min=1)[:, None, :, None]


class Reach(NamedTuple):
    """Which blocks a query may choose from: low <= s < high [B or 1, N], without `besides` [B or 1, N]."""

    low: Tensor
    high: Tensor
    besides: Tensor | None = None


@torch.no_grad()
def best_blocks(score: Callable[[slice], Tensor], reach: Reach, sizes: tuple[int, int], count: int) -> Tensor:
    """[B, H, N, count] the best blocks in reach by score(rows) [B, H, rows, S], best first; -1 = no more.

    sizes: scores per query over batch and heads, and S. Queries come in stretches, so that memory stays
    linear. Scores are made in float64 and compared in float32: equal blocks then tie, whatever the order in
    which their keys were summed, and ties go to the lowest number.
    """
    n, count = reach.low.shape[1], min(count, sizes[1])
    block = torch.arange(sizes[1], device=reach.low.device)
    step = max(1, SCORES_ALIVE // sizes[0])
    chosen = []
    for rows in (slice(i, min(i + step, n)) for i in range(0, n, step)):
        low, high = reach.low[:, rows, None], reach.high[:, rows, None]
        inside = (block >= low) & (block < high)
        if reach.besides is not None:
            inside = inside & (block != reach.besides[:, rows, None])
        # Infinities become finite: what is out of reach must stay below all else.
        scores = score(rows).float().nan_to_num(nan=0.0).masked_fill(~inside[:, None], float("-inf"))
        best = first_best(scores, count)
        some = block[:count] < inside.sum(-1, keepdim=True)  # [B or 1, rows, count]
        chosen.append(best.masked_fill(~some[:, None], -1))
    return torch.cat(chosen, 2)
