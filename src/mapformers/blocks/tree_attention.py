"""Attention of the leaves of a tree to the nodes that each sees, gathered for some leaves at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mapformers.kernels.softmax import at_least_float32, default_scale, softmax_attend


class Gather(NamedTuple):
    """node [N, F] int, the nodes that each query sees, negative = none; real [B, nodes] bool or None; the
    parts in which queries are run.
    """

    node: Tensor
    real: Tensor | None
    parts: list[slice]

    def of(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The nodes [n, F] of some queries, and which of them there are, [B or 1, 1, n, F]."""
        index, there = self.node[rows].clamp(min=0), (self.node[rows] >= 0)[None, None]
        return index, there if self.real is None else there & self.real[:, None, index]


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, edge_keys: Tensor, gather: Gather
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, N, D] over the nodes k, v [B, H, nodes, D] of each; edge_keys [F, D] are added to the keys.

    Also k and v once more, for those who read them as well: their gradients then grow in one place.
    """
    output, k, v = _Gathered.apply(q, k, v, edge_keys, gather)
    return output, k, v


class _Gathered(torch.autograd.Function):
    """Queries q [B, H, N, D] over the keys and values of their nodes [N, F], some queries at a time.

    The backward gathers again, so that gathered keys are not all alive at once, and adds into one gradient of
    all nodes: one for each part would make it quadratic.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        edge_keys: Tensor,
        gather: Gather,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, edge_keys)
        ctx.gather = gather
        output = torch.empty_like(
            q
        )  # filled in place: small results between the large ones would pin the heap
        for rows in gather.parts:
            index, seen = gather.of(rows)
            output[:, :, rows] = _attended(q[:, :, rows], k[:, :, index], v[:, :, index], edge_keys, seen)
        return output, k.view_as(k), v.view_as(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, edge_keys = ctx.saved_tensors
        dq, de = torch.zeros_like(q), torch.zeros_like(edge_keys)
        # What came for k and v was made for this place alone, so the rest is added in it: two tensors less.
        dk, dv = (x.clone() if 0 in x.stride() else x for x in (dk, dv))
        for rows in ctx.gather.parts:
            index, seen = ctx.gather.of(rows)
            leaves = [q[:, :, rows], k[:, :, index], v[:, :, index], edge_keys]
            leaves = [x.detach().requires_grad_() for x in leaves]
            with torch.enable_grad():
                output = _attended(*leaves, seen)
            part_q, part_k, part_v, part_e = torch.autograd.grad(output, leaves, grad[:, :, rows])
            dq[:, :, rows] = part_q
            de += part_e
            for whole, part in ((dk, part_k), (dv, part_v)):
                whole.index_add_(2, index.flatten(), part.flatten(2, 3))
        return dq, dk, dv, de, None


def _attended(q: Tensor, k: Tensor, v: Tensor, edge_keys: Tensor, seen: Tensor) -> Tensor:
    """q [B, H, n, D] over its own k, v [B, H, n, F, D]: [B, H, n, D]."""
    content = (q.unsqueeze(3) @ k.transpose(-1, -2)).squeeze(3)  # [B, H, n, F]
    scores = at_least_float32(content + q @ edge_keys.T).unsqueeze(3) * default_scale(q.shape[-1])
    return softmax_attend(scores, seen.unsqueeze(3), v).output.squeeze(3)
