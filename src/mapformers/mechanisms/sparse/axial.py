"""Axial attention: on a grid, a query sees its own row, or its own column.

Paper    Ho, Kalchbrenner, Weissenborn, Salimans 2019, "Axial Attention in Multidimensional Transformers",
         arXiv 1912.12180, section 3.
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over floor(i / width) = floor(j / width) (row), or
         i mod width = j mod width (column), and j <= i if causal
Cost     time O(N width D) (row), O(N height D) (column); memory the same without D
Differs  Tokens are the pixels in raster order; the grid is counted in real tokens of the document. Rows and
         columns alternate by layers; both in one layer are heads of their own ("axial(axis=row):2 +
         axial(axis=column):2"), not a sum of two attentions. Masked rows and masked columns alone do not
         reach every earlier pixel; the image model with its two shifts is the block `axial_image`.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require_known
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Plan, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.sparse.grid import check_grid, require_sizes

AXES = ("row", "column")


@dataclass(frozen=True)
class AxialConfig:
    """Options of axial."""

    axis: Literal["row", "column"] = option("row", "what a query sees: its row or its column")
    width: int = option(32, "tokens per row of the grid")
    height: int = option(0, "rows of the grid, which refuses other lengths; 0 = any number")

    def __post_init__(self) -> None:
        require_known("axial", "axis", self.axis, AXES)
        require_sizes("axial", {"width": self.width}, 1)
        require_sizes("axial", {"height": self.height}, 0)


class Axial(Mechanism):
    """Attention along one axis of a grid."""

    Config = AxialConfig
    config: AxialConfig
    card = Card(
        name="axial",
        family="sparse, position-based (extended)",
        paper="Ho et al. 2019, arXiv 1912.12180",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over a row or a column of a grid, j <= i if causal",
        cost="time O(N width D) or O(N height D), memory O(N width) or O(N height)",
        summary="rows or columns of a grid",
        supports=RANGES,
        options=options_of(AxialConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = row or column. One row is alive at a time, all columns are."""
        config, n, m = self.config, q.shape[2], k.shape[2]
        queries, keys = scope.query_ranks(n, m, q.device), scope.ranks_of_keys(m, q.device)
        check_grid("axial", (config.height, config.width), keys, scope)
        rows, width = config.axis == "row", config.width
        most = width if rows else config.height or None
        return Windows(
            before=most if scope.causal else None,
            after=0 if scope.causal else None,
            query_segment=(queries // width if rows else queries % width)[:, None],
            key_segment=(keys // width if rows else keys % width)[:, None],
            segment_count=1 if rows else width,
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """A row by where it starts, a column by the distance to the query."""
        n, m = q.shape[2], k.shape[2]
        keys = scope.ranks_of_keys(m, q.device)
        check_grid("axial", (self.config.height, self.config.width), keys, scope)
        i, j = scope.query_ranks(n, m, q.device)[:, None, :, None], keys[:, None, None, :]
        start = i - i % self.config.width
        in_row = (j >= start) & (j < start + self.config.width)
        inside = in_row if self.config.axis == "row" else (i - j) % self.config.width == 0
        return masked_softmax(scaled_scores(q, k), inside & scope.visible(n, m, q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs inside rows or columns."""
        whole, rest = divmod(n, self.config.width)
        if self.config.axis == "row":
            sizes = [self.config.width] * whole + [rest]
        else:
            sizes = [whole + 1] * rest + [whole] * (self.config.width - rest)
        pairs = sum(size * (size + 1) / 2 if causal else size * size for size in sizes)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * pairs)
