"""Causal sums of outer products of features and values, chunk by chunk, forward and backward by hand.

What follows from one chunk to the next is a matrix of sums. A tile of some rows and a stretch of chunks is
worked on at a time, so that what is alive stays small enough for the cache; the backward computes the sums
inside a tile again. Memory is linear in N.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mapformers.kernels.native import scan as native
from mapformers.kernels.native.library import library, takes, thread_count
from mapformers.kernels.scan_tile import CHUNK, Tile

STRETCH = 16 * CHUNK
EXACT = (torch.float32, torch.float64)  # what the native kernel adds up in


class Marks(NamedTuple):
    """Weights of keys as logarithms [P, N]: key j counts exp(mark[j] + faded[i]) for query i >= j.

    faded starts anew in each stretch; the level of the sums carried into it stands for what was before: they
    count exp(level + faded[i]).
    """

    mark: Tensor
    faded: Tensor
    level: Tensor  # [P]


class Scanned(NamedTuple):
    """y [P, N, E], to be multiplied by exp(top[P, N] + faded) where there are marks; sums and level behind
    the last row.
    """

    y: Tensor
    top: Tensor | None
    sums: Tensor
    level: Tensor | None


def causal_sums(a: Tensor, b: Tensor, values: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y[i] = a[i] . (carried + sum_{j <= i} b[j] values[j]^T) and the sums behind the last row.

    a, b [B, H, N, F], values [B, H, N, E], y [B, H, N, E], sums [B, H, F, E].
    """
    if carried is None:
        carried = b.new_zeros(*b.shape[:2], b.shape[-1], values.shape[-1])
    scanned = scan(*(x.flatten(0, 1) for x in (a, b, values, carried)))
    return scanned.y.unflatten(0, a.shape[:2]), scanned.sums.unflatten(0, a.shape[:2])


@torch.compiler.disable  # a backward by hand, over tiles: nothing there is left to compile
def scan(
    a: Tensor,
    b: Tensor,
    values: Tensor,
    sums: Tensor,
    marks: Marks | None = None,
    exponents: Tensor | None = None,
) -> Scanned:
    """a, b [P, N, F], values [P, N, E], on top of sums [P, F, E], which marks.level belongs to.

    exponents [F, D]: a and b [P, N, D] stand for exp(exponents a) and exp(exponents b); needs marks.
    """
    with torch.autocast(a.device.type, enabled=False):  # sums of many terms need float32
        inputs = (a, b, values, sums, exponents, *(marks or (None, None, None)))
        taken = a.dtype in EXACT and a.numel() > 0 and takes(*(x for x in inputs if x is not None))
        return Scanned(*(_NativeScan if taken else _Scan).apply(*inputs))


class _Scan(torch.autograd.Function):
    """All tiles: rows in groups, stretches one after another."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        """a, b, values, sums, exponents and the marks, as `scan` has them; None where there are none."""
        a, b, values, sums, exponents, mark, faded, level = inputs
        y, after = torch.empty_like(values), torch.empty_like(sums)
        top, level_after = (None if x is None else torch.empty_like(x) for x in (mark, level))
        ctx.carried = []
        for rows, times in _tiles(a):
            ctx.carried.append([])
            before: Any = sums[rows]
            height: Any = None if level is None else level[rows]
            for time in times:
                tile = Tile((a[rows, time], b[rows, time], values[rows, time]), before, exponents)
                ctx.carried[-1].append((before, height))
                if top is not None:
                    top[rows, time] = tile.weigh(mark[rows, time], height)
                    height = top[rows, time.stop - 1] + faded[rows, time.stop - 1]
                found, before = tile.forward()
                y[rows, time] = found.flatten(1, 2)[:, : time.stop - time.start]
            after[rows] = before
            if level_after is not None:
                level_after[rows] = height
        ctx.save_for_backward(a, b, values, exponents, mark)
        if top is not None:
            ctx.mark_non_differentiable(top)
        return y, top, after, level_after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any, grad_after: Tensor, grad_level: Any) -> Any:
        """Stretches from the last to the first, each from what was carried into it."""
        a, b, values, exponents, mark = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (a, b, values)]
        grad_sums = torch.empty_like(grad_after)
        # A key's mark weighs its values, so its gradient is their product with theirs.
        on_mark, on_level = (None if mark is None else torch.empty_like(x) for x in (mark, grad_level))
        on_faded = None if mark is None else torch.zeros_like(mark)
        for (rows, times), carried in zip(_tiles(a), ctx.carried, strict=True):
            behind = grad_after[rows]
            of_height: Any = None if mark is None else grad_level[rows]
            for time, (before, height) in zip(reversed(times), reversed(carried), strict=True):
                tile = Tile((a[rows, time], b[rows, time], values[rows, time]), before, exponents)
                if on_faded is not None:
                    tile.weigh(mark[rows, time], height)
                    on_faded[rows, time.stop - 1] = of_height
                found = tile.backward(grad[rows, time], behind)
                n, behind = time.stop - time.start, found[3]
                for whole, part in zip(grads, found[:3], strict=True):
                    whole[rows, time] = part.flatten(1, 2)[:, :n]
                if on_mark is not None:
                    on_mark[rows, time] = (found[2] * tile.values).sum(-1).flatten(1, 2)[:, :n]
                    of_height = (behind * before).sum((-1, -2))
            grad_sums[rows] = behind
            if on_level is not None:
                on_level[rows] = of_height
        return *grads, grad_sums, None, on_mark, on_faded, on_level


class _NativeScan(torch.autograd.Function):
    """All at once on the native kernel, which keeps the sums before every stretch for the backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        """As _Scan."""
        dense = native.ScanInputs(*inputs).dense()
        ctx.setting = native.Setting(STRETCH, thread_count())
        found = native.forward(library(), dense, ctx.setting)
        ctx.save_for_backward(*dense.tensors(), found.carried, found.levels)
        if found.top is not None:
            ctx.mark_non_differentiable(found.top)
        return found.y, found.top, found.after, found.level_after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any, grad_after: Tensor, grad_level: Any) -> Any:
        """As _Scan."""
        *inputs, carried, levels = ctx.saved_tensors
        grads = (grad, grad_after, grad_level)
        found = native.backward(library(), native.ScanInputs(*inputs), ctx.setting, (carried, levels), grads)
        return tuple(found.tensors())


def _tiles(x: Tensor) -> list[tuple[slice, list[slice]]]:
    """Rows and their stretches; a tile has about STRETCH tokens."""
    rows, n = x.shape[:2]
    height = max(1, STRETCH // max(n, 1))
    times = [slice(start, min(n, start + STRETCH)) for start in range(0, n, STRETCH)]
    return [(slice(first, min(rows, first + height)), times) for first in range(0, rows, height)]
