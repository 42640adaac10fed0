"""Hard-coded Gaussian attention: each head looks at a fixed offset, whatever the tokens are.

Paper    You, Sun, Iyyer 2020, "Hard-Coded Gaussian Attention for Neural Machine Translation", ACL,
         arXiv 2005.00742.
Formula  score[h, i, j] = -(j - i - c_h)^2 / (2 sigma^2) instead of q_i . k_j
         normalise=false: weights exp(score) / (sigma sqrt(2 pi)), without a softmax
Cost     O(1) per pair
Differs  Weights are normalised over the keys that are seen. The published code takes the density of the
         normal distribution as it is, so that rows near the ends, and rows of causal heads, sum to less
         than one: normalise=false. No score is below -1e4. q and k are projected but not used.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mapformers.core.card import Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.score import Call, DistanceTerm, Memory, ScoreSite
from mapformers.priors.numbers import numbers_in

LOWEST = -1e4  # of a score: float32 still tells log-sum-exps of this size apart


@dataclass(frozen=True)
class HardGaussianConfig:
    """Options of hard_gaussian."""

    centres: str = option("", "key minus query position, repeated over heads; default -1,1, causal -1,0")
    sigma: float = option(1.0, "standard deviation in tokens")
    normalise: bool = option(True, "softmax over the keys seen; false = the density, as published")

    def __post_init__(self) -> None:
        if self.centres:
            numbers_in("hard_gaussian", "centres", self.centres)
        require(
            0 < self.sigma < math.inf,
            f"hard_gaussian: sigma must be above 0 and finite, got {self.sigma}; use 1.0 for example",
        )


class HardGaussian(DistanceTerm):
    """A fixed Gaussian around a fixed offset."""

    Config = HardGaussianConfig
    replaces_scores = True
    card = Card(
        name="hard_gaussian",
        kind="score",
        family="attention with prior",
        paper="You et al. 2020, arXiv 2005.00742",
        formula="score[h,i,j] = -(j-i-c_h)^2 / (2 sigma^2), without q . k",
        cost="O(1) per pair",
        summary="each head looks at a fixed offset, without queries and keys",
        options=options_of(HardGaussianConfig),
    )

    def __init__(self, config: HardGaussianConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        text = config.centres or ("-1,0" if site.causal else "-1,1")
        centres = numbers_in("hard_gaussian", "centres", text)
        require(
            len(centres) <= site.heads,
            f"hard_gaussian: centres must be no more than the {site.heads} heads, got {len(centres)}; "
            "give fewer",
        )
        self.sigma = config.sigma
        self.log_scale = None if config.normalise else -math.log(config.sigma * math.sqrt(2 * math.pi))
        self.centres = [centres[h % len(centres)] for h in range(site.heads)]

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """In the place of q . k, and of the softmax where it is a density."""
        call, _ = super().bind(call, memory)
        return replace(call, log_scale=self.log_scale), None

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """By how far the key is from the centre, in standard deviations."""
        centres = torch.tensor(self.centres, dtype=torch.float64, device=head.device)
        away = (distance + centres[head]) / self.sigma
        return (-0.5 * away.square()).clamp(min=LOWEST)
