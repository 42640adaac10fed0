"""Copying: a word again behind a mark; and picking a few symbols out of noise, in their order.

Paper    Katharopoulos et al. 2020, "Transformers are RNNs", ICML, arXiv 2006.16236, section 4.1 (Copying);
         Gu, Dao 2023, "Mamba", arXiv 2312.00752, section 4.1.1 (SelectiveCopying)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require


class CopyingBatch(NamedTuple):
    """tokens [B, N]; place [B, K] of the questions; target [B, K] the symbols, -100 = no question."""

    tokens: Tensor
    place: Tensor
    target: Tensor


@dataclass(frozen=True)
class Copying:
    """`0 w 0 w` of words w of N/4 to (N-1)/2 symbols, uniform in 1 .. `symbols`; 0 fills the rest of N.

    The symbol to say at a place of the second half is the next token.
    """

    length: int = 128
    symbols: int = 10

    def __post_init__(self) -> None:
        require(self.length >= 8, f"copying: length must be 8 or more, got {self.length}; use 128")
        require(self.symbols >= 1, f"copying: symbols must be 1 or more, got {self.symbols}; raise it")

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are, 0 included."""
        return self.symbols + 1

    def batch(self, size: int, generator: torch.Generator) -> CopyingBatch:
        """`size` fresh examples out of the generator; the global random state is not touched."""
        device, most = generator.device, (self.length - 2) // 2
        count = torch.randint(self.length // 4, most + 1, (size, 1), generator=generator, device=device)
        word = torch.randint(1, self.vocabulary, (size, most), generator=generator, device=device)
        index = torch.arange(self.length, device=device).expand(size, -1)
        inside = (index - 1) % (count + 1)  # place in the word; count = the 0 before it
        real = (index > 0) & (inside < count) & (index < 2 * (count + 1))
        tokens = word.gather(1, inside.clamp(max=most - 1)) * real
        offset = torch.arange(most, device=device).expand(size, -1)
        asked = offset < count
        place = (count + 1 + offset).clamp(max=self.length - 2)
        return CopyingBatch(tokens, place, word.masked_fill(~asked, -100))


@dataclass(frozen=True)
class SelectiveCopying:
    """`data` symbols 2 .. `symbols` + 1 among noise 0, then `data` marks 1: say them in their order."""

    length: int = 256
    symbols: int = 14
    data: int = 16

    def __post_init__(self) -> None:
        require(self.data >= 1, f"selective_copying: data must be 1 or more, got {self.data}; raise it")
        require(
            self.length >= 2 * self.data,
            f"selective_copying: length must be {2 * self.data} or more, got {self.length}; raise it",
        )
        require(
            self.symbols >= 1, f"selective_copying: symbols must be 1 or more, got {self.symbols}; raise it"
        )

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        return self.symbols + 2

    def batch(self, size: int, generator: torch.Generator) -> CopyingBatch:
        """`size` fresh examples out of the generator; the global random state is not touched."""
        device, room = generator.device, self.length - self.data
        word = torch.randint(2, self.vocabulary, (size, self.data), generator=generator, device=device)
        places = torch.rand(size, room, generator=generator, device=device).argsort(-1)[:, : self.data]
        tokens = torch.zeros(size, self.length, dtype=torch.long, device=device)
        tokens.scatter_(1, places.sort(-1).values, word)
        tokens[:, room:] = 1
        place = torch.arange(room, self.length, device=device).expand(size, -1)
        return CopyingBatch(tokens, place, word)


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of the questions [B, K] whose best logit [B, K, V] is the target."""
    asked = target >= 0
    return float((logits.argmax(-1) == target)[asked].double().mean())
