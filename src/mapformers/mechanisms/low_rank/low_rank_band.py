"""Low rank and band: global attention with keys of few dimensions, and full attention to near neighbours.

Paper    Guo, Qiu, Xue, Zhang 2019, "Low-Rank and Locality Constrained Self-Attention for Sequence Modeling",
         IEEE/ACM TASLP 27(12), doi 10.1109/TASLP.2019.2944078
Formula  w = softmax_j((P_h q_i) . (R_h k_j) / sqrt(rank)) + softmax_j(q_i . k_j / sqrt(D)); the second over
         |i - j| <= window; both over j <= i if causal; P_h, R_h [rank, D] learned
Cost     time O(N^2 (rank + D) + N window D), extra memory O(N (rank + window))
Differs  The paper limits the rank to fit small data, not to be fast. How it joins the two parts was not
         available to us: here their outputs are summed, so rows sum to 2. The small queries and keys
         are maps of those of the head. Decoding keeps every key.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Dense, Plan, WeightedSum
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import expand_heads, masked_softmax
from mapformers.mechanisms.sparse.band import Band, BandConfig


@dataclass(frozen=True)
class LowRankBandConfig:
    """Options of low_rank_band."""

    rank: int = option(8, "dimensions of the queries and keys of the global part")
    window: int = option(4, "steps between a query and the farthest key of the band")

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"low_rank_band: rank must be 1 or more, got {self.rank}; use rank=8")
        require(self.window >= 0, f"low_rank_band: window must be 0 or more, got {self.window}; use window=4")


class LowRankBand(Mechanism):
    """The sum of a global part of low rank and a band."""

    Config = LowRankBandConfig
    one_softmax = False
    config: LowRankBandConfig
    query_map: nn.Parameter
    key_map: nn.Parameter
    plans_from_history = True  # sums of parts have no state of their own
    card = Card(
        name="low_rank_band",
        family="low rank",
        paper="Guo et al. 2019, doi 10.1109/TASLP.2019.2944078",
        formula="w = softmax((P q) . (R k) / sqrt(rank)) + softmax(q . k / sqrt(D)) over |i - j| <= window",
        cost="time O(N^2 (rank + D) + N window D), memory O(N (rank + window))",
        summary="global attention of low rank plus a band",
        supports=RANGES - {"rotary", "score", "rows_sum_to_one"},
        options=options_of(LowRankBandConfig),
    )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """P and R, transposed."""
        size = (shape.heads, shape.head_dim, self.config.rank)
        self.query_map = nn.Parameter(normal(size, generator, shape.head_dim**-0.5))
        self.key_map = nn.Parameter(normal(size, generator, shape.head_dim**-0.5))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """All keys through the maps, and the band."""
        parts = (Dense(maps=(self.query_map, self.key_map)), self._band().plan(q, k, scope))
        return WeightedSum(parts, q.new_ones(1, 1, 1, 2))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The product of the maps is one matrix of low rank between q and k."""
        between = self.query_map @ self.key_map.mT / self.config.rank**0.5  # [H, D, D]
        scores = torch.einsum("bhnd,hde,bhme->bhnm", q, between, expand_heads(k, q.shape[1]))
        far = masked_softmax(scores, scope.visible(q.shape[2], k.shape[2], q.device))
        return far + self._band().dense_weights(q, k, scope)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Both maps, all pairs, hidden or not, and the band."""
        rank, band = self.config.rank, self._band().cost(batch, heads, n, dim, causal)
        far = n * (4.0 * dim * rank + 2.0 * n * (rank + dim))
        return Cost(batch * heads * far + band.flops, 8.0 * batch * heads * n * rank + band.bytes)

    def _band(self) -> Band:
        return Band(BandConfig(window=self.config.window))
