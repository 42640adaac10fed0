"""Relative position keys: a learned vector per distance is scored by the query beside the key.

Paper    Shaw, Uszkoreit, Vaswani 2018, "Self-Attention with Relative Position Representations",
         arXiv 1803.02155, equation 4.
Formula  score[h, i, j] += q_i . a[clip(j - i, -limit, limit)] / sqrt(D), one table a for all heads
Cost     O(N limit D) once, O(1) per pair
Differs  The table of the values (equation 3) is left out: it would need the weight of each distance by
         itself. The queries are taken before rotary positions, where both are used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require
from mapformers.core.score import ByQuery, Call, Memory, Pairs, ScoreSite, ScoreTerm


@dataclass(frozen=True)
class ShawConfig:
    """Options of shaw."""

    limit: int = option(16, "largest distance with a vector of its own; farther ones share it")

    def __post_init__(self) -> None:
        require(self.limit >= 0, f"shaw: limit must be 0 or more, got {self.limit}; use 16 for example")


class Shaw(ScoreTerm):
    """Relative position keys."""

    Config = ShawConfig
    card = Card(
        name="shaw",
        kind="score",
        family="attention with prior",
        paper="Shaw et al. 2018, arXiv 1803.02155",
        formula="score[h,i,j] += q_i . a[clip(j-i, -limit, limit)] / sqrt(D)",
        cost="O(N limit D)",
        summary="the query scores a learned vector of the distance",
        options=options_of(ShawConfig),
    )

    def __init__(self, config: ShawConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.limit = config.limit
        size = (2 * config.limit + 1, site.head_dim)
        self.table = nn.Parameter(normal(size, generator, site.head_dim**-0.5))

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """One score for each query and distance."""
        q = call.plain_q
        scored = q @ self.table.to(q.dtype).T * q.shape[-1] ** -0.5  # [B, H, N, 2 limit + 1]
        return call.add(ByQuery(scored, self._column)), None

    def _column(self, pairs: Pairs) -> Tensor:
        return (pairs.key - pairs.query).clamp(-self.limit, self.limit) + self.limit
