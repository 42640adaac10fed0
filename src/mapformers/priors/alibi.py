"""ALiBi: scores fall off linearly with distance, at a fixed slope per head.

Paper    Press, Smith, Lewis 2022, "Train Short, Test Long", arXiv 2108.12409, section 3.
Formula  score[h, i, j] += -2^(-8 (h + 1) / H) |i - j|, i and j true positions
Cost     O(1) per pair
Differs  The slope formula of the paper for a power-of-two H is used for every H; distances count both ways.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mapformers.core.card import Card, options_of
from mapformers.core.score import DistanceTerm, ScoreSite


@dataclass(frozen=True)
class AlibiConfig:
    """ALiBi has no options."""


class Alibi(DistanceTerm):
    """Linear distance penalty."""

    Config: ClassVar[type] = AlibiConfig
    card = Card(
        name="alibi",
        kind="score",
        family="attention with prior",
        paper="Press et al. 2022, arXiv 2108.12409",
        formula="score[h,i,j] -= 2^(-8(h+1)/H) |i-j|",
        cost="O(1) per pair",
        summary="scores fall off linearly with distance",
        options=options_of(AlibiConfig),
    )

    def __init__(self, config: AlibiConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = site.heads

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """-slope |distance|."""
        slope = torch.exp2(-8.0 * (head + 1).double() / self.heads)
        return -slope * distance.abs()
