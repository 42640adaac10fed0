"""What a query may see at all: how many tokens, and the mean of their keys."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.scope import Scope


def seen_counts(scope: Scope, n: int, m: int, device: torch.device) -> Tensor:
    """[B or 1, N or 1] how many real tokens a query may see: at or before it in its document (causal), or all
    of its document; in cross-attention all of the context.
    """
    if scope.causal:
        return (scope.ranks if scope.ranks is not None else scope.query_ranks(n, n, device)) + 1
    documents, real = scope.segments, scope.key_is_real
    if documents is None:
        total = torch.full((1, 1), m, device=device) if real is None else real.sum(1, keepdim=True)
        return total.clamp(min=1)
    real = torch.ones_like(documents, dtype=torch.bool) if real is None else real
    batch = max(documents.shape[0], real.shape[0])
    documents, real = documents.expand(batch, -1), real.expand(batch, -1)
    counts = documents.new_zeros(batch, int(documents.max()) + 1)
    return counts.scatter_add(1, documents, real.to(counts.dtype)).gather(1, documents).clamp(min=1)


@dataclass
class SeenKeys:
    """Running sum of the keys so far in decoding: [B, H, D], and their number [B, 1, 1]."""

    total: Tensor | None = None
    count: Tensor | None = None

    def means(self, k: Tensor, scope: Scope) -> Tensor:
        """Mean of the keys k [B, H, N, D] that each query may see, [B, H, N or 1, D]; remembers them."""
        batch, _, n, _ = k.shape
        real = (
            k.new_ones(batch, 1, n, 1) if scope.key_is_real is None else scope.key_is_real[:, None, :, None]
        )
        weighted, ones = k * real, real.to(k.dtype).expand(batch, -1, -1, -1)
        documents = scope.segments
        if documents is not None:
            return self._by_document(weighted, ones, documents.expand(batch, -1), scope.causal)
        if not scope.causal:
            return weighted.sum(2, keepdim=True) / ones.sum(2, keepdim=True).clamp(min=1)
        sums, counts = weighted.cumsum(2), ones.cumsum(2)
        if self.total is not None and self.count is not None:
            sums, counts = sums + self.total, counts + self.count
        self.total, self.count = sums[:, :, -1:].detach(), counts[:, :, -1:]
        return sums / counts.clamp(min=1)

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        if self.total is not None and self.count is not None:
            self.total, self.count = self.total.index_select(0, index), self.count.index_select(0, index)

    @staticmethod
    def _by_document(weighted: Tensor, ones: Tensor, documents: Tensor, causal: bool) -> Tensor:
        """Documents are contiguous: what was summed before a document began is taken off."""
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        run = first.long().cumsum(1) - 1  # [B, N] which run of tokens
        index = run[:, None, :, None]

        def over_runs(x: Tensor) -> Tensor:
            totals = x.new_zeros(*x.shape[:2], int(run.max()) + 1, x.shape[3])
            totals = totals.scatter_add(2, index.expand_as(x), x)
            if not causal:
                return totals.gather(2, index.expand_as(x))
            before = totals.cumsum(2) - totals
            return x.cumsum(2) - before.gather(2, index.expand_as(x))

        return over_runs(weighted) / over_runs(ones).clamp(min=1)
