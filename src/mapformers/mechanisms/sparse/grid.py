"""Images as sequences: the order in which blocks generate their pixels, and grids that do not match."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require
from mapformers.core.scope import Scope

ENDLESS = 2**40  # the width of a grid of one row without end


class Blocks(NamedTuple):
    """A grid cut into query blocks. height 0 = any number of rows; width 0 = one row without end.

    Blocks at the right and lower borders are smaller where the sizes do not divide.
    """

    height: int
    width: int
    query_height: int
    query_width: int

    @property
    def columns(self) -> int:
        """Pixels per row."""
        return self.width or ENDLESS

    @property
    def per_band(self) -> int:
        """Blocks side by side; a band is a row of blocks."""
        return -(-self.columns // self.query_width)

    def reach(self, memory: tuple[int, int]) -> tuple[int, int]:
        """How many bands below, and how many blocks to each side, a pixel is remembered."""
        return -(-memory[0] // self.query_height), -(-memory[1] // self.query_width)


class Cells(NamedTuple):
    """Where pixels lie: row and column in the grid, band and place of their block, nth inside the block."""

    row: Tensor
    column: Tensor
    band: Tensor
    place: Tensor
    nth: Tensor


def cells(ranks: Tensor, blocks: Blocks) -> Cells:
    """The pixels generated at these ranks: block by block in raster order, raster order inside a block."""
    height, width, query_height, query_width = blocks
    width = blocks.columns
    band = ranks // (query_height * width)
    inside = ranks - band * query_height * width
    rows = torch.full_like(ranks, query_height)
    if height:
        rows = (height - band * query_height).clamp(1, query_height)  # the last band may be lower
    place = inside // (rows * query_width)
    nth = inside - place * rows * query_width
    across = (width - place * query_width).clamp(max=query_width)  # the last block may be narrower
    row = band * query_height + nth // across
    return Cells(row, place * query_width + nth % across, band, place, nth)


def served_blocks(ranks: Tensor, blocks: Blocks, memory: tuple[int, int], causal: bool) -> Tensor:
    """[.., copies] the query blocks in whose memory each pixel of ranks [..] lies; -1 = no further one.

    A memory block is its query block, memory[0] rows above and memory[1] columns left and right. If causal,
    without the blocks that are done before the pixel is there.
    """
    at, size = cells(ranks, blocks), blocks.query_width
    bands, sides = blocks.reach(memory)
    served = []
    for down in range(bands + 1):
        for aside in range(0 if causal and down == 0 else -sides, sides + 1):
            band, place = at.band + down, at.place + aside
            inside = (place >= 0) & (place < blocks.per_band)
            inside = inside & (at.column >= place * size - memory[1])
            inside = inside & (at.column < (place + 1) * size + memory[1])
            if down:
                inside = inside & (at.row >= band * blocks.query_height - memory[0])
            served.append(torch.where(inside, band * blocks.per_band + place, -1))
    return torch.stack(served, -1)


def generation_order(height: int, width: int, query_height: int, query_width: int) -> Tensor:
    """[height * width] raster index of every pixel in generation order: x[:, order] feeds an image x
    [B, height * width, dim] in raster order to `image_local`.
    """
    raster = torch.arange(height * width)
    row, column = raster // width, raster % width
    keys = (column % query_width, row % query_height, column // query_width, row // query_height)
    order = raster
    for key in keys:  # least important first
        order = order[key[order].argsort(stable=True)]
    return order


def raster_order(height: int, width: int, query_height: int, query_width: int) -> Tensor:
    """The inverse of `generation_order`: y[:, inverse] brings outputs back into raster order."""
    return generation_order(height, width, query_height, query_width).argsort()


def check_grid(name: str, grid: tuple[int, int], ranks: Tensor, scope: Scope) -> None:
    """Refuse tokens that do not fill a grid of (height, width); while it is causal they may be fewer.

    A height of 0 takes any number. ranks [B or 1, N] among the real tokens of the document.
    """
    height, width = grid
    if height == 0:
        return
    count = int(ranks.max()) + 1
    require(
        count <= height * width if scope.causal else count == height * width,
        f"{name}: height={height} and width={width} must {'hold' if scope.causal else 'match'} the tokens of "
        f"an image, got {count} tokens for {height * width} places; give the true grid, or height=0 for any "
        "number of rows",
    )


def require_sizes(name: str, sizes: dict[str, int], least: int) -> None:
    """Refuse options of a grid that are below `least`."""
    for option, value in sizes.items():
        require(value >= least, f"{name}: {option} must be {least} or more, got {value}; use {max(least, 8)}")
