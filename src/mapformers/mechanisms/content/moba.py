"""MoBA (mixture of block attention): a query sees its own block and the past blocks of the nearest mean key.

Paper    Lu et al. 2025, "MoBA: Mixture of Block Attention for Long-Context LLMs", arXiv 2502.13189. Younger
         than the survey, and beside it in the catalogue.
Formula  m_b = mean of the keys of block b; S(i) = the `top` of the other blocks with the largest q_i . m_b;
         w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over b(j) = b(i) or b(j) in S(i), and j <= i. Causal: only
         blocks that lie wholly before the query compete, so their means know nothing of what follows
Cost     time O(N top block D + N (N / block) D), extra memory O(N top block): the choice runs in stretches
Differs  `top` counts past blocks; the paper's number counts the query's own block too. Queries and keys are
         compared before they are rotated: content, not place. Ties go to the earliest block. The
         bidirectional form is ours: all other blocks of the document compete. Decoding keeps every key.
"""

from dataclasses import dataclass

from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Plan
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import expand_heads, masked_softmax, scaled_scores
from mapformers.mechanisms.content.blocks import (
    Reach,
    best_blocks,
    block_means,
    blocks_of,
    of_blocks,
    same_block,
)


@dataclass(frozen=True)
class MobaConfig:
    """Options of moba."""

    block: int = option(64, "tokens per block")
    top: int = option(4, "blocks that a query sees beside its own")

    def __post_init__(self) -> None:
        for name in ("block", "top"):
            value = getattr(self, name)
            require(
                value >= 1,
                f"moba: {name} must be 1 or more, got {value}; the default is {getattr(type(self), name)}",
            )


class Moba(Mechanism):
    """Blocks chosen by their mean key."""

    Config = MobaConfig
    config: MobaConfig
    plans_from_history = True  # the means need all keys of a block
    card = Card(
        name="moba",
        family="sparse, content-based (beyond the survey)",
        paper="Lu et al. 2025, arXiv 2502.13189",
        formula="softmax over the own block and the top past blocks by q_i . mean(k of the block), j <= i",
        cost="time O(N top block D + N (N / block) D), memory O(N top block)",
        summary="the own block, and the past blocks whose mean key fits the query best",
        supports=RANGES,
        options=options_of(MobaConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = block; a query names its own and the chosen ones."""
        batch, heads, n, _ = q.shape
        blocks = blocks_of(scope, k.shape[2], self.config.block, q.device)
        mine = blocks.of_queries(scope, n)
        means = block_means(k.detach(), blocks, scope.key_is_real)  # [B, G, S, D]
        grouped = q.detach().unflatten(1, (k.shape[1], -1))  # [B, G, H / G, N, D]

        def score(rows: slice) -> Tensor:
            part = grouped[:, :, :, rows].double()
            return (part.flatten(2, 3) @ means.transpose(-1, -2)).view(batch, heads, -1, blocks.most)

        past = Reach(mine.first, mine.own)
        reach = past if scope.causal else Reach(mine.first, mine.end, besides=mine.own)
        sizes = (batch * heads * blocks.most, blocks.most)
        chosen = best_blocks(score, reach, sizes, self.config.top)
        return of_blocks(chosen, mine, blocks, scope.causal)

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """By pairs of keys: the mean of each key's block, and the first key of a block stands for it."""
        n, m, size = q.shape[2], k.shape[2], self.config.block
        visible, ranks = scope.visible(n, m, q.device), scope.ranks_of_keys(m, q.device)
        block = (ranks // size)[:, None, None, :]
        own = block == (scope.query_ranks(n, m, q.device) // size)[:, None, :, None]
        same = same_block(scope, ranks // size).double()
        mean = (same @ expand_heads(k.double(), q.shape[1])) / same.sum(-1, keepdim=True).clamp(min=1)
        compared = (q.double() @ mean.transpose(-1, -2)).float()  # as in best_blocks
        stands = visible & ~own & (ranks % size == 0)[:, None, None, :]
        competing = compared.masked_fill(~stands, float("-inf"))
        order = competing.sort(dim=-1, descending=True, stable=True).indices
        best = stands & (order.argsort(-1) < self.config.top)
        seen = visible & (own | (best.double() @ same > 0))
        return masked_softmax(scaled_scores(q, k), seen)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """The comparison with all means, and the pairs inside the blocks: exact if they are full."""
        size, top = self.config.block, self.config.top
        full, rest = divmod(n, size)
        count = full + (rest > 0)
        pairs = 0.0
        for own, tokens in enumerate([size] * full + [rest] * (rest > 0)):
            others = min(top, own) * size if causal else min(top, count - 1) * size
            pairs += tokens * others + (tokens * (tokens + 1) / 2 if causal else tokens * tokens)
        return Cost(
            flops=batch * heads * dim * (4.0 * pairs + 2.0 * n * count),
            bytes=8.0 * batch * heads * n * min((top + 1) * size, n),
        )
