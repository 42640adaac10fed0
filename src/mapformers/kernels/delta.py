"""The delta rule: every key corrects what a matrix answers to it. In chunks, forward and backward by hand.

With W before a chunk of keys K, strengths b and values V: the corrections of the chunk are
U = (I + tril(diag(b) K K^T, -1))^-1 diag(b) (V - K W), then Y = Q W + tril(Q K^T) U, and W + K^T U goes on.
The backward keeps W before each stretch of chunks and computes the rest again. Memory is linear in N.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mapformers.core.attended import Attended
from mapformers.core.errors import require
from mapformers.core.plans import DeltaRule
from mapformers.core.scope import Scope
from mapformers.kernels.scan import STRETCH
from mapformers.kernels.scan_tile import CHUNK
from mapformers.kernels.softmax import at_least_float32

ROWS = 8  # that are worked on together: enough for the products, few enough for the memory


def delta_attend(plan: DeltaRule, v: Tensor, scope: Scope) -> Attended:
    """Output [B, H, N, E] of the plan for v [B, G, N, E]; the log-sum-exp is NaN, for there is none."""
    n, m = plan.phi_q.shape[2], plan.phi_k.shape[2]
    require(
        scope.causal and n == m and scope.query_start == 0,
        f"delta rule: needs causal=True and as many keys as queries, got causal={scope.causal}, {n} queries "
        f"and {m} keys; the keys are written in their order",
    )
    beta = plan.beta if scope.key_is_real is None else plan.beta.masked_fill(~scope.key_is_real[:, None], 0.0)
    parts = (plan.phi_q, plan.phi_k, beta, v)
    output = delta_rule(*parts)[0] if scope.segments is None else _by_document(parts, scope.segments)
    return Attended(output.to(v.dtype), output.new_full(output.shape[:3], float("nan")))


def delta_rule(
    phi_q: Tensor, phi_k: Tensor, beta: Tensor, v: Tensor, carried: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y[i] = W_i^T phi_q[i], where W_i = W + beta[i] phi_k[i] (v[i] - W^T phi_k[i])^T and W = W_{i-1}, and
    the last W.

    phi_q [B, H, N, F], phi_k [B, G, N, F], beta [B, G, N], v [B, G, N, E], y [B, H, N, E]; W [B, G, F, E]
    begins with `carried`, or 0. All in float32 or wider.
    """
    phi_q, phi_k, beta = (at_least_float32(x) for x in (phi_q, phi_k, beta))
    pairs = phi_k.shape[:2]
    if carried is None:
        carried = phi_k.new_zeros(*pairs, phi_k.shape[-1], v.shape[-1])
    queries = phi_q.unflatten(1, (pairs[1], -1)).flatten(0, 1)  # [B G, H / G, N, F]
    others = (x.flatten(0, 1) for x in (phi_k, beta.expand(phi_k.shape[:3]), v.to(phi_k.dtype), carried))
    y, after = _scan(queries, *others)
    return y.unflatten(0, pairs).flatten(1, 2), after.unflatten(0, pairs)


def _by_document(parts: tuple[Tensor, ...], segments: Tensor) -> Tensor:
    """Packed documents, each with a matrix of its own: the work is the same as for the whole."""
    outputs = []
    for b in range(parts[0].shape[0]):
        document = segments[min(b, segments.shape[0] - 1)]
        output = None
        for name in document.unique().tolist():
            members = (document == name).nonzero().squeeze(-1)
            y, _ = delta_rule(*(x[b : b + 1, :, members] for x in parts))
            if output is None:
                output = y.new_zeros(y.shape[1], len(document), y.shape[3])
            output = output.index_copy(1, members, y[0])
        assert output is not None
        outputs.append(output)
    return torch.stack(outputs)


@torch.compiler.disable  # a backward by hand, over tiles: nothing there is left to compile
def _scan(q: Tensor, k: Tensor, beta: Tensor, v: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):  # sums of many terms need float32
        y, after = _Scan.apply(q, k, beta, v, sums)
        return y, after


