"""Irrelevant tokens in a sequence of recall: what was asked for stays as it was, and more stands in between.

Formula  A share s of the longer sequence is irrelevant: N tokens get round(N s / (1 - s)) more, each a token
         that does not occur in the example, at a place drawn uniformly, but never between a key and its
         value. Queries move with their keys; the answers stay.
Why      Routing chooses what to look at by content, so it should stand what a window does not.
"""

import torch
from torch import Tensor

from mapformers.core.errors import require
from mapformers.tasks.recall import Recall, RecallBatch


def inject(task: Recall, batch: RecallBatch, share: float, generator: torch.Generator) -> RecallBatch:
    """The batch with a share of irrelevant tokens, 0 <= share < 1; tokens [B, N] become [B, N / (1 - share)].

    Raises MapformersError for a share out of range.
    """
    require(
        0 <= share < 1, f"recall: the share of irrelevant tokens must lie in [0, 1), got {share}; use 0.5"
    )
    size, length = batch.tokens.shape
    count = round(length * share / (1 - share))
    if count == 0:
        return batch
    gaps = torch.tensor([p for p in range(length) if p >= 2 * task.pairs or p % 2 == 0])
    before = gaps[torch.randint(len(gaps), (size, count), generator=generator)]  # [B, count]
    # Halves: an irrelevant token stands right before the token whose place it drew.
    order = torch.cat([torch.arange(length).expand(size, -1) + 0.5, before.double()], 1).argsort(
        dim=1, stable=True
    )
    tokens = torch.cat([batch.tokens, _strangers(task, batch.tokens, count, generator)], 1).gather(1, order)
    moved = order.argsort(1)  # [B, N + count] where each token went
    return RecallBatch(tokens, moved.gather(1, batch.place.expand(size, -1)), batch.target)


def _strangers(task: Recall, tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[B, count] tokens that do not occur in their row."""
    free = torch.ones(len(tokens), task.vocabulary).scatter_(1, tokens, 0.0)
    return torch.multinomial(free, count, replacement=True, generator=generator)
