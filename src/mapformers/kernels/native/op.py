"""Range attention on the native kernel as torch operators, known to autograd and to torch.compile."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.errors import require
from mapformers.core.plans import Ranges
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.native import call
from mapformers.kernels.native.call import DistanceTable, Inputs, Pattern, sum_dtype
from mapformers.kernels.native.library import library, thread_count

TABLE_LIMIT = 4  # distances per token; beyond, positions have large gaps and the torch path adds the term


def distance_table(score: ScoreTerm, scope: Scope, q: Tensor, k: Tensor) -> DistanceTable | None:
    """The score term over all distances that occur; None where it has no such form, or they are too many."""
    query, key = scope.query_positions(q.shape[2], q.device), scope.positions_of_keys(k.shape[2], q.device)
    if not query.numel() or not key.numel():
        return None
    lowest, highest = int(query.min() - key.max()), int(query.max() - key.min())
    if highest - lowest > TABLE_LIMIT * (query.shape[1] + key.shape[1]):
        return None
    distance = torch.arange(lowest, highest + 1, device=q.device)
    values = score.by_distance(torch.arange(q.shape[1], device=q.device)[:, None], distance[None])
    if values is None:
        return None
    values = values.expand(q.shape[1], distance.numel())
    return DistanceTable(values, query.expand(q.shape[0], -1), key.expand(q.shape[0], -1), -lowest)


def native_range_attend(
    ranges: Ranges,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: DistanceTable | None = None,
) -> Attended:
    """Attention of q [B, H, N, D] over k [B, G, M, D], v [B, G, M, E] within the ranges.

    The table is added to the scores. Ranges with a log_weight are refused: the torch path takes them.
    """
    require(ranges.log_weight is None, "native ranges: take no log_weight, got one; use torch_kernels()")
    dim, value_dim = q.shape[-1], v.shape[-1]
    lanes = library().mapformers_lanes(call.STORED[q.dtype])
    dtype = sum_dtype(q.dtype)
    orders = [None if x is None else x.int() for x in (ranges.query_order, ranges.key_order)]
    out, lse = torch.ops.mapformers.range_attention(
        *(_padded(x, lanes) for x in (q, k, v)),
        *orders,
        ranges.start.int(),
        ranges.end.int(),
        None if ranges.mass is None else ranges.mass.to(dtype).expand(q.shape[:3]),
        None if table is None else table.values.to(dtype),
        None if table is None else table.query_position.int(),
        None if table is None else table.key_position.int(),
        0 if table is None else table.zero,
        ranges.key_copies,
        dim**-0.5,
    )
    return Attended(out[..., :value_dim].to(v.dtype), lse, "native")


def _padded(x: Tensor, lanes: int) -> Tensor:
    """Rows filled with zeros to whole vectors."""
    return x if x.shape[-1] % lanes == 0 else F.pad(x, (0, -x.shape[-1] % lanes))


@torch.library.custom_op("mapformers::range_attention", mutates_args=())
def range_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_order: Tensor | None,
    key_order: Tensor | None,
    start: Tensor,
    end: Tensor,
    mass: Tensor | None,
    table: Tensor | None,
    query_position: Tensor | None,
    key_position: Tensor | None,
    table_zero: int,
    key_copies: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, E] and log-sum-exp [B, H, N] in the dtype of the sums. Arguments: see Inputs."""
    flat = (q, k, v, query_order, key_order, start, end, mass, table, query_position, key_position)
    return call.forward(library(), _inputs(flat, table_zero, key_copies, scale))


@torch.library.custom_op("mapformers::range_attention_backward", mutates_args=())
def range_attention_backward(
    tensors: Sequence[Tensor | None],
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    grad_lse: Tensor | None,
    table_zero: int,
    key_copies: int,
    scale: float,
    table_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the delta of the rows, and the gradient of the table (empty if not asked for)."""
    inputs = _inputs(tuple(tensors), table_zero, key_copies, scale)
    found = call.backward(library(), inputs, (out, lse), (grad, grad_lse), table_grad)
    return found.q, found.k, found.v, found.delta, lse.new_empty(0) if found.table is None else found.table


def _inputs(tensors: tuple[Tensor | None, ...], table_zero: int, key_copies: int, scale: float) -> Inputs:
    q, k, v, query_order, key_order, start, end, mass, table, query_position, key_position = tensors
    q, k, v, start, end = (_there(x) for x in (q, k, v, start, end))
    if key_order is not None and key_copies > 1:
        key_order = key_order // key_copies
    pattern = Pattern(query_order, key_order, start, end, shared_keys=key_copies > 1)
    distances = None
    if table is not None:
        distances = DistanceTable(table, _there(query_position), _there(key_position), table_zero)
    return Inputs(q, k, v, pattern, scale, thread_count(), mass, distances)


def _there(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


@range_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    dtype = sum_dtype(q.dtype)
    out = q.new_empty(batch, n, heads, v.shape[-1], dtype=dtype).transpose(1, 2)
    return out, q.new_empty(batch, heads, n, dtype=dtype)


@range_attention_backward.register_fake
def _(tensors: Sequence[Tensor | None], out: Tensor, lse: Tensor, *others: Any) -> tuple[Tensor, ...]:
    q, k, v = map(_there, tensors[:3])
    table = tensors[8]
    dtable = torch.empty_like(table) if table is not None and others[-1] else lse.new_empty(0)
    rows = [x.new_empty(x.transpose(1, 2).shape, dtype=out.dtype).transpose(1, 2) for x in (q, k, v)]
    return (*rows, torch.empty_like(lse), dtable)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:11], *output)
    ctx.numbers = inputs[11:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *tensors, out, lse = ctx.saved_tensors
    q, k, v, mass = (tensors[i] for i in (0, 1, 2, 7))
    grad = torch.zeros_like(out) if grad is None else grad
    dq, dk, dv, delta, dtable = torch.ops.mapformers.range_attention_backward(
        tensors, out, lse, grad, grad_lse, *ctx.numbers, ctx.needs_input_grad[8]
    )
    dmass = None
    if mass is not None and ctx.needs_input_grad[7]:
        share = (mass - lse).exp()
        dmass = -torch.where(share.isfinite(), share, 0.0) * delta
    slopes = [dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)]
    return (*slopes, None, None, None, None, dmass, dtable if ctx.needs_input_grad[8] else None, *[None] * 5)


range_attention.register_autograd(_backward, setup_context=_save)
