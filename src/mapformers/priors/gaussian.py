"""Gaussian prior: scores fall with the square of the distance; each head learns how fast, and from where.

Paper    Guo, Zhang, Liu 2019, "Gaussian Transformer: A Lightweight Approach for Natural Language Inference",
         AAAI 33.
Formula  score[h, i, j] -= |w_h (i - j)^2 + b_h|, w > 0 and b <= 0: near keys lose up to -b, those at
         the distance sqrt(-b / w) nothing, farther ones more and more
Cost     O(1) per pair
Differs  w and b are learned for each head, through softplus, which keeps their signs.
         No key loses more than 1e4.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mapformers.core.card import Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.score import DistanceTerm, ScoreSite

MOST = 1e4  # what a key may lose: float32 still tells log-sum-exps of this size apart


@dataclass(frozen=True)
class GaussianConfig:
    """Options of gaussian."""

    weight: float = option(0.01, "what w starts from")
    penalty: float = option(0.01, "what -b starts from: the most that near keys lose")

    def __post_init__(self) -> None:
        for name in ("weight", "penalty"):
            value = getattr(self, name)
            require(
                0 < value < math.inf,
                f"gaussian: {name} must be above 0 and finite, got {value}; use 0.01 for example",
            )


class Gaussian(DistanceTerm):
    """Squared distance penalty with a learned plateau."""

    Config = GaussianConfig
    card = Card(
        name="gaussian",
        kind="score",
        family="attention with prior",
        paper="Guo et al. 2019, AAAI 33",
        formula="score[h,i,j] -= |w (i-j)^2 + b|, w > 0, b <= 0",
        cost="O(1) per pair",
        summary="scores fall with the squared distance, as fast as each head learns",
        options=options_of(GaussianConfig),
    )

    def __init__(self, config: GaussianConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.raw_weight = nn.Parameter(torch.full((site.heads,), _before_softplus(config.weight)))
        self.raw_penalty = nn.Parameter(torch.full((site.heads,), _before_softplus(config.penalty)))

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """-|w distance^2 + b|."""
        weight, bias = softplus(self.raw_weight)[head], -softplus(self.raw_penalty)[head]
        return -(weight * distance.to(weight.dtype).square() + bias).abs().clamp(max=MOST)


def _before_softplus(value: float) -> float:
    """What softplus takes to `value`."""
    return value + math.log(-math.expm1(-value))
