"""Strided attention: a query sees all keys that are a multiple of `stride` steps away.

Paper    Survey "The Map of Transformers" (Lin et al. 2021, arXiv 2106.04554), section 4.1.1, dilated
         attention of unlimited width; one half of Child et al. 2019, "Sparse Transformer", arXiv 1904.10509.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over (i - j) mod stride = 0, and j <= i if causal
Cost     time O(N^2 / stride D), extra memory O(N); stride near sqrt(N) makes it O(N^1.5 D)
Differs  Steps are counted over real tokens of the same document. Residue classes never meet, so it needs a
         partner that mixes neighbours, such as band. Decoding keeps every key: each is seen again.
"""

from dataclasses import dataclass

from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Plan, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores


@dataclass(frozen=True)
class StridedConfig:
    """Options of strided."""

    stride: int = option(64, "steps from one key to the next")

    def __post_init__(self) -> None:
        require(
            self.stride >= 1,
            f"strided: stride must be 1 or more, got {self.stride}; use the square root of the length",
        )


class Strided(Mechanism):
    """Residue classes of positions."""

    Config = StridedConfig
    config: StridedConfig
    card = Card(
        name="strided",
        family="sparse, position-based (atom)",
        paper="Lin et al. 2021, arXiv 2106.04554, section 4.1.1; Child et al. 2019, arXiv 1904.10509",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over (i-j) mod stride = 0, j <= i if causal",
        cost="time O(N^2 / stride D), memory O(N)",
        summary="all keys a multiple of the stride away",
        supports=RANGES,
        options=options_of(StridedConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = residue of the rank, seen as a whole."""
        n, m = q.shape[2], k.shape[2]
        return Windows(
            before=None,
            after=0 if scope.causal else None,
            query_segment=(scope.query_ranks(n, m, q.device) % self.config.stride)[:, None],
            key_segment=(scope.ranks_of_keys(m, q.device) % self.config.stride)[:, None],
            segment_count=self.config.stride,
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula as written."""
        n, m = q.shape[2], k.shape[2]
        i = scope.query_ranks(n, m, q.device)[:, None, :, None]
        j = scope.ranks_of_keys(m, q.device)[:, None, None, :]
        same = (i - j) % self.config.stride == 0
        return masked_softmax(scaled_scores(q, k), same & scope.visible(n, m, q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs inside residue classes. Scores are never kept, as in full."""
        small, larger = divmod(n, self.config.stride)  # `larger` classes hold one more
        sizes = {small: self.config.stride - larger, small + 1: larger}
        pairs = sum(count * (c * (c + 1) / 2 if causal else c * c) for c, count in sizes.items())
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * n * dim)
