"""Scores of all pairs as a tensor, for terms that cannot do without."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.score import Pairs
from mapformers.kernels.softmax import at_least_float32, scaled_scores


def raw_scores(q: Tensor, k: Tensor) -> Tensor:
    """[B, H, N, M] scaled products of q [B, H, N, D] and k [B, G, M, D], in float32 or wider."""
    return scaled_scores(at_least_float32(q), at_least_float32(k))


def key_row(pairs: Pairs) -> Tensor:
    """The column of a map that belongs to the key."""
    assert pairs.key_row is not None
    return pairs.key_row


@dataclass
class KeysSoFar:
    """All keys so far [B, G, M, D] in decoding, and which are real [B, M]."""

    keys: Tensor | None = None
    is_real: Tensor | None = None

    def add(self, k: Tensor, is_real: Tensor | None) -> Tensor:
        """All keys with the new ones."""
        if is_real is None:
            is_real = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        is_real = is_real.expand(k.shape[0], -1)
        self.keys = k if self.keys is None else torch.cat([self.keys, k], 2)
        self.is_real = is_real if self.is_real is None else torch.cat([self.is_real, is_real], 1)
        return self.keys

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        if self.keys is not None and self.is_real is not None:
            self.keys, self.is_real = self.keys.index_select(0, index), self.is_real.index_select(0, index)
