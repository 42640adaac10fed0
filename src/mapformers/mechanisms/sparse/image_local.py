"""Local attention on images: a block of pixels sees itself, and the pixels around that come before it.

Paper    Parmar et al. 2018, "Image Transformer", arXiv 1802.05751, section 3.3 (1-D and 2-D local attention).
Formula  w[i, j] = softmax_j(q_i . k_j / sqrt(D)) over the memory block of the query block of i: it extended
         by memory_height rows above and memory_width columns left and right; and j <= i if causal
Cost     time O(N M D), memory O(N M), M = (query_height + memory_height) (query_width + 2 memory_width)
Differs  Tokens must come in generation order: block by block in raster order, raster order inside a block
         (`generation_order` in grid.py makes it of raster order, `raster_order` undoes it). Then "earlier" is
         "of smaller index", as everywhere here. A raster mask would leak: a pixel above and to the right of
         the block comes earlier in raster order and is generated later. Without causality the memory block
         is the same; nothing is below it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.card import RANGES, Card, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Plan, Windows
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.sparse.grid import (
    Blocks,
    cells,
    check_grid,
    generation_order,
    require_sizes,
    served_blocks,
)


@dataclass(frozen=True)
class ImageLocalConfig:
    """Options of image_local."""

    width: int = option(32, "tokens per row (pixels times channels); 0 = one row without end: the 1-D form")
    height: int = option(0, "rows of the image, which refuses other lengths; 0 = any number, in whole bands")
    query_height: int = option(8, "rows of a query block")
    query_width: int = option(8, "columns of a query block")
    memory_height: int = option(8, "rows above its query block that a memory block adds")
    memory_width: int = option(8, "columns that a memory block adds on either side")

    def __post_init__(self) -> None:
        least_one = {"query_height": self.query_height, "query_width": self.query_width}
        require_sizes("image_local", least_one, 1)
        others = ("width", "height", "memory_height", "memory_width")
        require_sizes("image_local", {name: getattr(self, name) for name in others}, 0)
        given = (self.height, self.query_height, self.memory_height)
        require(
            self.width > 0 or given == (0, 1, 0),
            "image_local: width=0 is one row: height, query_height and memory_height must be 0, 1 and 0, got "
            f"{given}; give the width of the image",
        )

    @property
    def blocks(self) -> Blocks:
        """The grid and its query blocks."""
        return Blocks(self.height, self.width, self.query_height, self.query_width)

    @property
    def memory(self) -> tuple[int, int]:
        """Rows above and columns aside."""
        return self.memory_height, self.memory_width


class ImageLocal(Mechanism):
    """Attention inside memory blocks of an image."""

    Config = ImageLocalConfig
    config: ImageLocalConfig
    card = Card(
        name="image_local",
        family="sparse, position-based (extended)",
        paper="Parmar et al. 2018, arXiv 1802.05751",
        formula="w[i,j] = softmax_j(q_i.k_j / sqrt(D)) over the memory of its block, j <= i as generated",
        cost="time O(N M D), memory O(N M), M = pixels of a memory block",
        summary="blocks of an image see themselves and what is around",
        supports=RANGES,
        options=options_of(ImageLocalConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Segment = query block. A query lies in its own; a key in every one in whose memory it is."""
        config, n, m = self.config, q.shape[2], k.shape[2]
        keys = scope.ranks_of_keys(m, q.device)
        check_grid("image_local", (config.height, config.blocks.columns), keys, scope)
        at = cells(scope.query_ranks(n, m, q.device), config.blocks)
        left = min(config.blocks.columns, config.query_width + config.memory_width)
        above = min(config.blocks.columns, config.query_width + 2 * config.memory_width)
        most = config.query_height * left + config.memory_height * above
        bands, sides = config.blocks.reach(config.memory)
        alive = bands * config.blocks.per_band + sides + 1  # from the current block to the last it serves
        return Windows(
            before=most if scope.causal else None,
            after=0 if scope.causal else None,
            query_segment=(at.band * config.blocks.per_band + at.place)[:, None],
            key_segment=served_blocks(keys, config.blocks, config.memory, scope.causal)[:, None],
            segment_count=alive if scope.causal else 1,
        )

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The memory block of each query as a rectangle of the grid."""
        config, n, m = self.config, q.shape[2], k.shape[2]
        keys = scope.ranks_of_keys(m, q.device)
        check_grid("image_local", (config.height, config.blocks.columns), keys, scope)
        width = config.width or int(keys.max()) + 1
        band = config.query_height * width
        height = config.height or -(-(int(keys.max()) + 1) // band) * config.query_height
        raster = generation_order(height, width, config.query_height, config.query_width).to(q.device)
        i = raster[scope.query_ranks(n, m, q.device)][:, None, :, None]
        j = raster[keys][:, None, None, :]
        row, column = i // width, i % width
        top, first = row - row % config.query_height, column - column % config.query_width
        last = first + config.query_width + config.memory_width
        inside = (j // width >= top - config.memory_height) & (j // width < top + config.query_height)
        inside = inside & (j % width >= first - config.memory_width) & (j % width < last)
        return masked_softmax(scaled_scores(q, k), inside & scope.visible(n, m, q.device))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Scores and values of the pairs inside memory blocks."""
        ranks = torch.arange(n, device="cpu")
        at = cells(ranks, self.config.blocks)
        own = at.band * self.config.blocks.per_band + at.place
        served = served_blocks(ranks, self.config.blocks, self.config.memory, causal)
        counted = served != own[:, None] if causal else served >= 0
        keys = served[counted & (served >= 0)].bincount(minlength=int(own.max()) + 1)
        pairs = int(keys[own].sum()) + (int((at.nth + 1).sum()) if causal else 0)
        return Cost(flops=4.0 * batch * heads * pairs * dim, bytes=8.0 * batch * heads * pairs)
