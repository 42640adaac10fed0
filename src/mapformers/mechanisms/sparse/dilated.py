"""Dilated attention: a window with gaps. A query sees every `dilation`-th key, `window` of them on each side.

Paper    Beltagy, Peters, Cohan 2020, "Longformer", arXiv 2004.05150, section 3.1.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over |i - j| <= window dilation and (i - j) mod dilation
         = 0, and j <= i if causal
Cost     time O(N W D), extra memory O(N W): W = window + 1 (causal) or 2 window + 1
Differs  dilation=1 is the band without gaps. The paper gives few heads a dilation: mix specs for that, as in
         "band(window=128):6 + dilated(window=128, dilation=2):2". Steps are counted over real tokens of the
         same document.
"""

from dataclasses import dataclass

from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Plan, Windows
from mapformers.core.scope import Scope, keep_first, keep_last
from mapformers.kernels.softmax import masked_softmax, scaled_scores


@dataclass(frozen=True)
class DilatedConfig:
    """Options of dilated."""

    window: int = option(
        128, "keys seen on each side of the query, the query itself not counted; causal: left only"
    )
    dilation: int = option(2, "steps from one key to the next; 1 = without gaps")

    def __post_init__(self) -> None:
        require(
            self.window >= 0,
            f"dilated: window must be 0 or more, got {self.window}; use window=128 for example",
        )
        require(
            self.dilation >= 1,
            f"dilated: dilation must be 1 or more, got {self.dilation}; use dilation=1 for no gaps",
        )


class Dilated(Mechanism):
    """Sliding window with gaps."""

    Config = DilatedConfig
    config: DilatedConfig
    card = Card(
        name="dilated",
        family="sparse, position-based (atom)",
        paper="Beltagy et al. 2020, arXiv 2004.05150, section 3.1",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over |i-j| <= window dilation, (i-j) mod dilation = 0",
        cost="time O(N W D), memory O(N W)",
        summary="sliding window with gaps",
        supports=RANGES,
        options=options_of(DilatedConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = residue of the rank: inside it, keys `dilation` steps apart are neighbours."""
        n, m = q.shape[2], k.shape[2]
        return Windows(
            before=self.config.window + 1,
            after=0 if scope.causal else self.config.window,
            query_segment=(scope.query_ranks(n, m, q.device) % self.config.dilation)[:, None],
            key_segment=(scope.ranks_of_keys(m, q.device) % self.config.dilation)[:, None],
            segment_count=self.config.dilation,
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Of the visible keys a multiple of `dilation` away, the last window + 1 up to the query and the
        first `window` behind it.
        """
        n, m = q.shape[2], k.shape[2]
        i = scope.query_ranks(n, m, q.device)[:, None, :, None]
        j = scope.ranks_of_keys(m, q.device)[:, None, None, :]
        visible = scope.visible(n, m, q.device) & ((i - j) % self.config.dilation == 0)
        up_to = visible & Scope(causal=True, query_start=scope.query_start).visible(n, m, q.device)
        inside = keep_last(up_to, self.config.window + 1) | keep_first(visible & ~up_to, self.config.window)
        return masked_softmax(scaled_scores(q, k), inside)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs: n - t dilation pairs are t keys apart."""
        d = self.config.dilation
        w = min(self.config.window, (n - 1) // d)
        one_side = w * n - d * w * (w + 1) / 2
        pairs = n + one_side * (1 if causal else 2)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * pairs)
