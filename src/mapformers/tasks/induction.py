"""Induction heads: what followed the special token the last time?

Paper    Olsson et al. 2022, "In-context Learning and Induction Heads", arXiv 2209.11895; sizes of Gu, Dao
         2023, "Mamba", arXiv 2312.00752, section 4.1.2
Formula  N tokens uniform in 1 .. V - 1; token 0 stands at one random place before the last two, and at the
         last one; the token to say there is the one that followed it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require


class InductionBatch(NamedTuple):
    """tokens [B, N]; place [B, 1], the last; target [B, 1] the token to say there."""

    tokens: Tensor
    place: Tensor
    target: Tensor


@dataclass(frozen=True)
class Induction:
    """`length` N tokens of a `vocabulary` V, the special token 0 included."""

    length: int = 256
    vocabulary: int = 16

    def __post_init__(self) -> None:
        require(self.length >= 3, f"induction: length must be 3 or more, got {self.length}; use 256")
        require(
            self.vocabulary >= 3, f"induction: vocabulary must be 3 or more, got {self.vocabulary}; use 16"
        )

    def batch(self, size: int, generator: torch.Generator) -> InductionBatch:
        """`size` fresh examples out of the generator; the global random state is not touched."""
        device = generator.device
        shape = (size, self.length)
        tokens = torch.randint(1, self.vocabulary, shape, generator=generator, device=device)
        first = torch.randint(self.length - 2, (size, 1), generator=generator, device=device)
        tokens.scatter_(1, first, 0)
        tokens[:, -1] = 0
        place = torch.full((size, 1), self.length - 1, device=device)
        return InductionBatch(tokens, place, tokens.gather(1, first + 1))
