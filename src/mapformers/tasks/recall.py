"""Multi-query associative recall: pairs of key and value first, then the keys again; say the value of each.

Paper    Arora et al. 2023, "Zoology", arXiv 2312.04927.
Formula  vocabulary V: 0 = filler, keys 1 .. V/2 - 1, values V/2 .. V - 1, both drawn without replacement.
         tokens 0 .. 2K - 1 are k_1 v_1 .. k_K v_K; K distinct even places at or behind 2K + gap hold the keys
         again, in random order; everything else is filler. The target at the place of a key is its value.
Differs  The paper draws the places of the queries close to the pairs (a power law); here they are uniform and
         `gap` tokens lie between the last pair and the first query, out of the reach of a short window.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require


class RecallBatch(NamedTuple):
    """tokens [B, N]; place [B, K] of the queries, rising; target [B, K] the values to say there."""

    tokens: Tensor
    place: Tensor
    target: Tensor


@dataclass(frozen=True)
class Recall:
    """Sizes of the task: `pairs` K within `length` N tokens, at least `gap` filler tokens after the pairs."""

    pairs: int = 8
    length: int = 64
    gap: int = 18
    vocabulary: int = 256

    def __post_init__(self) -> None:
        for name, lowest in (("pairs", 1), ("gap", 0), ("vocabulary", 4)):
            value = getattr(self, name)
            require(value >= lowest, f"recall: {name} must be {lowest} or more, got {value}; raise it")
        half, shortest = self.vocabulary // 2, self.first_query() + 2 * self.pairs - 1
        require(
            self.pairs < half,
            f"recall: pairs must be below vocabulary / 2 = {half}, got {self.pairs}; lower it",
        )
        require(
            self.length >= shortest,
            f"recall: length must be {shortest} or more for {self.pairs} pairs and gap {self.gap}, "
            f"got {self.length}; raise it, or lower pairs or gap",
        )

    def first_query(self) -> int:
        """The first place where a query may stand."""
        return 2 * self.pairs + self.gap

    def batch(self, size: int, generator: torch.Generator) -> RecallBatch:
        """`size` fresh examples out of the generator; the global random state is not touched."""
        half = self.vocabulary // 2
        keys = 1 + _choose(half - 1, self.pairs, size, generator)  # [B, K]
        values = half + _choose(self.vocabulary - half, self.pairs, size, generator)
        slots = (self.length - self.first_query() + 1) // 2
        place = self.first_query() + 2 * _choose(slots, self.pairs, size, generator).sort(-1).values
        asked = _choose(self.pairs, self.pairs, size, generator)  # which pair each query asks for
        tokens = torch.zeros(size, self.length, dtype=torch.long, device=generator.device)
        tokens[:, 0 : 2 * self.pairs : 2] = keys
        tokens[:, 1 : 2 * self.pairs : 2] = values
        tokens.scatter_(1, place, keys.gather(1, asked))
        return RecallBatch(tokens, place, values.gather(1, asked))


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of queries [B, K] whose best logit [B, K, V] is the target."""
    return float((logits.argmax(-1) == target).double().mean())


def _choose(total: int, count: int, size: int, generator: torch.Generator) -> Tensor:
    """[size, count] different numbers below `total`, in random order."""
    return torch.rand(size, total, generator=generator, device=generator.device).argsort(-1)[:, :count]
