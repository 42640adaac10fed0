"""Which blocks a block of BigBird sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mapformers.core.scope import Scope
from mapformers.mechanisms.sparse.draws import document_lengths, query_lengths, subset

if TYPE_CHECKING:
    from mapformers.mechanisms.sparse.bigbird import BigBirdConfig


class Place(NamedTuple):
    """The block of each token, and how many blocks its document has.

    In variant "etc" the global tokens are block 0, whatever their number.
    """

    block: Tensor  # [B, N]
    blocks: Tensor  # [B, N or 1]


class Blocks:
    """Blocks of one configuration, counted by rank in each document."""

    def __init__(self, config: BigBirdConfig) -> None:
        self.config = config

    def of_queries(self, scope: Scope, n: int, m: int, device: torch.device) -> Place:
        """Where each query lies."""
        return self.of(scope.query_ranks(n, m, device), query_lengths(scope, n, m, device))

    def of_keys(self, scope: Scope, m: int, device: torch.device) -> Place:
        """Where each key lies."""
        return self.of(scope.ranks_of_keys(m, device), document_lengths(scope, m, device))

    def of(self, rank: Tensor, length: Tensor) -> Place:
        """Where tokens of these ranks lie in documents of these lengths."""
        size = self.config.block
        if self.config.variant == "itc":
            return Place(rank // size, -(-length // size))
        count = self.config.global_tokens or 2 * size
        block = torch.where(rank < count, 0, 1 + (rank - count) // size)
        return Place(block, 1 + -(-(length - count).clamp(min=0) // size))

    def are_global(self, place: Place) -> Tensor:
        """bool in the shape of the blocks."""
        first = place.block == 0
        return first | (place.block == place.blocks - 1) if self.config.variant == "itc" else first

    def named(self, state: Tensor, place: Place) -> Tensor:
        """[B, H, N, r] the blocks that a query sees from one that is not global; each once, -1 = none.

        state [B, H, N] bits of each query's block. Random blocks are numbered among those that neither the
        window nor the global blocks cover, so they never fall on these.
        """
        block, blocks = place.block[:, None], place.blocks[:, None]  # [B, 1, N]
        both_ends = self.config.variant == "itc"
        first, last = 1, blocks - (2 if both_ends else 1)  # of the blocks that are not global
        half = self.config.window // 2
        window = block[..., None] + torch.arange(-half, half + 1, device=block.device)
        window = window.masked_fill((window < first) | (window > last[..., None]), -1)
        low, high = (block - half).clamp(min=first), torch.minimum(block + half, last)
        width = (high - low + 1).clamp(min=0)
        random = subset(state, (last - first + 1 - width).clamp(min=0), self.config.random)
        behind = random >= (low - first)[..., None]  # the window
        random = torch.where(random < 0, -1, random + first + width[..., None] * behind)
        parts = [torch.zeros_like(block)[..., None], window, random]
        if both_ends:
            parts.append((blocks - 1).masked_fill(blocks < 2, -1)[..., None])
        return torch.cat([part.expand(*random.shape[:3], -1) for part in parts], -1)
