"""Longformer attention: a sliding window, with gaps if wanted, and a few global tokens.

Paper    Beltagy, Peters, Cohan 2020, "Longformer: The Long-Document Transformer", arXiv 2004.05150.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over i < G or j < G or near(i, j), G = global_tokens;
         near: |i - j| <= window dilation and (i - j) mod dilation = 0; and j <= i if causal
Cost     time O(N (W + G) D), extra memory O(N (W + G)): W = window + 1 (causal) or 2 window + 1
Differs  Global tokens are the first of each document; the paper chooses them by task. Global rows take their
         own projections with project="local_global". The paper gives a few heads a dilation: mix specs for
         that, as in "longformer(window=128):6 + longformer(window=128, dilation=2):2"; windows that grow with
         depth are a choice of the model. The paper's language model has no global tokens; here a causal layer
         may have them: their columns stay, and their rows end at their own token. Steps are counted over real
         tokens of the same document.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import ByRows, Plan, Union, Windows
from mapformers.core.scope import Scope, keep_first, keep_last
from mapformers.kernels.softmax import masked_softmax, scaled_scores


@dataclass(frozen=True)
class LongformerConfig:
    """Options of longformer."""

    window: int = option(
        128, "keys seen on each side of the query, the query itself not counted; causal: left only"
    )
    dilation: int = option(1, "steps from one key of the window to the next; 1 = without gaps")
    global_tokens: int = option(0, "tokens at the start of each document that see all and are seen by all")

    def __post_init__(self) -> None:
        for name, least in (("window", 0), ("dilation", 1), ("global_tokens", 0)):
            value = getattr(self, name)
            require(
                value >= least,
                f"longformer: {name} must be {least} or more, got {value}; the default is "
                f"{getattr(type(self), name)}",
            )


class Longformer(Mechanism):
    """Window and global tokens."""

    Config = LongformerConfig
    config: LongformerConfig
    card = Card(
        name="longformer",
        family="sparse, position-based (compound)",
        paper="Beltagy et al. 2020, arXiv 2004.05150",
        formula="softmax over i < G, j < G, or |i-j| <= window d and d | i-j; j <= i if causal",
        cost="time O(N (W + G) D), memory O(N (W + G))",
        summary="sliding window and global tokens",
        supports=RANGES,
        options=options_of(LongformerConfig),
    )

    @property
    def marks_rows(self) -> bool:
        """The rows of global tokens."""
        return self.config.global_tokens > 0

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Band and columns; and where they are more than columns, the global rows."""
        if not self.marks_rows:
            return self._band(q, k, scope)
        if scope.causal:
            nobody = torch.zeros(1, q.shape[2], dtype=torch.bool, device=q.device)
            return Union(self._parts(q, k, scope, nobody))
        rows = self.plan_by_rows(q, k, scope)
        return Union((*self._parts(q, k, scope, rows.marked), rows.of_marked))

    def plan_by_rows(self, q: Tensor, k: Tensor, scope: Scope) -> ByRows:
        """Global tokens see all keys, the others the band and the columns."""
        marked = scope.query_ranks(q.shape[2], k.shape[2], q.device) < self.config.global_tokens  # [B, N]
        return ByRows(
            marked=marked,
            of_marked=Windows(before=None, after=None, query_segment=marked.long()[:, None] - 1),
            of_others=Union(self._parts(q, k, scope, marked)),
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Of the visible keys a multiple of `dilation` away the nearest, global columns and global rows."""
        n, m = q.shape[2], k.shape[2]
        config, visible = self.config, scope.visible(n, m, q.device)
        i = scope.query_ranks(n, m, q.device)[:, None, :, None]
        j = scope.ranks_of_keys(m, q.device)[:, None, None, :]
        same = visible & ((i - j) % config.dilation == 0)
        up_to = same & Scope(causal=True, query_start=scope.query_start).visible(n, m, q.device)
        near = keep_last(up_to, config.window + 1) | keep_first(same & ~up_to, config.window)
        shown = near | (i < config.global_tokens) | (j < config.global_tokens)
        return masked_softmax(scaled_scores(q, k), shown & visible)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs: global rows, columns below them, and the band behind both."""
        g, d = min(self.config.global_tokens, n), self.config.dilation
        rest = n - g
        w = min(self.config.window, max(rest - 1, 0) // d)
        one_side = w * rest - d * w * (w + 1) / 2
        pairs = rest * g + rest + one_side + (g * (g + 1) / 2 if causal else one_side + g * n)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * pairs)

    def _band(self, q: Tensor, k: Tensor, scope: Scope) -> Windows:
        """Segment = residue of the rank: inside it, keys `dilation` steps apart are neighbours."""
        config, n, m = self.config, q.shape[2], k.shape[2]
        band = Windows(before=config.window + 1, after=0 if scope.causal else config.window)
        if config.dilation == 1:
            return band  # without segments: the fastest form
        return replace(
            band,
            query_segment=(scope.query_ranks(n, m, q.device) % config.dilation)[:, None],
            key_segment=(scope.ranks_of_keys(m, q.device) % config.dilation)[:, None],
            segment_count=config.dilation,
        )

    def _parts(self, q: Tensor, k: Tensor, scope: Scope, marked: Tensor) -> tuple[Windows, Windows]:
        """Band and global columns of the queries that are not `marked` [B, N]. The band counts global keys
        among its steps and leaves them to the columns.
        """
        count, band = self.config.global_tokens, self._band(q, k, scope)
        is_global = (scope.ranks_of_keys(k.shape[2], q.device) < count)[:, None]  # [B, 1, M]
        nowhere = -marked.long()[:, None]  # [B, 1, N] 0 or -1
        segment = nowhere if band.query_segment is None else band.query_segment.masked_fill(nowhere < 0, -1)
        band = replace(band, query_segment=segment, key_is_seen=~is_global)
        columns = Windows(
            before=count if scope.causal else None,
            after=0 if scope.causal else None,
            query_segment=nowhere,
            key_segment=is_global.long() - 1,
        )
        return band, columns
