"""Global tokens: the first tokens see everything, and everything sees them. Nothing else is seen.

Paper    Survey "The Map of Transformers" (Lin et al. 2021, arXiv 2106.04554), section 4.1.1, global
         attention; used in Beltagy et al. 2020 "Longformer" (arXiv 2004.05150) and Ainslie et al. 2020 "ETC"
         (arXiv 2004.08483).
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over j < count or i < count, and j <= i if causal
Cost     time O(N count D), extra memory O(N count)
Differs  Systems choose global tokens anywhere, or add trained ones. Here they are the first of each document,
         counted over real tokens: the only place where they are of use to a causal model, whose global rows
         end at their own token and so add nothing to the columns. An atom: alone it carries no local detail.
"""

from dataclasses import dataclass

from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Plan, Union, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores


@dataclass(frozen=True)
class GlobalTokensConfig:
    """Options of global_tokens."""

    count: int = option(8, "tokens at the start of each document that are global")

    def __post_init__(self) -> None:
        require(
            self.count >= 1,
            f"global_tokens: count must be 1 or more, got {self.count}; use count=8 for example",
        )


class GlobalTokens(Mechanism):
    """Global columns and rows."""

    Config = GlobalTokensConfig
    config: GlobalTokensConfig
    card = Card(
        name="global_tokens",
        family="sparse, position-based (atom)",
        paper="Lin et al. 2021, arXiv 2106.04554, section 4.1.1; Beltagy et al. 2020, arXiv 2004.05150",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over j < count or i < count, j <= i if causal",
        cost="time O(N count D), memory O(N count)",
        summary="the first tokens see all and are seen by all",
        supports=RANGES,
        options=options_of(GlobalTokensConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment 0 = global. Not causal: the global queries leave the columns and see all keys."""
        n, m = q.shape[2], k.shape[2]
        keys = -(scope.ranks_of_keys(m, q.device) >= self.config.count).long()[:, None]  # [B, 1, M] 0 or -1
        if scope.causal:
            return Windows(before=self.config.count, after=0, key_segment=keys)
        queries = -(scope.query_ranks(n, m, q.device) >= self.config.count).long()[:, None]
        columns = Windows(before=None, after=None, query_segment=-1 - queries, key_segment=keys)
        return Union((columns, Windows(before=None, after=None, query_segment=queries)))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula as written."""
        n, m = q.shape[2], k.shape[2]
        i = scope.query_ranks(n, m, q.device)[:, None, :, None]
        j = scope.ranks_of_keys(m, q.device)[:, None, None, :]
        shown = (i < self.config.count) | (j < self.config.count)
        return masked_softmax(scaled_scores(q, k), shown & scope.visible(n, m, q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the columns and rows."""
        g = min(self.config.count, n)
        pairs = (n - g) * g + (g * (g + 1) / 2 if causal else g * n)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * pairs)
