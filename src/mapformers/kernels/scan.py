"""Causal sums of outer products of features and values, chunk by chunk, forward and backward by hand.

What follows from one chunk to the next is a matrix of sums. A tile of some rows and a stretch of chunks is
worked on at a time, so that what is alive stays small enough for the cache; the backward computes the sums
inside a tile again. Memory is linear in N.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mapformers.kernels.exponential import LOG2_E, exponential, exponential_grad

CHUNK = 64
STRETCH = 16 * CHUNK


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
        return Scanned(*_Scan.apply(a, b, values, sums, exponents, *(marks or (None, None, None))))


class _Tile:
    """Some rows and one stretch of chunks: [p, chunks, CHUNK, ..]."""

    def __init__(self, rows: tuple[Tensor, Tensor, Tensor], sums: Tensor, exponents: Tensor | None) -> None:
        self.a, self.b, self.values = map(_chunked, rows)
        self.sums, self.exponents = sums, exponents
        self.height: Tensor | None = None  # [p, chunks, CHUNK] log of what features of keys are divided by
        if exponents is not None:
            self.a, _ = exponential(self.a, exponents)  # a query's own divisor cancels
            self.b, self.height = exponential(self.b, exponents)
        self.share: Tensor | None = None  # [p, chunks, CHUNK, CHUNK] of a key for a query of its chunk
        self.read: Tensor | None = None  # [p, chunks, CHUNK, 1] of what was before the chunk, for a query
        self.kept: Tensor | None = None  # [p, chunks, CHUNK, 1] of a key in the sums behind its chunk
        self.bring: Tensor | None = None  # [p, chunks + 1, chunks + 1] of earlier chunks in later sums

    def weigh(self, mark: Tensor, level: Tensor) -> Tensor:
        """Set the shares. Levels are running maxima, so that no share exceeds 1 and no later key changes
        what is before it. Returns them, [p, n].
        """
        n = mark.shape[-1]
        mark = mark if self.height is None else mark + self.height.flatten(1)[:, :n]
        top = torch.maximum(mark.cummax(-1).values, level[:, None])
        pad = -n % CHUNK
        marks = F.pad(mark, (0, pad), value=float("-inf")).unflatten(-1, (-1, CHUNK))
        tops = torch.cat([top, top[:, -1:].expand(-1, pad)], -1).unflatten(-1, (-1, CHUNK))
        levels = torch.cat([level[:, None], tops[..., -1]], -1)  # [p, chunks + 1]
        self.share = (marks.unsqueeze(-2) - tops.unsqueeze(-1)).mul_(LOG2_E).exp2_().tril_()
        self.read = (levels[:, :-1, None] - tops).exp_().unsqueeze(-1)
        self.kept = (marks - levels[:, 1:, None]).exp_().unsqueeze(-1)
        self.bring = (levels[:, None, :] - levels[:, :, None]).clamp_(max=0).exp_().tril_()
        return top

    def sums_upto(self) -> Tensor:
        """[p, chunks + 1, E, F] the sums before each chunk, and behind the last."""
        rows, chunks, _, features = self.b.shape
        parts = self.b.new_empty(rows, chunks + 1, self.values.shape[-1], features)
        parts[:, 0] = self.sums.mT
        torch.matmul(self.kept_values().mT, self.b, out=parts[:, 1:])
        if self.bring is None:
            return parts.cumsum_(1)
        return (self.bring @ parts.flatten(2)).view_as(parts)

    def kept_values(self) -> Tensor:
        """[p, chunks, CHUNK, E] values with the share of their keys in the sums behind the chunk."""
        return self.values if self.kept is None else self.values * self.kept

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """x y^T inside each chunk, times the shares."""
        product = x @ y.mT
        return product.tril_() if self.share is None else product.mul_(self.share)

    def forward(self) -> tuple[Tensor, Tensor]:
        """y and the sums behind the tile."""
        upto = self.sums_upto()
        y = self.a @ upto[:, :-1].mT
        y = y if self.read is None else y.mul_(self.read)
        return y.add_(self.pairs(self.a, self.b) @ self.values), upto[:, -1].mT

    def backward(self, grad: Tensor, grad_sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of a, b, values and the sums before, from those of y [p, n, E] and the sums behind."""
        grad = _chunked(grad)
        read = grad if self.read is None else grad * self.read
        shared = self.pairs(grad, self.values)
        grad_a = (read @ self.sums_upto()[:, :-1]).add_(shared @ self.b)
        after = torch.cat([read.mT @ self.a, grad_sums.mT.unsqueeze(1)], 1)  # [p, chunks + 1, E, F]
        if self.bring is None:
            before = after.flip(1).cumsum_(1).flip(1)
        else:
            before = (self.bring.mT @ after.flatten(2)).view_as(after)
        own = before[:, 1:]
        grad_b = (self.kept_values() @ own).add_(shared.mT @ self.a)
        grad_values = self.b @ own.mT
        grad_values = grad_values if self.kept is None else grad_values.mul_(self.kept)
        grad_values.add_(self.pairs(self.a, self.b).mT @ grad)
        if self.exponents is not None:
            grad_a = exponential_grad(grad_a, self.a, self.exponents)
            grad_b = exponential_grad(grad_b, self.b, self.exponents)
        return grad_a, grad_b, grad_values, before[:, 0].mT


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
                tile = _Tile((a[rows, time], b[rows, time], values[rows, time]), before, exponents)
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
                tile = _Tile((a[rows, time], b[rows, time], values[rows, time]), before, exponents)
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


def _tiles(x: Tensor) -> list[tuple[slice, list[slice]]]:
    """Rows and their stretches; a tile has about STRETCH tokens."""
    rows, n = x.shape[:2]
    height = max(1, STRETCH // max(n, 1))
    times = [slice(start, min(n, start + STRETCH)) for start in range(0, n, STRETCH)]
    return [(slice(first, min(rows, first + height)), times) for first in range(0, rows, height)]


def _chunked(x: Tensor) -> Tensor:
    """[p, n, ..] to [p, chunks, CHUNK, ..], zeros behind the last."""
    pad = -x.shape[1] % CHUNK
    return (F.pad(x, (0, 0, 0, pad)) if pad else x).unflatten(1, (-1, CHUNK))
