"""Sparse Transformer attention: near keys, and few keys that carry what lies further back.

Paper    Child, Gray, Radford, Sutskever 2019, "Generating Long Sequences with Sparse Transformers", arXiv
         1904.10509.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over j in A1(i) and / or A2(i), j <= i, l = stride
         strided: A1 = {i - l, .., i}, A2 = {(i - j) mod l = 0}
         fixed: A1 = {floor(j / l) = floor(i / l)}, A2 = {j mod l >= l - summary}
Cost     time O(N (l + N / l) D) strided, O(N (l + N summary / l) D) fixed; extra memory O(N)
Differs  A key in both A1 and A2 counts once. The paper's three head schemes are specs: part="both" is the
         merged head; heads of their own are "sparse_transformer(part=local):4 +
         sparse_transformer(part=summary):4"; interleaved are layers of one part each, local first when fixed:
         the other way round few pairs meet. Heads of the paper may take different summary columns; here all
         take the last ones. Steps and blocks are counted over real tokens of the same document.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Plan, Union, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores

PATTERNS = ("strided", "fixed")
PARTS = ("both", "local", "summary")


@dataclass(frozen=True)
class SparseTransformerConfig:
    """Options of sparse_transformer."""

    pattern: Literal["strided", "fixed"] = option(
        "strided", "strided = a window and every stride-th key; fixed = blocks and their last keys"
    )
    stride: int = option(128, "width of the window and step of the strided keys; tokens per block of fixed")
    summary: int = option(8, "last keys of each block that all later tokens see; of fixed alone")
    part: Literal["both", "local", "summary"] = option(
        "both", "both = one head over A1 and A2; local = A1 alone; summary = A2 alone"
    )

    def __post_init__(self) -> None:
        require_known("sparse_transformer", "pattern", self.pattern, PATTERNS)
        require_known("sparse_transformer", "part", self.part, PARTS)
        require(
            self.stride >= 1,
            f"sparse_transformer: stride must be 1 or more, got {self.stride}; use stride=128 for example",
        )
        require(
            self.pattern == "strided" or self.part == "local" or 1 <= self.summary <= self.stride,
            f"sparse_transformer: summary must lie in 1 .. stride={self.stride}, got {self.summary}; "
            "a fourth of the stride is common",
        )


class SparseTransformer(Mechanism):
    """Window or block, and strided or summary keys."""

    Config = SparseTransformerConfig
    config: SparseTransformerConfig
    card = Card(
        name="sparse_transformer",
        family="sparse, position-based (compound)",
        paper="Child et al. 2019, arXiv 1904.10509",
        formula="softmax over A1+A2: {i-l..i}, {l | i-j} (strided); {j//l = i//l}, {j mod l >= l-c} (fixed)",
        cost="time O(N (l + N / l) D) or O(N (l + N c / l) D), memory O(N)",
        summary="near keys, and every stride-th or the last ones of each block; causal only",
        supports=RANGES - {"bidirectional"},
        options=options_of(SparseTransformerConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """A1 and A2, each key in one of them."""
        n, m = q.shape[2], k.shape[2]
        i = scope.query_ranks(n, m, q.device)[:, None]  # [B, 1, N]
        j = scope.ranks_of_keys(m, q.device)[:, None]  # [B, 1, M]
        local, summary = self._strided(i, j) if self.config.pattern == "strided" else self._fixed(i, j)
        if self.config.part == "both":
            return Union((local, summary))
        return local if self.config.part == "local" else summary

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula as written."""
        n, m, size = q.shape[2], k.shape[2], self.config.stride
        i = scope.query_ranks(n, m, q.device)[:, None, :, None]
        j = scope.ranks_of_keys(m, q.device)[:, None, None, :]
        if self.config.pattern == "strided":
            near, far = j >= i - size, (i - j) % size == 0
        else:
            near, far = j // size == i // size, j % size >= size - self.config.summary
        shown = {"both": near | far, "local": near, "summary": far}[self.config.part]
        return masked_softmax(scaled_scores(q, k), shown & scope.visible(n, m, q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs, counted by distance (strided) or by key (fixed). Scores are never
        kept, as in full.
        """
        size, part = self.config.stride, self.config.part
        if self.config.pattern == "strided":
            steps = {"local": range(min(n, size + 1)), "summary": range(0, n, size)}
            both = {*steps["local"], *steps["summary"]} if part == "both" else steps[part]
            pairs = sum(n - step for step in both)
        else:
            is_summary = [j % size >= size - self.config.summary for j in range(n)]
            if part != "local":
                pairs = sum(n - j for j in range(n) if is_summary[j])
            if part != "summary":
                alone = [j for j in range(n) if part == "local" or not is_summary[j]]
                pairs = (pairs if part == "both" else 0) + sum(min(n, j - j % size + size) - j for j in alone)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * n * dim)

    def _strided(self, i: Tensor, j: Tensor) -> tuple[Windows, Windows]:
        """The nearest two of its residue class, 0 and `stride` steps away, a query sees in its window."""
        size = self.config.stride
        residues = Windows(
            before=None,
            query_segment=i % size,
            key_segment=j % size,
            segment_count=size,
            skip=2 if self.config.part == "both" else 0,
        )
        return Windows(before=size + 1), residues

    def _fixed(self, i: Tensor, j: Tensor) -> tuple[Windows, Windows]:
        """Summary keys of the own block are left to the summary."""
        size = self.config.stride
        is_summary = j % size >= size - self.config.summary
        blocks = Windows(
            before=size,
            query_segment=i // size,
            key_segment=j // size,
            key_is_seen=~is_summary if self.config.part == "both" else None,
        )
        return blocks, Windows(before=None, key_segment=is_summary.long() - 1)
