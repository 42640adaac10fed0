"""Calls of the native kernel: tensors to the structure that the C++ source reads."""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mapformers.core.errors import require

POINTER, SIZE, PAIR, TRIPLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64 * 2, ctypes.c_int64 * 3
STORED = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
REFUSALS = (  # by the answer of the check
    "",
    "query_order must name every query once, got another order",
    "key_order must name every key once, got another order",
    "start and end must lie inside the places of the keys, got one outside",
)
LARGE = 2**22  # bytes of a result for which large pages are asked
CHUNKS_PER_THREAD = 4  # of the heads in the backward, where there are too few to keep all threads busy


class Call(ctypes.Structure):
    """The same structure, field by field, stands in range_attention.cpp."""

    _fields_ = [
        *((name, POINTER) for name in ("q", "k", "v", "out", "lse", "mass", "grad", "grad_lse")),
        *((name, POINTER) for name in ("delta", "dq", "dk", "dv")),
        *((name, POINTER) for name in ("query_order", "key_order", "start", "end")),
        *((name, POINTER) for name in ("query_position", "key_position", "table", "dtable")),
        *((f"{name}_stride", TRIPLE) for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv")),
        ("query_order_stride", TRIPLE),
        ("key_order_stride", PAIR),
        ("range_stride", TRIPLE),
        *((f"{name}_stride", SIZE) for name in ("query_position", "key_position", "table")),
        *((name, SIZE) for name in ("batch", "heads", "kv_heads", "queries", "keys", "places")),
        *((name, SIZE) for name in ("key_dim", "value_dim", "rounds", "table_length", "table_zero")),
        *((name, SIZE) for name in ("threads", "chunks", "shared_keys")),
        ("scale", ctypes.c_double),
    ]


class Nearest(ctypes.Structure):
    """The same structure, field by field, stands in nearest.cpp."""

    _fields_ = [
        *((name, POINTER) for name in ("x", "centroids", "bias", "best")),
        ("stride", TRIPLE),
        *((name, SIZE) for name in ("batch", "heads", "groups", "length", "dim")),
        *((name, SIZE) for name in ("clusters", "count", "threads")),
        ("shortest", ctypes.c_double),
    ]


class Rotate(ctypes.Structure):
    """The same structure, field by field, stands in rotate.cpp."""

    _fields_ = [
        *((name, POINTER) for name in ("x", "out", "cos", "sin")),
        *((f"{name}_stride", TRIPLE) for name in ("x", "out")),
        *((f"{name}_stride", PAIR) for name in ("cos", "sin")),
        *((name, SIZE) for name in ("batch", "heads", "length", "half", "threads", "back")),
    ]


@dataclass(frozen=True)
class Pattern:
    """Who sees whom, int32; see Ranges. shared_keys: a row of k may lie at several places."""

    query_order: Tensor | None  # [B | 1, H | 1, rounds, N] rows of q
    key_order: Tensor | None  # [B | 1, H | 1, places] rows of k
    start: Tensor  # [B | 1, H | 1, rounds, N]
    end: Tensor  # as start
    shared_keys: bool = False


@dataclass(frozen=True)
class DistanceTable:
    """values[h, clip(query_position - key_position + zero, 0, L - 1)] is added to the scores."""

    values: Tensor  # [H, L], in the dtype of the sums
    query_position: Tensor  # [B, N] int32
    key_position: Tensor  # [B, M] int32
    zero: int


@dataclass(frozen=True)
class Inputs:
    """q [B, H, N, D], k [B, G, M, D], v [B, G, M, E]; mass [B, H, N] log-weight of keys of value 0."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    scale: float
    threads: int
    mass: Tensor | None = None
    table: DistanceTable | None = None


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and results for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(library: ctypes.CDLL, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, E] and log-sum-exp [B, H, N], in the dtype of the sums."""
    q, v = inputs.q, inputs.v
    batch, heads, n, _ = q.shape
    dtype = sum_dtype(q.dtype)
    out = rows_of(library, (batch, heads, n, v.shape[-1]), dtype)
    lse = torch.empty(batch, heads, n, dtype=dtype)
    call, kept = _call(inputs)
    lanes = library.mapformers_lanes(STORED[q.dtype])
    require(
        q.shape[-1] % lanes == 0 and v.shape[-1] % lanes == 0,
        f"native ranges: head sizes must be multiples of {lanes}, got "
        f"{q.shape[-1]} and {v.shape[-1]}; pad them",
    )
    wrong = library.mapformers_range_check(ctypes.byref(call))
    require(wrong == 0, f"native ranges: {REFUSALS[wrong]}; make ranges with ranges_of")
    _point(call, "out", out)
    call.lse = lse.data_ptr()
    library.mapformers_range_forward(ctypes.byref(call), STORED[q.dtype])
    del kept
    return out, lse


@dataclass(frozen=True)
class Gradients:
    """Of Inputs; delta [B, H, N] = grad . out - grad_lse, from which that of the mass follows."""

    q: Tensor
    k: Tensor
    v: Tensor
    delta: Tensor
    table: Tensor | None


def backward(
    library: ctypes.CDLL,
    inputs: Inputs,
    attended: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor | None],
    table_grad: bool = False,
) -> Gradients:
    """Gradients from those of output and log-sum-exp; `attended` may be merged over several parts."""
    out, lse = attended
    grad, grad_lse = grads
    dtype = out.dtype
    call, kept = _call(inputs)
    dq = rows_of(library, inputs.q.shape, dtype)
    dk, dv = (rows_of(library, x.shape, dtype).zero_() for x in (inputs.k, inputs.v))
    delta = torch.empty_like(lse)
    grad = dense_rows(grad)
    for name, x in (("out", out), ("grad", grad), ("dq", dq), ("dk", dk), ("dv", dv)):
        _point(call, name, x)
    lse, grad_lse = lse.contiguous(), None if grad_lse is None else grad_lse.contiguous()
    call.lse, call.delta = lse.data_ptr(), delta.data_ptr()
    call.grad_lse = None if grad_lse is None else grad_lse.data_ptr()
    rows = inputs.k.shape[0] * inputs.k.shape[1]
    if not inputs.pattern.shared_keys and rows < CHUNKS_PER_THREAD // 2 * inputs.threads > 2:
        call.chunks = -(-CHUNKS_PER_THREAD * inputs.threads // rows)
    tables = None
    if table_grad:
        tables = torch.zeros(call.chunks, *inputs.q.shape[:2], call.table_length, dtype=dtype)
        call.dtable = tables.data_ptr()
    library.mapformers_range_backward(ctypes.byref(call), STORED[inputs.q.dtype])
    del kept
    return Gradients(dq, dk, dv, delta, None if tables is None else tables.sum((0, 1)))


def _call(inputs: Inputs) -> tuple[Call, list[Tensor]]:
    """The structure, and the tensors that must stay alive while it is used."""
    q, k, v = (dense_rows(x) for x in (inputs.q, inputs.k, inputs.v))
    pattern, table = inputs.pattern, inputs.table
    places = k.shape[2] if pattern.key_order is None else pattern.key_order.shape[-1]
    call = Call(
        batch=q.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        queries=q.shape[2],
        keys=k.shape[2],
        places=places,
        key_dim=q.shape[3],
        value_dim=v.shape[3],
        rounds=pattern.start.shape[2],
        threads=inputs.threads,
        chunks=1,
        shared_keys=int(pattern.shared_keys),
        scale=inputs.scale,
    )
    for name, x in (("q", q), ("k", k), ("v", v)):
        _point(call, name, x)
    start, end = pattern.start.contiguous(), pattern.end.contiguous()
    call.start, call.end, call.range_stride = start.data_ptr(), end.data_ptr(), TRIPLE(*_broadcast(start, 3))
    kept = [q, k, v, start, end]
    if pattern.query_order is not None:
        order = pattern.query_order.contiguous()
        call.query_order, call.query_order_stride = order.data_ptr(), TRIPLE(*_broadcast(order, 3))
        kept.append(order)
    if pattern.key_order is not None:
        order = pattern.key_order.contiguous()
        call.key_order, call.key_order_stride = order.data_ptr(), PAIR(*_broadcast(order, 2))
        kept.append(order)
    if inputs.mass is not None:
        mass = inputs.mass.contiguous()
        call.mass = mass.data_ptr()
        kept.append(mass)
    return call, kept if table is None else kept + _point_table(call, table)


def _point_table(call: Call, table: DistanceTable) -> list[Tensor]:
    """Point at the table; returns the tensors that must stay alive."""
    values, query, key = (
        x.contiguous() for x in (table.values.detach(), table.query_position, table.key_position)
    )
    call.table, call.table_stride, call.table_length = values.data_ptr(), values.stride(0), values.shape[1]
    call.query_position, call.key_position = query.data_ptr(), key.data_ptr()
    call.query_position_stride, call.key_position_stride = (_broadcast(x, 1)[0] for x in (query, key))
    call.table_zero = table.zero
    return [values, query, key]


def _point(call: Call, name: str, x: Tensor) -> None:
    setattr(call, name, x.data_ptr())
    setattr(call, f"{name}_stride", TRIPLE(*x.stride()[:3]))


def _broadcast(x: Tensor, count: int) -> list[int]:
    """The first `count` strides, 0 where all rows agree."""
    return [
        0 if size == 1 else stride for size, stride in zip(x.shape[:count], x.stride()[:count], strict=True)
    ]


def dense_rows(x: Tensor) -> Tensor:
    """Rows without gaps: the only thing that the kernel asks of a layout."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def rows_of(library: ctypes.CDLL, shape: Any, dtype: torch.dtype) -> Tensor:
    """[B, H, N, E], heads beside each other in memory, so that joining the heads copies nothing."""
    batch, heads, n, size = shape
    rows = torch.empty(batch, n, heads, size, dtype=dtype)
    if rows.nbytes >= LARGE:
        library.mapformers_large_pages(ctypes.c_void_p(rows.data_ptr()), ctypes.c_int64(rows.nbytes))
    return rows.transpose(1, 2)
