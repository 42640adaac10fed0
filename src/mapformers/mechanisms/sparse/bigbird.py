"""BigBird: blocks that see a window, a few global blocks and a few random blocks.

Paper    Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", NeurIPS, arXiv 2007.14062.
Formula  with b(i) = floor(i / block): w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over g(i) or g(j) or
         |b(i) - b(j)| <= (window - 1) / 2 or b(j) in R(h, b(i)); R = `random` of the blocks not yet seen.
         ITC: g = first or last block. ETC: g = the first `global_tokens` tokens; blocks are cut behind them
Cost     time O(N (window + 2 + random) block D), extra memory O(N (window + 2 + random) block)
Differs  Random blocks are uniform over all blocks that the rest leaves out: public code draws from the start
         of the sequence alone, may count a block twice, and draws nothing in evaluation. Here a stored seed
         gives one pattern everywhere. The global tokens of ETC are given ones; the paper adds trained ones in
         front. Any length: each document has its own last block. Causal use is refused: the first tokens are
         global, so they see the whole future and hand it to everybody in the next layer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Plan, Union, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.sparse.bigbird_blocks import Blocks, Place
from mapformers.mechanisms.sparse.draws import draw_seed, hashed, subset


@dataclass(frozen=True)
class BigBirdConfig:
    """Options of bigbird."""

    block: int = option(64, "tokens per block")
    random: int = option(3, "random blocks that a block sees")
    window: int = option(3, "blocks of the window, an odd number: the own one in the middle")
    variant: Literal["itc", "etc"] = option(
        "itc", "itc = first and last block global; etc = first tokens global"
    )
    global_tokens: int = option(0, "global tokens of etc; 0 = two blocks of them, as many as itc has")

    def __post_init__(self) -> None:
        require(self.block >= 1, f"bigbird: block must be 1 or more, got {self.block}; use block=64")
        for name in ("random", "global_tokens"):
            value = getattr(self, name)
            require(
                value >= 0, f"bigbird: {name} must be 0 or more, got {value}; leave it out for the default"
            )
        require(
            self.window >= 1 and self.window % 2 == 1,
            f"bigbird: window must be odd and 1 or more, got {self.window}; use window=3",
        )
        require_known("bigbird", "variant", self.variant, ("itc", "etc"))
        require(
            self.variant == "etc" or self.global_tokens == 0,
            f'bigbird: global_tokens must be 0 with variant="itc", got {self.global_tokens}; '
            'use variant="etc"',
        )


class BigBird(Mechanism):
    """Window, global and random blocks."""

    Config = BigBirdConfig
    config: BigBirdConfig
    seed: Tensor
    card = Card(
        name="bigbird",
        family="sparse, position-based (compound)",
        paper="Zaheer et al. 2020, NeurIPS, arXiv 2007.14062",
        formula="softmax_j(q_i.k_j / sqrt(D)) over global, |b(i)-b(j)| <= (window-1)/2, or b(j) in R(h,b(i))",
        cost="time O(N (window + 2 + random) block D), memory O(N (window + 2 + random) block)",
        summary="window, global and random blocks",
        causal="refuses",
        supports=RANGES - {"causal", "decode"},
        options=options_of(BigBirdConfig),
    )

    def __init__(self, config: BigBirdConfig | None = None) -> None:
        super().__init__(config)
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """The seed of the random blocks."""
        self.seed = draw_seed(generator)

    def check_causal(self, causal: bool) -> None:
        """Never: see the head of this file."""
        require(
            not causal,
            "bigbird: causal is not supported, because its global tokens see the whole future, got "
            "causal=True; use causal=False, or mix band, global_tokens and random over the heads",
        )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = block. Global queries see all keys; the others name their blocks, each once."""
        n, m = q.shape[2], k.shape[2]
        blocks = Blocks(self.config)
        queries, keys = blocks.of_queries(scope, n, m, q.device), blocks.of_keys(scope, m, q.device)
        see_all = blocks.are_global(queries)[:, None]  # [B, 1, N]
        named = blocks.named(self._state(q.shape[1], queries.block), queries)
        named = named.masked_fill(see_all[..., None], -1)
        return Union(
            (
                Windows(before=None, after=None, query_segment=named, key_segment=keys.block[:, None]),
                Windows(before=None, after=None, query_segment=see_all.long() - 1),
            )
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula as written; a random block is the t-th in the list of those not yet seen."""
        n, m = q.shape[2], k.shape[2]
        blocks = Blocks(self.config)
        queries, keys = blocks.of_queries(scope, n, m, q.device), blocks.of_keys(scope, m, q.device)
        own, count = queries.block[:, None, :, None], queries.blocks[:, None, :, None]
        block = torch.arange(max(1, int(count.max())), device=q.device)
        seen = blocks.are_global(Place(block, count)) | ((block - own).abs() <= self.config.window // 2)
        free = (block < count) & ~seen  # [B, 1, N, blocks]
        nth = free.long().cumsum(-1) - 1
        drawn = subset(self._state(q.shape[1], queries.block), free.sum(-1), self.config.random)
        for t in drawn.unbind(-1):  # [B, H, N]
            seen = seen | (free & (nth == t[..., None]))
        seen = seen | blocks.are_global(queries)[:, None, :, None]
        index = keys.block[:, None, None]  # [B, 1, 1, M]
        rows = torch.broadcast_shapes(seen.shape[:3], index.shape[:3])
        shown = seen.expand(*rows, -1).gather(3, index.expand(*rows, -1))
        return masked_softmax(scaled_scores(q, k), shown & scope.visible(n, m, q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs, counted block by block: the last one may be shorter."""
        blocks, rank = Blocks(self.config), torch.arange(n, device=self.seed.device)
        place = blocks.of(rank[None], rank.new_full((1, 1), n))
        sizes = place.block[0].bincount()
        place = place._replace(block=torch.arange(len(sizes), device=rank.device)[None])
        named = blocks.named(self._state(heads, place.block), place)  # [1, H, blocks, r]
        seen = (sizes[named] * (named >= 0)).sum(-1)
        total = float((sizes * torch.where(blocks.are_global(place), n, seen)).sum())
        return Cost(flops=4.0 * batch * total * dim, bytes=8.0 * batch * total)

    def _state(self, heads: int, block: Tensor) -> Tensor:
        """[B, H, N] bits for each head and block [B, N]."""
        return hashed(self.seed, torch.arange(heads, device=block.device)[None, :, None], block[:, None])
