"""T5 bias: one learned number for each head and bucket of distances; far distances share buckets.

Paper    Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu 2020, "Exploring the Limits of Transfer
         Learning with a Unified Text-to-Text Transformer", JMLR 21, arXiv 1910.10683, section 2.1.
Formula  score[h, i, j] += table[h, bucket(i - j)]: half of the buckets hold one distance each, the others
         grow by a constant factor up to `limit`, and the last holds what is farther. Causal: distances
         from 0 on; otherwise keys ahead of the query have buckets of their own, half of all.
Cost     O(1) per pair
Differs  Each layer has a table of its own. The products are divided by sqrt(D), as everywhere here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require
from mapformers.core.score import DistanceTerm, ScoreSite


@dataclass(frozen=True)
class T5BiasConfig:
    """Options of t5_bias."""

    buckets: int = option(32, "numbers per head")
    limit: int = option(128, "distance from which on all share the last bucket")

    def __post_init__(self) -> None:
        require(
            self.buckets >= 4 and self.buckets % 2 == 0,
            f"t5_bias: buckets must be even and 4 or more, got {self.buckets}; use 32 for example",
        )
        require(
            self.limit > self.buckets // 2,
            f"t5_bias: limit must be more than half of the {self.buckets} buckets, got {self.limit}; "
            f"use {4 * self.buckets} for example",
        )


class T5Bias(DistanceTerm):
    """Learned bias of distances in buckets."""

    Config = T5BiasConfig
    card = Card(
        name="t5_bias",
        kind="score",
        family="attention with prior",
        paper="Raffel et al. 2020, arXiv 1910.10683",
        formula="score[h,i,j] += table[h, bucket(i-j)]",
        cost="O(1) per pair",
        summary="a learned number per head and bucket of distances",
        options=options_of(T5BiasConfig),
    )

    def __init__(self, config: T5BiasConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.causal = config, site.causal
        spread = (site.heads * site.head_dim) ** -0.5
        self.table = nn.Parameter(normal((site.heads, config.buckets), generator, spread))

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """The number of the bucket."""
        buckets = self.config.buckets
        if self.causal:
            return self.table[head, bucket_of(distance.clamp(min=0), buckets, self.config.limit)]
        half = buckets // 2
        ahead = torch.where(distance < 0, half, 0)  # the key comes later
        return self.table[head, bucket_of(distance.abs(), half, self.config.limit) + ahead]


def bucket_of(distance: Tensor, buckets: int, limit: int) -> Tensor:
    """The bucket of distances of 0 or more."""
    exact = buckets // 2
    growth = (buckets - exact) / math.log(limit / exact)
    grown = (distance.clamp(min=exact).float() / exact).log() * growth
    far = (exact + grown.long()).clamp(max=buckets - 1)
    return torch.where(distance < exact, distance, far)