class _Tile:
    """Some rows and one stretch of chunks: q [p, chunks, g C, F] of the g queries of a key, k [p, chunks, C,
    F], v [p, chunks, C, E], beta [p, chunks, C, 1].
    """

    def __init__(self, q: Tensor, k: Tensor, beta: Tensor, v: Tensor) -> None:
        self.chunk = min(CHUNK, k.shape[1])
        self.k, self.beta, self.v = (self.cut(x) for x in (k, beta.unsqueeze(-1), v))
        self.q = self.cut_queries(q)
        seen = torch.ones(self.chunk, self.chunk, dtype=q.dtype, device=q.device).tril_()
        self.seen = seen.repeat(q.shape[1], 1)
        self.read = (self.q @ self.k.mT).mul_(self.seen)  # [p, chunks, g C, C]
        self.earlier = (self.k @ self.k.mT).tril_(-1)
        one = torch.eye(self.chunk, dtype=q.dtype, device=q.device).expand_as(self.earlier)
        self.inverse = torch.linalg.solve_triangular(
            self.beta * self.earlier, one, upper=False, unitriangular=True
        )

    def cut(self, x: Tensor) -> Tensor:
        """[p, n, ..] to [p, chunks, C, ..], zeros behind the last."""
        pad = -x.shape[1] % self.chunk
        return (F.pad(x, (0, 0, 0, pad)) if pad else x).unflatten(1, (-1, self.chunk))

    def cut_queries(self, x: Tensor) -> Tensor:
        """[p, g, n, ..] to [p, chunks, g C, ..]."""
        return self.cut(x.flatten(0, 1)).unflatten(0, x.shape[:2]).transpose(1, 2).flatten(2, 3)

    def join_queries(self, x: Tensor, n: int) -> Tensor:
        """Back to [p, g, n, ..]."""
        return x.unflatten(2, (-1, self.chunk)).transpose(1, 2).flatten(2, 3)[:, :, :n]

    def corrections(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U [p, chunks, C, E], W before each chunk [p, chunks, F, E], and W behind the last."""
        weighed = self.inverse * self.beta.mT
        own, answered = weighed @ self.v, weighed @ self.k
        found, before = [], []
        for i in range(self.k.shape[1]):
            before.append(sums)
            found.append(torch.baddbmm(own[:, i], answered[:, i], sums, alpha=-1))
            sums = torch.baddbmm(sums, self.k[:, i].mT, found[-1])
        return torch.stack(found, 1), torch.stack(before, 1), sums

    def forward(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """y as q, and W behind the tile."""
        u, before, after = self.corrections(sums)
        return (self.q @ before).add_(self.read @ u), after

    def backward(self, grad: Tensor, grad_after: Tensor, sums: Tensor) -> tuple[Tensor, ...]:
        """Gradients of q, k, beta, v and of W before, from those of y, cut, and of W behind."""
        u, before, _ = self.corrections(sums)
        own = self.inverse.mT @ (self.read.mT @ grad)
        through, asked = self.inverse.mT @ self.k, self.q.mT @ grad
        weighed = self.k * self.beta
        found, behind = [], []
        for i in reversed(range(self.k.shape[1])):  # the gradient of diag(b) (V - K W), chunk by chunk
            behind.append(grad_after)
            found.append(torch.baddbmm(own[:, i], through[:, i], grad_after))
            grad_after = torch.baddbmm(grad_after + asked[:, i], weighed[:, i].mT, found[-1], alpha=-1)
        solved, after = torch.stack(found[::-1], 1), torch.stack(behind[::-1], 1)
        grad_v = solved * self.beta
        missed = self.v - self.k @ before - self.earlier @ u  # what a key was corrected by, for beta = 1
        grad_read = (grad @ u.mT).mul_(self.seen)
        grad_earlier = (grad_v @ u.mT).tril_(-1)
        grad_k = grad_read.mT @ self.q + u @ after.mT - grad_v @ before.mT
        grad_k -= (grad_earlier + grad_earlier.mT) @ self.k
        grad_q = grad @ before.mT + grad_read @ self.k
        return grad_q, grad_k, (solved * missed).sum(-1), grad_v, grad_after


class _Scan(torch.autograd.Function):
    """All tiles: rows in groups, stretches one after another. q [P, g, N, F], k [P, N, F], beta [P, N], v [P,
    N, E], W [P, F, E].
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, beta: Tensor, v: Tensor, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, after = q.new_empty(*q.shape[:3], v.shape[-1]), torch.empty_like(sums)
        ctx.carried = []
        for rows, times in _tiles(k):
            ctx.carried.append([])
            before = sums[rows]
            for time in times:
                ctx.carried[-1].append(before)
                tile = _Tile(q[rows, :, time], k[rows, time], beta[rows, time], v[rows, time])
                found, before = tile.forward(before)
                y[rows, :, time] = tile.join_queries(found, time.stop - time.start)
            after[rows] = before
        ctx.save_for_backward(q, k, beta, v)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_after: Tensor) -> Any:
        q, k, beta, v = ctx.saved_tensors
        grad_q, *grads = (torch.empty_like(x) for x in (q, k, beta, v))
        grad_sums = torch.empty_like(grad_after)
        for (rows, times), carried in zip(_tiles(k), ctx.carried, strict=True):
            behind = grad_after[rows]
            for time, before in zip(reversed(times), reversed(carried), strict=True):
                tile = _Tile(q[rows, :, time], k[rows, time], beta[rows, time], v[rows, time])
                n = time.stop - time.start
                of_q, *found, behind = tile.backward(tile.cut_queries(grad[rows, :, time]), behind, before)
                grad_q[rows, :, time] = tile.join_queries(of_q, n)
                for whole, part in zip(grads, found, strict=True):
                    whole[rows, time] = part.flatten(1, 2)[:, :n]
            grad_sums[rows] = behind
        return grad_q, *grads, grad_sums


def _tiles(k: Tensor) -> list[tuple[slice, list[slice]]]:
    """Groups of rows and their stretches."""
    rows, n = k.shape[:2]
    height = max(ROWS, ROWS * STRETCH // max(n, 1))
    times = [slice(start, min(n, start + STRETCH)) for start in range(0, n, STRETCH)]
    return [(slice(first, min(rows, first + height)), times) for first in range(0, rows, height)]
