"""Range attention, torch path: the reference that runs everywhere, with autograd and all score terms.

The ordered queries are cut into blocks, the ordered keys likewise. A block of queries needs one contiguous
stretch of keys, so it meets a few blocks of keys; each meeting is a pair of tiles of equal shape. All pairs
of all batch rows and heads run as one batched matrix product, and the softmax is summed over the pairs of a
block. The stretches grow by at most M keys in all, so there are at most about 2 N / block + M / block
pairs: no imbalance can make it quadratic. Where the ranges themselves are long, pairs run in portions whose
scores are computed again in the backward.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mapformers.core.attended import Attended, merge
from mapformers.core.plans import Ranges
from mapformers.core.scope import Scope
from mapformers.core.score import Pairs, ScoreTerm
from mapformers.kernels import dense
from mapformers.kernels.softmax import at_least_float32, default_scale, expand_heads
from mapformers.kernels.tiles import Tiles, tiles_of

LARGEST_BLOCK = 128


def block_size(places: int, key_places: int) -> int:
    """Rows of a tile: large tiles multiply faster, small ones waste less on short inputs."""
    block = 16
    while block < LARGEST_BLOCK and 8 * block < max(places, key_places):
        block *= 2
    return block


class _Permute(torch.autograd.Function):
    """Rows of [R, ...] in another order. The backward gathers by the inverse order, which beats a
    scatter-add.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, _inverse(order)), None


def _inverse(order: Tensor) -> Tensor:
    """The order that undoes `order` [R]."""
    places = torch.arange(order.numel(), device=order.device)
    return torch.zeros_like(order).scatter(0, order, places)


