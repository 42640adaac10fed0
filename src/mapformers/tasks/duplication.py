"""Duplication: a sequence "0 w 0 w"; after the second 0, say every symbol of w again.

Paper    Kitaev, Kaiser, Levskaya 2020, "Reformer", ICLR, arXiv 2001.04451, section 2
Formula  N tokens, w of N/2 - 1 symbols, each uniform in 1 .. `symbols`. The symbol to say at place i, for i
         from N/2 to N - 2, is token i + 1, which is also token i + 1 - N/2. The first half cannot be guessed
         and does not count.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require


class DuplicationBatch(NamedTuple):
    """tokens [B, N]; place [N/2 - 1] where a symbol is to be said; target [B, N/2 - 1] those symbols."""

    tokens: Tensor
    place: Tensor
    target: Tensor


@dataclass(frozen=True)
class Duplication:
    """Sizes of the task: `length` N tokens, `symbols` different ones besides 0."""

    length: int = 1024
    symbols: int = 127

    def __post_init__(self) -> None:
        require(
            self.length >= 4 and self.length % 2 == 0,
            f"duplication: length must be even and 4 or more, got {self.length}; use 256 for example",
        )
        require(
            self.symbols >= 1,
            f"duplication: symbols must be 1 or more, got {self.symbols}; raise it",
        )

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are, 0 included."""
        return self.symbols + 1

    def batch(self, size: int, generator: torch.Generator) -> DuplicationBatch:
        """`size` fresh examples out of the generator; the global random state is not touched."""
        half, device = self.length // 2, generator.device
        word = torch.randint(
            1, self.vocabulary, (size, half - 1), generator=generator, device=device
        )  # [B, N/2 - 1]
        tokens = torch.cat([torch.zeros_like(word[:, :1]), word], 1).repeat(1, 2)
        return DuplicationBatch(tokens, torch.arange(half, self.length - 1, device=device), word)


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of symbols [B, K] that have the best of the logits [B, K, V]."""
    return float((logits.argmax(-1) == target).double().mean())
