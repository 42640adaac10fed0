"""Pairs of tiles: which blocks of ordered queries meet which blocks of ordered keys."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tiles(NamedTuple):
    """The pairs of tiles: which block of queries meets which block of keys, both counted over all rows
    and heads.
    """

    query_block: Tensor  # [pairs]
    key_block: Tensor  # [pairs]
    start: Tensor  # [blocks of queries, block], counted in key places of the row
    end: Tensor
    keys_per_row: int  # blocks of keys

    def portions(self, most: int) -> list[tuple[slice, Tiles]]:
        """Stretches of blocks of queries with about `most` pairs each, and their pairs."""
        blocks = self.start.shape[0]
        if self.query_block.numel() <= most:
            return [(slice(0, blocks), self)]
        before = torch.searchsorted(self.query_block, torch.arange(blocks, device=self.start.device))
        portion = before // most  # of each block, by the pairs before it
        first = [0, *((portion[1:] != portion[:-1]).nonzero().flatten() + 1).tolist()]
        pair = [*before[first].tolist(), self.query_block.numel()]
        return [
            (slice(*rows), self._replace(query_block=self.query_block[a:b], key_block=self.key_block[a:b]))
            for rows, a, b in zip(pairwise([*first, blocks]), pair, pair[1:], strict=False)
        ]

    def outside(self) -> Tensor:
        """[pairs, block, block] bool, the keys that a query does not see."""
        block = self.start.shape[1]
        places = torch.arange(block, device=self.start.device)
        key = (self.key_block % self.keys_per_row * block)[:, None, None] + places  # [pairs, 1, block]
        start, end = self.start[self.query_block], self.end[self.query_block]
        return (key < start.unsqueeze(-1)) | (key >= end.unsqueeze(-1))


def tiles_of(start: Tensor, end: Tensor, key_places: int, block: int) -> Tiles:
    """All pairs of tiles that some range crosses. start, end [rows, places], a row for each batch row
    and head.
    """
    rows, places = start.shape
    device = start.device
    per_row, keys_per_row = -(-places // block), -(-key_places // block)
    pad = per_row * block - places  # padded queries: empty ranges
    start = F.pad(start, (0, pad)).view(rows * per_row, block)
    end = F.pad(end, (0, pad)).view(rows * per_row, block)
    empty = start >= end
    first = torch.where(empty, keys_per_row * block, start).amin(-1) // block  # [blocks of queries]
    last = (torch.where(empty, 0, end).amax(-1) + block - 1) // block
    count = (last - first).clamp(min=0)
    query_block = torch.arange(rows * per_row, device=device).repeat_interleave(count)
    first_pair = count.cumsum(0) - count
    nth = torch.arange(query_block.numel(), device=device) - first_pair[query_block]
    key_block = first[query_block] + nth  # inside its row
    return Tiles(query_block, key_block + query_block // per_row * keys_per_row, start, end, keys_per_row)