def range_attend(
    ranges: Ranges, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """q [B, H, N, D] over k [B, G, M, D], v [B, G, M, E] within the ranges, rounds and mass merged."""
    batch, heads, _, dim = q.shape
    k, v = expand_heads(k, heads), expand_heads(v, heads)
    block = block_size(q.shape[2], k.shape[2] * ranges.key_copies)
    k_order = _flat_order(ranges.key_order, batch, heads)
    # A column of ones sums the weights in the same product.
    values = F.pad(at_least_float32(v), (0, 1), value=1.0)
    keys = _Keys(
        _blocks(_ordered(k, ranges.key_copies, k_order), block),
        _blocks(_ordered(values, ranges.key_copies, k_order), block),
        k.shape[2] * ranges.key_copies,
    )
    scaled = q * default_scale(dim)
    parts = []
    for i in range(ranges.rounds):
        part = _round(ranges.round(i), scaled, keys, scope, score)
        if ranges.log_weight is not None:
            part = Attended(part.output, part.lse + ranges.log_weight[..., i])
        parts.append(part)
    return parts[0] if len(parts) == 1 and ranges.mass is None else merge(parts, ranges.mass)


class _Keys(NamedTuple):
    """Ordered keys and values in blocks, all rows and heads."""

    k: Tensor  # [B H nk, block, D]
    v: Tensor  # [B H nk, block, E + 1]
    places: int


def _round(ranges: Ranges, q: Tensor, keys: _Keys, scope: Scope, score: ScoreTerm | None) -> Attended:
    """Ranges of one round; q is scaled."""
    batch, heads, n, _ = q.shape
    block = keys.k.shape[1]
    order = None if ranges.query_order is None else ranges.query_order[:, :, 0]
    q_order = _flat_order(order, batch, heads)
    q_blocks = _blocks(_ordered(q, 1, q_order), block)  # [B H nq, block, D]
    start, end = (x.expand(batch, heads, 1, -1).reshape(batch * heads, n) for x in (ranges.start, ranges.end))
    tiles = tiles_of(start, end, keys.places, block)

    def attended(rows: slice, part: Tiles) -> tuple[Tensor, Tensor]:
        k_tiles = keys.k.index_select(0, part.key_block)  # [pairs, block, D]
        scores = at_least_float32(q_blocks.index_select(0, part.query_block) @ k_tiles.transpose(1, 2))
        if score is not None:
            m = keys.places // ranges.key_copies
            scores = scores + _term(score, scope, ranges, part, (batch, heads, n, m)).to(scores.dtype)
        found = _softmax_over_pairs(scores, part, keys.v, rows)
        return found.output, found.lse

    portions = tiles.portions(max(1, dense.SCORES_ALIVE // block**2))
    if len(portions) == 1:
        summed = Attended(*attended(*portions[0]))
    else:  # as in the dense kernel
        again = partial(checkpoint, attended, use_reentrant=False, preserve_rng_state=False)
        parts = [again(*one) for one in portions]
        summed = Attended(torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts]))
    output = summed.output.reshape(batch * heads, n + (-n % block), -1)[:, :n].reshape(batch * heads * n, -1)
    lse = summed.lse.reshape(batch * heads, -1)[:, :n].reshape(-1, 1)
    output = output.to(q.dtype)
    if q_order is not None:
        inverse = _inverse(q_order)
        output, lse = _Permute.apply(output, inverse), _Permute.apply(lse, inverse)
    return Attended(output.view(batch, heads, n, -1), lse.view(batch, heads, n))


def _softmax_over_pairs(scores: Tensor, tiles: Tiles, v_blocks: Tensor, rows: slice) -> Attended:
    """One softmax over the pairs of each block of queries in `rows`: output [blocks, block, E] and its lse.

    scores [pairs, block, block] are overwritten. Masking and shifting them changes no gradient but those
    that the weights make zero anyway, so they run unrecorded, and the backward keeps one tensor of this size
    instead of three.
    """
    query_block, query_blocks = tiles.query_block - rows.start, rows.stop - rows.start
    with torch.no_grad():
        scores.masked_fill_(tiles.outside(), float("-inf"))
        highest = scores.amax(-1)  # [pairs, block]
        top = highest.new_full((query_blocks, highest.shape[1]), float("-inf"))
        top.scatter_reduce_(0, query_block[:, None].expand_as(highest), highest, "amax")
        top = torch.where(top.isfinite(), top, 0.0)
        scores.sub_(top[query_block].unsqueeze(-1))
    weights = scores.exp_()
    products = weights @ v_blocks.index_select(0, tiles.key_block)  # [pairs, block, E + 1]
    summed = products.new_zeros(query_blocks, *products.shape[1:]).index_add(0, query_block, products)
    total = summed[..., -1]
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    lse = (total.log() + top).masked_fill(~seen, float("-inf"))
    return Attended(summed[..., :-1] * total.reciprocal().unsqueeze(-1), lse)


def _flat_order(order: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """[B or 1, H or 1, P] places within a row to [B H P] places in the flattened tensor."""
    if order is None:
        return None
    order = order.expand(batch, heads, -1).reshape(batch * heads, -1)
    offset = torch.arange(batch * heads, device=order.device)[:, None] * order.shape[1]
    return (order + offset).reshape(-1)


def _ordered(x: Tensor, copies: int, order: Tensor | None) -> Tensor:
    """[B, H, N, D] to [B H, N copies, D], rows in the given order."""
    batch, heads, n, dim = x.shape
    x = x.unsqueeze(3).expand(-1, -1, -1, copies, -1).reshape(-1, dim)  # [B H N copies, D]
    if order is not None:
        x = _Permute.apply(x, order)
    return x.reshape(batch * heads, n * copies, dim)


def _blocks(x: Tensor, block: int) -> Tensor:
    """[rows, P, D] to [rows ceil(P / block), block, D], the last block of a row filled with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % block)).reshape(-1, block, x.shape[-1])


def _term(
    score: ScoreTerm, scope: Scope, ranges: Ranges, tiles: Tiles, sizes: tuple[int, int, int, int]
) -> Tensor:
    """What a score term adds to every pair of tiles. sizes: B, H, N, M."""
    batch, heads, n, m = sizes
    device = tiles.query_block.device
    block = tiles.start.shape[1]
    order = None if ranges.query_order is None else ranges.query_order[:, :, 0]
    query = _spread(scope.query_positions(n, device), order, 1, (batch, heads))
    key = _spread(scope.positions_of_keys(m, device), ranges.key_order, ranges.key_copies, (batch, heads))
    query_row, key_row = (torch.arange(size, device=device)[None] for size in (n, m))
    query_row = _spread(query_row, order, 1, (batch, heads))
    key_row = _spread(key_row, ranges.key_order, ranges.key_copies, (batch, heads))
    query, key, query_row, key_row = (
        _blocks(x.unsqueeze(-1), block).squeeze(-1) for x in (query, key, query_row, key_row)
    )  # [blocks, block]
    row = tiles.query_block // (query.shape[0] // (batch * heads))
    return score.tile(
        Pairs(
            batch=(row // heads)[:, None, None],
            head=(row % heads)[:, None, None],
            query=query[tiles.query_block].unsqueeze(2),  # [pairs, block, 1]
            key=key[tiles.key_block].unsqueeze(1),  # [pairs, 1, block]
            query_row=query_row[tiles.query_block].unsqueeze(2),
            key_row=key_row[tiles.key_block].unsqueeze(1),
        )
    )


def _spread(positions: Tensor, order: Tensor | None, copies: int, rows: tuple[int, int]) -> Tensor:
    """[B or 1, N] true positions to [B H, N copies], in the order of the ranges; rows: B, H."""
    spread = positions[:, None, :, None].expand(*rows, -1, copies).flatten(2)  # [B, H, N copies]
    if order is not None:
        spread = spread.gather(2, order.expand(*rows, -1))
    return spread.flatten(0, 1)
