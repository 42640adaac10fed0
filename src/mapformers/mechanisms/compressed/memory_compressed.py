"""Memory-compressed attention: keys and values are pooled over a few tokens before they are attended to.

Paper    Liu, Saleh, Pot, Goodrich, Sepassi, Kaiser, Shazeer 2018, "Generating Wikipedia by Summarizing Long
         Sequences", ICLR, arXiv 1801.10198, section 4.2.4
Formula  k'_c = sum_t a_t k_{cs+t}, v'_c = sum_t b_t v_{cs+t} over the s tokens of cell c;
         w = softmax over cells of q_i . k'_c / sqrt(D); causal: cells whose last token is at or before i
Cost     time O(N^2 / stride D), extra memory O(N)
Differs  The paper's strided convolution mixes the channels too; here each head has one weight for each place,
         for keys and for values, which begin as the mean, so that the weights of the keys exist. A query
         without a whole cell gets 0: the local layers of the paper show it the last tokens. Decoding keeps
         every key.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import RANGES, Card, capabilities, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Plan, Pooled
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import expand_heads, masked_softmax, scaled_scores
from mapformers.mechanisms.content.blocks import blocks_of, same_block, whole_blocks


@dataclass(frozen=True)
class MemoryCompressedConfig:
    """Options of memory_compressed."""

    stride: int = option(3, "tokens that are pooled into one cell")

    def __post_init__(self) -> None:
        require(
            self.stride >= 1, f"memory_compressed: stride must be 1 or more, got {self.stride}; use stride=3"
        )


class MemoryCompressed(Mechanism):
    """Attention to pooled keys and values."""

    Config = MemoryCompressedConfig
    config: MemoryCompressedConfig
    plans_from_history = True  # a cell needs all its tokens
    card = Card(
        name="memory_compressed",
        family="compressed memory",
        paper="Liu et al. 2018, arXiv 1801.10198",
        formula="softmax over cells c of q . sum_t a_t k_{cs+t} / sqrt(D), values sum_t b_t v_{cs+t}",
        cost="time O(N^2 / stride D), memory O(N)",
        summary="keys and values pooled over a few tokens each",
        supports=(RANGES | capabilities("cross")) - {"score", "rows_sum_to_one"},
        options=options_of(MemoryCompressedConfig),
    )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """Pooling begins as the mean."""
        size = self.config.stride
        self.key_weight = nn.Parameter(torch.full((shape.kv_heads, size), 1 / size))
        self.value_weight = nn.Parameter(torch.full((shape.kv_heads, size), 1 / size))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Row = cell, counted among the real tokens of the document."""
        n, m = q.shape[2], k.shape[2]
        cells = blocks_of(scope, m, self.config.stride, q.device)
        key_weight, value_weight = self._weights_of(scope.ranks_of_keys(m, q.device))
        if scope.causal:
            start, end = whole_blocks(cells, scope, n, m, self.config.stride)
        elif scope.segments is None:  # queries may be other tokens than keys
            start, end = (x[:, :1].expand(-1, n) for x in (cells.first, cells.end))
        else:
            start, end = cells.first, cells.end
        return Pooled(cells.rows(scope.key_is_real), key_weight, value_weight, start, end, cells.most)

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """By pairs of keys: the first key of a cell stands for it."""
        (n, m), size, heads = (q.shape[2], k.shape[2]), self.config.stride, q.shape[1]
        visible, ranks = scope.visible(n, m, q.device), scope.ranks_of_keys(m, q.device)
        stands = visible & (ranks % size == 0)[:, None, None]
        if scope.causal:
            last = ((ranks // size + 1) * size - 1)[:, None, None, :]
            stands = stands & (last <= scope.query_ranks(n, m, q.device)[:, None, :, None])
        key_weight, value_weight = self._weights_of(ranks)
        same = same_block(scope, ranks // size).to(k.dtype)
        pooled = expand_heads(same @ (k * key_weight.unsqueeze(-1)), heads)
        seen = masked_softmax(scaled_scores(q, pooled), stands)
        return seen @ same * expand_heads(value_weight.unsqueeze(-1), heads).mT

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Pooling both, and scores and values of the cells that each query sees."""
        size = self.config.stride
        seen = sum((i + 1) // size for i in range(n)) if causal else n * -(-n // size)
        return Cost(
            flops=batch * heads * dim * (4.0 * seen + 4.0 * n),
            bytes=8.0 * batch * heads * n * (1 + dim / size),
        )

    def _weights_of(self, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """[B or 1, G, M] both weights of tokens by their place in the cell."""
        place = ranks % self.config.stride
        return self.key_weight[:, place].transpose(0, 1), self.value_weight[:, place].transpose(0, 1)
