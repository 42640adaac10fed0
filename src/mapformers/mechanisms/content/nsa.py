"""NSA (native sparse attention): pooled blocks, a few whole blocks and a window, summed by gates.

Paper    Yuan et al. 2025, "Native Sparse Attention", arXiv 2502.11089, sections 3.2 and 3.3. Younger than the
         survey.
Formula  k~_s = sum_r a_r k_{s,r}, v~_s = sum_r b_r v_{s,r} over the places r of block s;
         compressed: softmax over the blocks that end at or before i of q_i . k~_s / sqrt(D), of the v~_s;
         selected: softmax over the own block and the `top` past blocks s of largest sum_h p~_h[i, s], the
         weights of the compressed branch summed over the heads of a key/value head;
         sliding: softmax over the last `window` keys and the own one;
         y_i = sum_c sigmoid(w_c . q_i + b_c) y_i^c. Causal only
Cost     time O(N (N / block + top block + W) D), extra memory O(N (top block + W))
Differs  Blocks are pooled by learned weights of their places, which begin as the mean; the paper has an MLP
         with positions, overlapping blocks, and the gates from x by an MLP. Queries choose before they are
         rotated. A query without a whole past block gets 0 from the compressed branch. Ties go to the
         earliest block. Decoding keeps every key.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Plan, Pooled, WeightedSum, Windows
from mapformers.core.scope import Scope, keep_last
from mapformers.kernels.softmax import expand_heads, masked_softmax, scaled_scores
from mapformers.mechanisms.content.blocks import (
    Reach,
    blocks_of,
    heaviest_blocks,
    of_blocks,
    same_block,
    whole_blocks,
)


@dataclass(frozen=True)
class NsaConfig:
    """Options of nsa."""

    block: int = option(64, "tokens per block")
    top: int = option(4, "whole blocks that a query sees beside its own")
    window: int = option(128, "tokens before the query that the sliding branch sees")

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("top", 1), ("window", 0)):
            value = getattr(self, name)
            require(
                value >= least,
                f"nsa: {name} must be {least} or more, got {value}; the default is "
                f"{getattr(type(self), name)}",
            )


class Nsa(Mechanism):
    """Three branches under gates."""

    Config = NsaConfig
    one_softmax = False
    config: NsaConfig
    plans_from_history = True  # the pooled keys need all keys of a block
    card = Card(
        name="nsa",
        family="sparse, content-based (beyond the survey)",
        paper="Yuan et al. 2025, arXiv 2502.11089",
        formula="gated sum of softmax over pooled blocks, over own and top past blocks, over a window",
        cost="time O(N (N / block + top block + W) D), memory O(N (top block + W))",
        summary="pooled blocks, the best whole blocks and a window, summed by gates; causal only",
        supports=RANGES - {"bidirectional", "score", "rows_sum_to_one"},
        options=options_of(NsaConfig),
    )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """Pooling begins as the mean, every gate half open."""
        size = self.config.block
        self.key_weight = nn.Parameter(torch.full((shape.kv_heads, size), 1 / size))
        self.value_weight = nn.Parameter(torch.full((shape.kv_heads, size), 1 / size))
        self.gate_weight = nn.Parameter(torch.zeros(shape.heads, shape.head_dim, 3))
        self.gate_bias = nn.Parameter(torch.zeros(shape.heads, 1, 3))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """The three branches. Blocks are those of MoBA, chosen for each key/value head."""
        n, size = q.shape[2], self.config.block
        blocks = blocks_of(scope, k.shape[2], size, q.device)
        mine = blocks.of_queries(scope, n)
        ranks = scope.ranks_of_keys(k.shape[2], q.device)
        key_weight, value_weight = self._weights_of(ranks)
        start, end = whole_blocks(blocks, scope, n, k.shape[2], size)
        row = blocks.rows(scope.key_is_real)
        compressed = Pooled(row, key_weight, value_weight, start, end, blocks.most)
        chosen = heaviest_blocks(q, k, compressed, Reach(mine.first, mine.own), self.config.top)
        parts = (
            compressed,
            of_blocks(chosen.repeat_interleave(q.shape[1] // k.shape[1], 1), mine, blocks, scope.causal),
            Windows(before=self.config.window + 1),
        )
        return WeightedSum(parts, self._gates(q))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """By pairs of keys: the first key of a block stands for it."""
        (n, m), size, heads = (q.shape[2], k.shape[2]), self.config.block, q.shape[1]
        visible, ranks = scope.visible(n, m, q.device), scope.ranks_of_keys(m, q.device)
        query_rank = scope.query_ranks(n, m, q.device)[:, None, :, None]
        block, begins = (ranks // size)[:, None, None, :], (ranks % size == 0)[:, None, None]
        own, same = block == query_rank // size, same_block(scope, ranks // size)
        key_weight, value_weight = self._weights_of(ranks)
        pooled = expand_heads(same.to(k.dtype) @ (k * key_weight.unsqueeze(-1)), heads)
        stands = visible & begins & ((block + 1) * size - 1 <= query_rank)
        seen = masked_softmax(scaled_scores(q, pooled), stands)
        compressed = seen @ same.to(q.dtype) * expand_heads(value_weight.unsqueeze(-1), heads).mT
        sure = masked_softmax(scaled_scores(q.double(), pooled.double()), stands)
        summed = sure.unflatten(1, (k.shape[1], -1)).sum(2).log().float()  # [B, G, N, M], as in `plan`
        competing = expand_heads(summed, heads).masked_fill(~(stands & ~own), float("-inf"))
        order = competing.sort(dim=-1, descending=True, stable=True).indices
        best = stands & ~own & (order.argsort(-1) < self.config.top)
        chosen = own | (best.double() @ same.double() > 0)
        scores = scaled_scores(q, k)
        near = keep_last(visible, self.config.window + 1)
        branches = (compressed, *(masked_softmax(scores, shown) for shown in (visible & chosen, near)))
        return (torch.stack(branches, -1) * self._gates(q).unsqueeze(-2)).sum(-1)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Pooling, both passes over the pooled blocks, and the pairs of the other branches at most."""
        size, top, w = self.config.block, self.config.top, min(self.config.window, n - 1)
        count = -(-n // size)
        compressed = sum(max(0, min(size, n - s * size + 1)) * s for s in range(1, count + 1))
        tokens = [min(size, n - s * size) for s in range(count)]
        selected = sum(t * min(top, s) * size + t * (t + 1) / 2 for s, t in enumerate(tokens))
        sliding = n * (w + 1) - w * (w + 1) / 2
        pairs = compressed + selected + sliding
        return Cost(
            flops=batch * heads * dim * (4.0 * pairs + 2.0 * n * count + 6.0 * n),
            bytes=8.0 * batch * heads * n * (min((top + 1) * size, n) + w + 1),
        )

    def _weights_of(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """[B or 1, G, M] both weights of tokens by their place in the block."""
        place = ranks % self.config.block
        return self.key_weight[:, place].transpose(0, 1), self.value_weight[:, place].transpose(0, 1)

    def _gates(self, q: Tensor) -> Tensor:
        """[B, H, N, 3], of the branches in the order of the formula."""
        return torch.sigmoid(q @ self.gate_weight.to(q.dtype) + self.gate_bias.to(q.dtype))
