"""From Windows to Ranges: order queries and keys by (document, segment, index), then every query sees one
range.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mapformers.core.errors import require
from mapformers.core.plans import Ranges, Windows
from mapformers.core.scope import Scope


def for_heads(plan: Windows, heads: int) -> Windows:
    """The plan with what it says of shared key/value heads repeated for each of their query heads."""

    def repeated(x: Tensor | None) -> Tensor | None:
        shared = x is not None and 1 < x.shape[1] < heads
        return x.repeat_interleave(heads // x.shape[1], 1) if shared and x is not None else x

    return replace(plan, key_segment=repeated(plan.key_segment), key_is_seen=repeated(plan.key_is_seen))


def ranges_of(plan: Windows, scope: Scope, n: int, m: int, device: torch.device) -> Ranges:
    """The normal form of `plan` for n queries and m keys. Its tensors have size 1 in B or H where all
    agree. With query_segment=None, a plan for shared key/value heads goes through `for_heads` first.
    """
    _check(plan, scope)
    plan = plan if plan.query_segment is None else for_heads(plan, plan.query_segment.shape[1])
    unordered = plan.query_segment is None and plan.key_segment is None
    unordered = unordered and plan.key_is_seen is None
    if unordered and scope.key_is_real is None and scope.segments is None:
        return _plain_band(plan, scope, n, m, device)
    query_segment = _copies(plan.query_segment, n, device)  # [B, H, N, r]
    key_segment = _copies(plan.key_segment, m, device)  # [B, H, M, r']
    segments = 1 + max(int(query_segment.max()), int(key_segment.max()), 0)
    query_outside, key_outside = query_segment < 0, key_segment < 0
    documents = scope.documents_of_keys()
    if scope.segments is not None and documents is not None:
        query_segment = query_segment + segments * scope.segments[:, None, :, None]
        key_segment = key_segment + segments * documents[:, None, :, None]
        segments = segments * (1 + int(torch.maximum(scope.segments.max(), documents.max())))
    if scope.key_is_real is not None:
        key_outside = key_outside | ~scope.key_is_real[:, None, :, None]
    # One integer per token that sorts by (segment, index); what lies outside comes after every segment.
    length = max(m, scope.query_start + n) + 1
    index = scope.query_index(n, device)
    query_code = (query_segment * length + index[:, None]).masked_fill(query_outside, segments * length)
    key_code = key_segment * length + torch.arange(m, device=device)[:, None]
    key_code = key_code.masked_fill(key_outside, segments * length)
    batch, heads = torch.broadcast_shapes(query_code.shape[:2], key_code.shape[:2])
    query_code = query_code.transpose(2, 3).expand(batch, heads, -1, -1)  # [B, H, r, N]
    key_code = key_code.flatten(2).expand(batch, heads, -1)  # [B, H, M r']
    query_sorted, query_order = query_code.contiguous().sort(-1)
    key_sorted, key_order = key_code.contiguous().sort(-1)
    start, end = (x.view_as(query_sorted) for x in _bounds(plan, query_sorted.flatten(2), key_sorted, length))
    outside = query_sorted >= segments * length
    places = key_sorted.shape[-1]
    ranges = Ranges(
        query_order=query_order,
        key_order=key_order,
        start=start.masked_fill(outside, places),
        end=end.masked_fill(outside, places),
        key_copies=key_segment.shape[-1],
        log_weight=plan.log_weight,
    )
    return ranges if plan.key_is_seen is None else _only_seen(ranges, plan.key_is_seen)


def _check(plan: Windows, scope: Scope) -> None:
    require(
        not scope.causal or plan.after == 0,
        f"windows: after must be 0 under a causal scope, got {plan.after}; use causal=False",
    )
    require(
        plan.skip == 0 or plan.after == 0,
        f"windows: skip needs after=0, got skip={plan.skip} and after={plan.after}; make two plans of it",
    )


def _only_seen(ranges: Ranges, key_is_seen: Tensor) -> Ranges:
    """The same ranges over the keys with key_is_seen [B, G, M] alone: the others go behind them all."""
    assert ranges.key_order is not None
    order = ranges.key_order
    rows = torch.broadcast_shapes(order.shape[:2], key_is_seen.shape[:2])  # B, H
    order, start, end = (x.expand(*rows, *x.shape[2:]) for x in (order, ranges.start, ranges.end))
    seen = key_is_seen.expand(*rows, -1).gather(2, order // ranges.key_copies)
    count = F.pad(seen.long().cumsum(2), (1, 0))  # [B, H, places + 1] seen keys before each place
    start, end = (count.gather(2, x.flatten(2)).view(x.shape) for x in (start, end))
    order = order.gather(2, (~seen).long().argsort(dim=2, stable=True))
    return replace(ranges, key_order=order, start=start, end=end)


def _bounds(plan: Windows, query_sorted: Tensor, key_sorted: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """start, end of the range of every ordered query."""
    segment = torch.div(query_sorted, length, rounding_mode="floor") * length
    here = torch.searchsorted(key_sorted, query_sorted, right=True)  # keys at or before the query
    first = torch.searchsorted(key_sorted, segment)
    start = first if plan.before is None else torch.maximum(first, here - plan.before)
    if plan.after == 0:
        return start, torch.maximum(start, here - plan.skip)
    last = torch.searchsorted(key_sorted, segment + length)
    return start, last if plan.after is None else torch.minimum(last, here + plan.after)


def _plain_band(plan: Windows, scope: Scope, n: int, m: int, device: torch.device) -> Ranges:
    """No segments and no padding: the order is the index."""
    here = (scope.query_index(n, device) + 1).clamp(max=m)
    start = torch.zeros_like(here) if plan.before is None else (here - plan.before).clamp(min=0)
    end = torch.full_like(here, m) if plan.after is None else (here + plan.after - plan.skip).clamp(max=m)
    end = torch.maximum(start, end)
    start, end = start[None, None, None], end[None, None, None]
    return Ranges(None, None, start, end, log_weight=plan.log_weight)


def _copies(segment: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Segments as [B, H, length, copies]; None = one segment for all."""
    if segment is None:
        return torch.zeros(1, 1, length, 1, dtype=torch.long, device=device)
    return segment.long() if segment.dim() == 4 else segment.long().unsqueeze(-1)
