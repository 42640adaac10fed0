"""Adaptive span: each head learns how far it sees; a soft ramp of R tokens ends its span.

Paper    Sukhbaatar, Grave, Bojanowski, Joulin 2019, "Adaptive Attention Span in Transformers",
         arXiv 1905.07799.
Formula  score[h, i, j] += log clamp((R + z_h - |i - j|) / R, 0, 1), z_h = limit ratio_h, ratio in [0, 1]
         learned; auxiliary loss "span" = limit mean_h ratio_h
Cost     O(1) per pair; with `full` or a band, pairs beyond the longest span are not computed
Differs  The ramp inside the softmax equals the paper's weights times the ramp, normalised again (without the
         small constant in the denominator of the published code). The query sees itself too. A head with
         the whole span sees `limit` tokens and no more.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.score import DistanceTerm, ScoreSite


@dataclass(frozen=True)
class AdaptiveSpanConfig:
    """Options of adaptive_span."""

    limit: int = option(1024, "the longest span in tokens")
    ramp: int = option(32, "tokens over which the span ends")
    initial: float = option(0.0, "share of the limit that each head starts from")

    def __post_init__(self) -> None:
        for name in ("limit", "ramp"):
            value = getattr(self, name)
            require(value >= 1, f"adaptive_span: {name} must be 1 or more, got {value}; use 32 for example")
        require(
            0 <= self.initial <= 1,
            f"adaptive_span: initial must lie in [0, 1], got {self.initial}; use 0.0 for example",
        )


class AdaptiveSpan(DistanceTerm):
    """A learned span per head."""

    Config = AdaptiveSpanConfig
    loss_names = ("span",)
    card = Card(
        name="adaptive_span",
        kind="score",
        family="multi-head",
        paper="Sukhbaatar et al. 2019, arXiv 1905.07799",
        formula="score[h,i,j] += log clamp((R + z_h - |i-j|) / R, 0, 1)",
        cost="O(1) per pair",
        summary="each head learns how far it sees",
        options=options_of(AdaptiveSpanConfig),
    )

    def __init__(self, config: AdaptiveSpanConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.ratio = nn.Parameter(torch.full((site.heads,), float(config.initial)))

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """The logarithm of the ramp, -inf behind it."""
        span = self.config.limit * self.ratio[head]
        share = ((self.config.ramp + span - distance.abs()) / self.config.ramp).clamp(max=1.0)
        seen = share > 0
        # The logarithm of 0 is never taken: its gradient would be infinite, and NaN times zero.
        return torch.where(seen, share, 1.0).log().masked_fill(~seen, -math.inf)

    def reach(self) -> int:
        """The end of the longest ramp."""
        return math.ceil(self.config.limit * float(self.ratio.detach().max())) + self.config.ramp

    def losses(self) -> dict[str, Tensor]:
        """The mean span in tokens."""
        return {"span": self.config.limit * self.ratio.mean()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Spans stay between none and the limit."""
        self.ratio.clamp_(0.0, 1.0)
