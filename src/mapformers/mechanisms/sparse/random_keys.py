"""Random attention: every block of queries sees a few blocks of keys drawn at random.

Paper    Survey "The Map of Transformers" (Lin et al. 2021, arXiv 2106.04554), section 4.1.1, random
         attention; used in Zaheer et al. 2020, "Big Bird", arXiv 2007.14062.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over floor(j / block) in S(h, floor(i / block)), S a uniform
         set of `count` blocks of the document; causal: of the blocks up to the query's own, and j <= i
Cost     time O(N count block D), extra memory O(N count block)
Differs  The draw depends on a stored seed, the head, the block and the number of blocks to draw from, and on
         nothing else: training, evaluation and decoding see one pattern, and so does a prefix under
         causal=True. Public code draws from a global generator, and not at all in evaluation. block=1 draws
         single keys. An atom: alone, a query need not see itself. Decoding keeps every key: any may be drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Plan, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.sparse.draws import draw_seed, hashed, query_lengths, subset


@dataclass(frozen=True)
class RandomKeysConfig:
    """Options of random."""

    count: int = option(3, "blocks of keys that a block of queries sees")
    block: int = option(64, "tokens per block; 1 = single keys")

    def __post_init__(self) -> None:
        for name in ("count", "block"):
            value = getattr(self, name)
            require(
                value >= 1,
                f"random: {name} must be 1 or more, got {value}; the default is {getattr(type(self), name)}",
            )


class RandomKeys(Mechanism):
    """Random blocks of keys."""

    Config = RandomKeysConfig
    config: RandomKeysConfig
    seed: Tensor
    plans_from_history = True
    card = Card(
        name="random",
        family="sparse, position-based (atom)",
        paper="Lin et al. 2021, arXiv 2106.04554, section 4.1.1; Zaheer et al. 2020, arXiv 2007.14062",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over j // block in S(head, i // block), |S| = count",
        cost="time O(N count block D), memory O(N count block)",
        summary="random blocks of keys, the same in training, evaluation and decoding",
        supports=RANGES,
        options=options_of(RandomKeysConfig),
    )

    def __init__(self, config: RandomKeysConfig | None = None) -> None:
        super().__init__(config)
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """The seed of the pattern."""
        self.seed = draw_seed(generator)

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = block; a query names the blocks drawn for its own."""
        keys = scope.ranks_of_keys(k.shape[2], q.device) // self.config.block
        return Windows(
            before=None,
            after=0 if scope.causal else None,
            query_segment=self._drawn_for(q, k, scope),
            key_segment=keys[:, None],
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula as written, one draw after another."""
        n, m = q.shape[2], k.shape[2]
        start = (scope.ranks_of_keys(m, q.device) // self.config.block * self.config.block)[:, None, None, :]
        shown = torch.zeros(1, 1, n, m, dtype=torch.bool, device=q.device)
        for block in self._drawn_for(q, k, scope).unbind(-1):  # [B, H, N]
            shown = shown | (start == (block * self.config.block)[..., None])
        return masked_softmax(scaled_scores(q, k), shown & scope.visible(n, m, q.device))

    def drawn(self, heads: int, block: Tensor, blocks: Tensor) -> Tensor:
        """[B, H, N, count] for queries in `block` [B, N] of the first `blocks` [B, N or 1]; -1 = fewer."""
        head = torch.arange(heads, device=block.device)[None, :, None]
        return subset(hashed(self.seed, head, block[:, None]), blocks[:, None], self.config.count)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs drawn, counted block by block: the last one may be shorter."""
        size = self.config.block
        block = torch.arange(-(-n // size), device=self.seed.device)
        sizes = (n - block * size).clamp(max=size)
        blocks = block + 1 if causal else torch.full_like(block, len(block))
        drawn = self.drawn(heads, block[None], blocks[None])  # [1, H, blocks, count]
        pairs = sizes[:, None] * sizes[drawn] * (drawn >= 0)
        if causal:
            own = drawn == block[:, None]  # half of the own block lies ahead
            pairs = torch.where(own, (sizes * (sizes + 1) // 2)[:, None], pairs)
        total = float(pairs.sum())
        return Cost(flops=4.0 * batch * total * dim, bytes=8.0 * batch * total)

    def _drawn_for(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """[B, H, N, count] the blocks that each query sees."""
        n, m = q.shape[2], k.shape[2]
        block = scope.query_ranks(n, m, q.device) // self.config.block
        if scope.causal:
            return self.drawn(q.shape[1], block, block + 1)
        blocks = -(-query_lengths(scope, n, m, q.device) // self.config.block)
        return self.drawn(q.shape[1], block, blocks)
