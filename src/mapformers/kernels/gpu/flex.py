"""Range attention by FlexAttention: for every round one fused kernel, made by torch.compile.

Untested on a GPU: the tests run it unfused on the CPU, where torch makes the scores of all pairs. Nothing
made here has that size: the table of blocks is counted from the ends of the ranges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.attended import Attended, merge
from mapformers.core.plans import Ranges
from mapformers.core.scope import Scope
from mapformers.core.score import Pairs, ScoreTerm
from mapformers.kernels.gpu.switch import may_run_here
from mapformers.kernels.softmax import default_scale

if TYPE_CHECKING:  # the import costs more than a second, so it waits for the first call
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # queries, and keys, of a block: what FlexAttention takes by default
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALLEST_DIM = 16  # of the matrix products on a GPU
MOST_KINDS = 64  # of inputs: dtypes, head sizes, kinds of plans and score terms; lengths of one kind share

Lookup = Callable[[Tensor, Tensor, Tensor], Tensor]


def flex_can_run(*qkv: Tensor) -> bool:
    """Whether FlexAttention runs here and now, and takes these q, k, v: one dtype, on a GPU."""
    dtype = qkv[0].dtype
    return (
        dtype in DTYPES
        and all(x.is_cuda and x.dtype == dtype and x.numel() > 0 for x in qkv)
        and all(x.shape[-1] >= SMALLEST_DIM for x in qkv)
        and may_run_here()
    )


def flex_range_attend(
    ranges: Ranges, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """q [B, H, N, D] over k [B, G, M, D], v [B, G, M, E] within the ranges, rounds and mass merged.

    Untested on a GPU. What torch.compile refuses there runs inside torch_kernels().
    """
    m = k.shape[2]
    rows = _key_rows(ranges, m, k.device)
    k, v = in_order(k, rows), in_order(v, rows)  # [B, G or H, S, D], [B, G or H, S, E]
    query_positions = scope.query_positions(q.shape[2], q.device)
    key_positions = scope.positions_of_keys(m, k.device)
    parts = []
    for i in range(ranges.rounds):
        one = ranges.round(i)
        order = None if one.query_order is None else one.query_order[:, :, 0]
        add = None
        if score is not None:
            places = PlacesOf(
                _placed(query_positions, order),
                _placed(key_positions, rows),
                _placed(torch.arange(q.shape[2], device=q.device)[None], order),
                _placed(torch.arange(m, device=k.device)[None], rows),
            )
            add = score_mod_of(score, places)
        mask = block_mask_of(one.start[:, :, 0], one.end[:, :, 0], k.shape[2])
        output, lse = _attend(in_order(q, order), k, v, mask, add)
        if order is not None:
            output, lse = (in_order(x, _inverse(order)) for x in (output, lse))
        lse = lse.squeeze(3)  # [B, H, N]
        if one.log_weight is not None:
            lse = lse + one.log_weight[..., 0]
        parts.append(Attended(output, lse, "flex"))
    return parts[0] if len(parts) == 1 and ranges.mass is None else merge(parts, ranges.mass)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, add: Callable[..., Tensor] | None
) -> tuple[Tensor, Tensor]:
    """One call of FlexAttention on ordered rows: output [B, H, N, E], natural log-sum-exp [B, H, N, 1]."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    attend: Any = _compiled() if q.is_cuda else flex_attention
    output, sums = attend(
        q,
        k,
        v,
        score_mod=add,
        block_mask=mask,
        scale=default_scale(q.shape[-1]),
        enable_gqa=k.shape[1] != q.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return output, sums.lse.unsqueeze(3)


@functools.cache
def _compiled() -> Callable[..., Any]:
    """FlexAttention, fused: torch makes a kernel for every kind of input on first use, and keeps it.

    Beyond the limit torch would go on unfused, with the scores of all pairs in memory; fullgraph makes that
    an error.
    """
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(  # type: ignore[call-overload]  # torch's own stub lacks the last two
        flex_attention, fullgraph=True, recompile_limit=MOST_KINDS, isolate_recompiles=True
    )


# Rows in the orders of the ranges


def in_order(x: Tensor, rows: Tensor | None) -> Tensor:
    """The rows [B or 1, H or 1, P] of x [B or 1, G, M, D]: [B, G or H, P, D]. None = all, as they are."""
    if rows is None:
        return x
    batch, heads = (max(sizes) for sizes in zip(x.shape[:2], rows.shape[:2], strict=True))
    x = x.unsqueeze(2).expand(batch, -1, heads // x.shape[1], -1, -1)  # [B, G, H / G, M, D]
    index = rows.expand(batch, heads, -1).unflatten(1, x.shape[1:3]).unsqueeze(-1)  # [B, G, H / G, P, 1]
    return x.gather(3, index.expand(*index.shape[:-1], x.shape[-1])).flatten(1, 2)


def _key_rows(ranges: Ranges, m: int, device: torch.device) -> Tensor | None:
    """[B or 1, H or 1, S] row of k at every ordered place; None = its own."""
    if ranges.key_copies == 1:
        return ranges.key_order
    order = ranges.key_order
    if order is None:
        order = torch.arange(m * ranges.key_copies, device=device)[None, None]
    return order // ranges.key_copies


def _inverse(order: Tensor) -> Tensor:
    """The order that undoes `order` [B or 1, H or 1, N]."""
    return torch.zeros_like(order).scatter(
        2, order, torch.arange(order.shape[2], device=order.device).expand_as(order)
    )


def _placed(positions: Tensor, rows: Tensor | None) -> Tensor:
    """True positions [B or 1, N] at the ordered places: [B or 1, H or 1, P]."""
    return in_order(positions[:, None, :, None], rows).squeeze(3)


# What FlexAttention asks for pair by pair


def _lookup(table: Tensor) -> Lookup:
    """Reads [B or 1, H or 1, P] by the index of batch row, head and place."""
    by_batch, by_head = (int(size > 1) for size in table.shape[:2])
    return lambda batch, head, place: table[batch * by_batch, head * by_head, place]


def range_mask(start: Tensor, end: Tensor) -> Callable[..., Tensor]:
    """Whether an ordered query sees an ordered key; start, end [B or 1, H or 1, N]."""
    start_of, end_of = _lookup(start), _lookup(end)

    def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (start_of(batch, head, query) <= key) & (key < end_of(batch, head, query))

    return inside


class PlacesOf(NamedTuple):
    """True positions and rows at ordered places, of queries and keys [B or 1, H or 1, P]."""

    query: Tensor
    key: Tensor
    query_row: Tensor
    key_row: Tensor


def score_mod_of(score: ScoreTerm, places: PlacesOf) -> Callable[..., Tensor]:
    """Adds the term at the true positions of ordered places."""
    query_of, key_of, query_row_of, key_row_of = map(_lookup, places)

    def add(value: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        pairs = Pairs(
            batch,
            head,
            query_of(batch, head, query),
            key_of(batch, head, key),
            query_row_of(batch, head, query),
            key_row_of(batch, head, key),
        )
        return value + score.tile(pairs).to(value.dtype)

    return add


# Which blocks of keys a block of queries meets


def block_mask_of(start: Tensor, end: Tensor, key_places: int) -> BlockMask:
    """The table of blocks for ranges start, end [B or 1, H or 1, N] over `key_places` ordered keys.

    A block is full where all its queries see all its keys: no pair of it is looked at. As torch has it,
    blocks that stand out over the last query or key are never full.
    """
    from torch.nn.attention.flex_attention import BlockMask

    n, blocks = start.shape[2], -(-key_places // BLOCK)
    sees = start < end
    start_of, end_of = start.where(sees, 0).int(), end.where(sees, 0).int()
    touching = _counted(start_of // BLOCK, -(-end_of // BLOCK), blocks)  # [B or 1, H or 1, nq, nk]
    filling = _counted(-(-start_of // BLOCK), end_of // BLOCK, blocks)
    full = filling == BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((touching > 0) & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=range_mask(start, end),
        seq_lengths=(n, key_places),
    )


def _counted(first: Tensor, behind: Tensor, blocks: int) -> Tensor:
    """[.., nq, blocks] how many queries of each block of queries have a block of keys in first <= c < behind.

    first, behind [B or 1, H or 1, N] int. A query counts one more from its first block on, and one less
    behind its last; an empty stretch leaves nothing.
    """
    first, behind = (
        F.pad(x, (0, -x.shape[2] % BLOCK)).unflatten(2, (-1, BLOCK)).long()
        for x in (first, behind.maximum(first))
    )  # [.., nq, BLOCK]
    ones = torch.ones_like(first, dtype=torch.int32)
    steps = ones.new_zeros(*first.shape[:3], blocks + 1)
    steps = steps.scatter_add(3, first, ones).scatter_add(3, behind, -ones)
    return steps.cumsum(3, dtype=torch.int32)[..., :-1]


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[.., nq, nk] bool as the number of blocks in every row, and their indices, which come first."""
    order = blocks.byte().argsort(dim=3, descending=True, stable=True)
    return blocks.sum(3, dtype=torch.int32), order.int()
