"""Adaptive span: each head learns how far it sees; a soft ramp of R tokens ends its span.

Paper    Sukhbaatar, Grave, Bojanowski, Joulin 2019, "Adaptive Attention Span in Transformers",
         arXiv 1905.07799.
Formula  score[h, i, j] += log clamp((R + z_h - |i - j|) / R, 0, 1), z_h = limit ratio_h, ratio in [0, 1]
         learned; auxiliary loss "span" = limit mean_h ratio_h; dynamic: ratio = s(v_h . q_i + b_h)
Cost     O(1) per pair; with `full` or a band, pairs beyond the longest span are not computed
Differs  The ramp inside the softmax equals the paper's weights times the ramp, normalised again (without the
         small constant in the denominator of the published code). The query sees itself too. A head with
         the whole span sees `limit` tokens and no more. Dynamic spans read the head's query instead of x;
         their windows are not cut.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require
from mapformers.core.score import Call, DistanceTerm, Memory, Pairs, ScoreSite, ScoreTerm

MARGIN = 1e-2  # of dynamic ratios from 0 and 1, whose logits are infinite


@dataclass(frozen=True)
class AdaptiveSpanConfig:
    """Options of adaptive_span."""

    limit: int = option(1024, "the longest span in tokens")
    ramp: int = option(32, "tokens over which the span ends")
    initial: float = option(0.0, "share of the limit that each head starts from")
    dynamic: bool = option(False, "each query has a span of its own")

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
        family="improved multi-head",
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
        shape = (site.heads, 1, site.head_dim)
        self.move = nn.Parameter(normal(shape, generator, site.head_dim**-0.5)) if config.dynamic else None

    def spans(self) -> Tensor:
        """[H] spans in tokens; of queries that say nothing, where they are dynamic."""
        return self.config.limit * self.ratio.detach()

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """With dynamic spans those of all queries, and their mean as a loss."""
        if self.move is None:
            return super().bind(call, memory)
        moved = (call.plain_q * self.move.to(call.plain_q.dtype)).sum(-1)  # [B, H, N]
        # The logit of the ratio moves, which keeps spans between none and the limit.
        start = self.ratio.clamp(MARGIN, 1 - MARGIN).logit()[:, None]
        span = self.config.limit * torch.sigmoid(start + moved)
        if self.training:
            call = replace(call, carry=call.carry.add_losses({"span": span.mean()}))
        ramps = _Ramps(span, self.config.ramp)
        return call.add(ramps), None

    def at(self, head: Tensor, distance: Tensor) -> Tensor:
        """The logarithm of the ramp, -inf behind it."""
        return _log_ramp(self.config.limit * self.ratio[head], distance, self.config.ramp)

    def reach(self) -> int:
        """The end of the longest ramp."""
        return math.ceil(float(self.spans().max())) + self.config.ramp

    def losses(self) -> dict[str, Tensor]:
        """The mean span in tokens; dynamic spans are known in a call only."""
        return {} if self.config.dynamic else {"span": self.config.limit * self.ratio.mean()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Spans stay between none and the limit."""
        self.ratio.clamp_(0.0, 1.0)


class _Ramps(ScoreTerm):
    """Spans [B, H, N] of the queries of a call."""

    def __init__(self, span: Tensor, ramp: int) -> None:
        super().__init__()
        self.span, self.ramp = span, ramp

    def tile(self, pairs: Pairs) -> Tensor:
        assert pairs.query_row is not None
        batch, row = pairs.batch % self.span.shape[0], pairs.query_row.clamp(min=0)
        return _log_ramp(self.span[batch, pairs.head, row], pairs.query - pairs.key, self.ramp)


def _log_ramp(span: Tensor, distance: Tensor, ramp: int) -> Tensor:
    share = ((ramp + span - distance.abs()) / ramp).clamp(max=1.0)
    seen = share > 0
    # The logarithm of 0 is never taken: its gradient would be infinite, and NaN times zero.
    return torch.where(seen, share, 1.0).log().masked_fill(~seen, -math.inf)
