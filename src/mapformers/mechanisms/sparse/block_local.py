"""Block-local attention: the sequence is cut into blocks, and a query sees its own block.

Paper    Survey "The Map of Transformers" (Lin et al. 2021, arXiv 2106.04554), section 4.1.1, block local
         attention; used in Qiu et al. 2019 "Blockwise", Liu et al. 2018, arXiv 1801.10198.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over floor(i / block) = floor(j / block), and j <= i if
         causal
Cost     time O(N block D), extra memory O(N block)
Differs  Blocks are cut by true position, so that left padding does not shift them.
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
class BlockLocalConfig:
    """Options of block_local."""

    block: int = option(128, "tokens per block")

    def __post_init__(self) -> None:
        require(
            self.block >= 1,
            f"block_local: block must be 1 or more, got {self.block}; use block=128 for example",
        )


class BlockLocal(Mechanism):
    """Attention inside blocks."""

    Config = BlockLocalConfig
    config: BlockLocalConfig
    card = Card(
        name="block_local",
        family="sparse, position-based (atom)",
        paper="Lin et al. 2021, arXiv 2106.04554, section 4.1.1; Liu et al. 2018, arXiv 1801.10198",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over i // block = j // block, j <= i if causal",
        cost="time O(N block D), memory O(N block)",
        summary="attention inside blocks of positions",
        supports=RANGES,
        options=options_of(BlockLocalConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = block. Blocks come one after another, so one is alive at a time."""
        n, m = q.shape[2], k.shape[2]
        return Windows(
            before=self.config.block if scope.causal else None,
            after=0 if scope.causal else None,
            query_segment=(scope.query_positions(n, q.device) // self.config.block)[:, None],
            key_segment=(scope.positions_of_keys(m, q.device) // self.config.block)[:, None],
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula as written."""
        n, m = q.shape[2], k.shape[2]
        i = scope.query_positions(n, q.device)[:, None, :, None]
        j = scope.positions_of_keys(m, q.device)[:, None, None, :]
        start = i - i % self.config.block
        inside = (j >= start) & (j < start + self.config.block)
        return masked_softmax(scaled_scores(q, k), inside & scope.visible(n, m, q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs inside blocks."""
        sizes = [self.config.block] * (n // self.config.block) + [n % self.config.block]
        pairs = sum(b * (b + 1) / 2 if causal else b * b for b in sizes)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * pairs)
