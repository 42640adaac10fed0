"""Band attention: a query sees the keys at most `window` steps away.

Paper    Beltagy, Peters, Cohan 2020, "Longformer", arXiv 2004.05150, section 3.1.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over |i - j| <= window, and j <= i if causal
Cost     time O(N W D), extra memory O(N W): W = window + 1 (causal) or 2 window + 1
Differs  The paper widens windows with depth; that is a choice of the model, not of this file. Steps are
         counted over real tokens of the same document, so padding between two tokens does not part them.
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
class BandConfig:
    """Options of band."""

    window: int = option(
        128, "keys seen on each side of the query, the query itself not counted; causal: left only"
    )

    def __post_init__(self) -> None:
        require(
            self.window >= 0, f"band: window must be 0 or more, got {self.window}; use window=128 for example"
        )


class Band(Mechanism):
    """Sliding window."""

    Config = BandConfig
    config: BandConfig
    card = Card(
        name="band",
        family="sparse, position-based (atom)",
        paper="Beltagy et al. 2020, arXiv 2004.05150, section 3.1",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over |i-j| <= window, j <= i if causal",
        cost="time O(N W D), memory O(N W)",
        summary="sliding window",
        supports=RANGES,
        options=options_of(BandConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """One segment; the query's own key counts among `before`."""
        return Windows(before=self.config.window + 1, after=0 if scope.causal else self.config.window)

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Of the keys that the scope shows, the last window + 1 up to the query and the first `window`
        behind it.
        """
        n, m = q.shape[2], k.shape[2]
        visible = scope.visible(n, m, q.device)
        up_to = visible & Scope(causal=True, query_start=scope.query_start).visible(n, m, q.device)
        inside = keep_last(up_to, self.config.window + 1) | keep_first(visible & ~up_to, self.config.window)
        return masked_softmax(scaled_scores(q, k), inside)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs inside the band."""
        w = min(self.config.window, n - 1)
        pairs = n * (w + 1) - w * (w + 1) / 2 if causal else n * (2 * w + 1) - w * (w + 1)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * pairs)
