"""Keys drawn at random for every query, and how far its scores with them are from being alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mapformers.core.scope import Scope
from mapformers.kernels.softmax import default_scale, expand_heads
from mapformers.mechanisms.sparse.draws import below, hashed, query_lengths

OBSERVED = 256  # queries of a batch row that a threshold learns from


@dataclass(frozen=True)
class SampledKeys:
    """Which keys every query draws, with replacement, out of a stored seed: by its head, its rank and the
    draw.

    seed    [] int64
    order   [B or 1, M] indices of the real keys, in their order, before those of the padding
    first   [B or 1, N] place in `order` of the first key of the query's document
    rank    [B or 1, N] rank of the query among the real tokens of its document
    length  [B or 1, N] real tokens of that document
    pool    [B or 1, N] how many keys of its document a query draws from
    factor  draws for each unit of the logarithm of the pool
    """

    seed: Tensor
    order: Tensor
    first: Tensor
    rank: Tensor
    length: Tensor
    pool: Tensor
    factor: int

    @classmethod
    def of(cls, seed: Tensor, scope: Scope, sizes: tuple[int, int], factor: int, past: bool) -> SampledKeys:
        """sizes: N and M. past: only keys at or before the query; otherwise all of its document."""
        n, m = sizes
        real, device = scope.key_is_real, seed.device
        if real is None:
            real = torch.ones(1, m, dtype=torch.bool, device=device)
        rank = scope.query_ranks(n, m, device)
        place = (real.long().cumsum(1) - 1)[:, scope.query_start : scope.query_start + n]
        length = query_lengths(scope, n, m, device).expand_as(rank)
        order = (~real).long().argsort(dim=1, stable=True)
        pool = rank + 1 if past else length
        return cls(seed, order, (place - rank).clamp(min=0), rank, length, pool, factor)

    def at(self, rows: Tensor) -> SampledKeys:
        """The same of the queries `rows` [n] alone."""
        names = ("first", "rank", "length", "pool")
        return replace(self, **{name: getattr(self, name)[:, rows] for name in names})

    def draw(self, heads: int, number: int) -> tuple[Tensor, Tensor]:
        """[B or 1, H, N] the key of the draw `number`, and [B or 1, 1, N] whether the query has so many."""
        head = torch.arange(heads, device=self.rank.device)[None, :, None]
        bits = hashed(self.seed, head, self.rank[:, None], torch.full_like(head, number))
        place = self.first[:, None] + below(bits, self.pool[:, None].clamp(min=1))
        place = place.clamp(max=self.order.shape[1] - 1)  # queries that are padding may point behind it
        order = self.order[:, None].expand(max(self.order.shape[0], place.shape[0]), heads, -1)
        return order.gather(2, place.expand(order.shape[0], -1, -1)), number < self.count[:, None]

    @cached_property
    def count(self) -> Tensor:
        """[B or 1, N] how many draws a query has."""
        return self.factor * kept_of(self.pool)

    @property
    def draws(self) -> int:
        """The most that a query has."""
        return int(self.count.max())


def kept_of(length: Tensor) -> Tensor:
    """ceil(ln(1 + length)), as integers."""
    return length.double().log1p().ceil().long()


@torch.no_grad()
def sparsity(q: Tensor, k: Tensor, sampled: SampledKeys) -> Tensor:
    """[B, H, N] float32: the largest score of a query with its sampled keys minus the mean of these scores.

    One draw after another: memory O(N D). In float64, so that no rounding decides a choice.
    """
    batch, heads, n, dim = q.shape
    k, queries = expand_heads(k, heads), q.double().unsqueeze(-2)
    best, total = q.new_full((2, batch, heads, n), float("-inf"), dtype=torch.float64)
    total = total.zero_()
    for number in range(sampled.draws):
        index, has = sampled.draw(heads, number)
        keys = k.gather(2, index.unsqueeze(-1).expand(batch, -1, -1, dim))  # [B, H, N, D]
        score = (queries @ keys.double().unsqueeze(-1)).squeeze(-1).squeeze(-1)
        best = torch.where(has, torch.maximum(best, score), best)
        total = torch.where(has, total + score, total)
    return ((best - total / sampled.count[:, None].clamp(min=1)) * default_scale(dim)).float()


def sparsity_of_some(
    q: Tensor, k: Tensor, sampled: SampledKeys, is_real: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[H, S] that of at most OBSERVED real queries of each batch row, and [S] the share factor
    ceil(ln(1 + L)) / L of rows that are to attend in their documents.
    """
    batch, _, n, _ = q.shape
    rows = torch.arange(0, n, -(-n // OBSERVED), device=q.device)
    some = sampled.at(rows)
    found = sparsity(q[:, :, rows], k, some).transpose(0, 1)  # [H, B, n]
    share = some.factor * kept_of(some.length) / some.length.clamp(min=1)
    real = torch.ones_like(share, dtype=torch.bool) if is_real is None else is_real[:, rows]
    real = real.expand(batch, -1)
    return found[:, real], share.clamp(max=1).expand(batch, -1)[real]
