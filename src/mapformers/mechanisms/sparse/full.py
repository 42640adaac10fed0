"""Full attention: every query sees every key.

Paper    Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762, section 3.2.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)), over j <= i if causal
Cost     time O(N M D); memory O(N + M): scores are computed again in the backward
Differs  A row that may see nothing gives 0 instead of the mean of all values.
"""

from dataclasses import dataclass

from torch import Tensor

from mapformers.core.card import RANGES, Card, capabilities, options_of
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Dense, Plan
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores


@dataclass(frozen=True)
class FullConfig:
    """Full attention has no options."""


class Full(Mechanism):
    """Softmax over all keys."""

    Config = FullConfig
    sees_all = True
    card = Card(
        name="full",
        family="baseline",
        paper="Vaswani et al. 2017, arXiv 1706.03762",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)), j <= i if causal",
        cost="time O(N M D), memory O(N + M)",
        summary="every query sees every key",
        supports=RANGES | capabilities("cross"),
        options=options_of(FullConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """All keys of the scope."""
        return Dense()

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula as written."""
        return masked_softmax(scaled_scores(q, k), scope.visible(q.shape[2], k.shape[2], q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values over all pairs, also those that a causal mask hides."""
        return Cost(flops=4.0 * batch * heads * n * n * dim, bytes=8.0 * batch * heads * n * dim)
