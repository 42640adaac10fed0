"""Blocks of a fixed size, counted by rank inside each document, and the choice of the best among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.plans import Pooled, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.nearest import first_best
from mapformers.kernels.pooled import pool
from mapformers.kernels.softmax import default_scale
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

    def rows(self, key_is_real: Tensor | None) -> Tensor:
        """[B or 1, M] the block of each real token, -1 at padding."""
        return self.own if key_is_real is None else self.own.masked_fill(~key_is_real, -1)

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
    row, one = blocks.rows(key_is_real), torch.ones_like(k[..., 0], dtype=torch.float64)
    total, count = (pool(x, one, row, blocks.most) for x in (k.double(), one.unsqueeze(-1)))
    return total / count.clamp(min=1)


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


@torch.no_grad()
def heaviest_blocks(q: Tensor, k: Tensor, seen: Pooled, reach: Reach, count: int) -> Tensor:
    """[B, G, N, count] the blocks with the largest softmax weights of pooled keys, summed over the query
    heads of each key/value head. The sums are compared as logarithms, which do not underflow.
    """
    pooled = pool(k.double(), seen.key_weight.double(), seen.row, seen.count)  # [B, G, S, D]
    grouped = q.unflatten(1, (k.shape[1], -1))  # [B, G, H / G, N, D]
    block = torch.arange(seen.count, device=q.device)

    def score(rows: slice) -> Tensor:
        logits = grouped[:, :, :, rows].double() @ pooled.unsqueeze(2).transpose(-1, -2)
        start, end = (x[:, None, None, rows, None] for x in (seen.start, seen.end))
        logits = logits.masked_fill((block < start) | (block >= end), float("-inf"))
        return (logits * default_scale(q.shape[-1])).log_softmax(-1).logsumexp(2)  # [B, G, rows, S]

    return best_blocks(score, reach, (q.shape[0] * q.shape[1] * seen.count, seen.count), count)


def of_blocks(chosen: Tensor, mine: Blocks, blocks: Blocks, causal: bool) -> Windows:
    """The own block, and the chosen ones [B, H, N, r]: segment = block."""
    own = mine.own[:, None, :, None].expand(*chosen.shape[:3], 1)
    return Windows(
        before=None,
        after=0 if causal else None,
        query_segment=torch.cat([own, chosen], -1),
        key_segment=blocks.own[:, None],
    )


def same_block(scope: Scope, block: Tensor) -> Tensor:
    """[B or 1, 1, M, M] bool, for definitions: real keys of one document with one number of their block."""
    documents, m = scope.documents_of_keys(), block.shape[1]
    together = Scope(key_is_real=scope.key_is_real, segments=documents, key_segments=documents)
    return together.visible(m, m, block.device) & (block[:, None, :, None] == block[:, None, None, :])


def whole_blocks(blocks: Blocks, scope: Scope, n: int, m: int, size: int) -> tuple[Tensor, Tensor]:
    """start, end [B or 1, N] of the blocks that end at or before each query."""
    mine = blocks.of_queries(scope, n)
    whole = (scope.query_ranks(n, m, blocks.own.device) + 1) % size == 0  # the own block is complete
    if scope.key_is_real is not None:  # padding before the first token has its rank
        whole = whole & scope.key_is_real[:, scope.query_start : scope.query_start + n]
    return mine.first, (mine.own + whole.long()).cummax(1).values
