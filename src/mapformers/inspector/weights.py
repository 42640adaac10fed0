"""The weights that a layer really uses, without a matrix of all pairs: each token's strongest keys.

Exact for every mechanism, by one of three ways of the same meaning:
  ranges   plans of windows without score terms: a query's keys are a few stretches, scored as they are
  rows     full attention without score terms: a block of queries at a time
  probes   everything else: the output of a head is linear in the values, so values that are 1 at one key
           and 0 elsewhere give that key's weights, through the layer's own plan and kernels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.errors import require
from mapformers.core.plans import Dense, Plan, Ranges, Union, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import Call
from mapformers.kernels.shares import Share, shares_of
from mapformers.kernels.windows import for_heads, ranges_of

ROWS = 256  # queries at a time
PROBES = 128  # keys at a time
Tick = Callable[[float], None]
# Rows of queries, candidate keys [rows, K] (negative = none), and their weights [rows, K].
Block = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Seen:
    """What the heads of a layer attend to.

    key, weight   [H, N, keep] the strongest keys of each token and their weights, largest first; -1 and 0
                  where fewer are seen
    horizon       [H] how many tokens back a token looks, weighted, in the mean; forwards counts as well
    entropy       [H] of a token's weights in bits, in the mean
    sample        [H, S, N] all weights of S tokens, and `rows` [S] which ones
    """

    key: Tensor
    weight: Tensor
    horizon: Tensor
    entropy: Tensor
    sample: Tensor
    rows: Tensor


@torch.no_grad()
def seen_by(layer: MultiHeadAttention, call: Call, keep: int, samples: int, tick: Tick) -> Seen:
    """The strongest `keep` keys of every token in a call of one sequence (batch 1), for all heads.

    Raises MapformersError where a score term has put the values of several heads together (talking heads):
    a column of such values is no key's.
    """
    require(
        call.v.shape[-1] == layer.sizes.head_dim,
        f"inspect: values must be those of one head each, got a width of {call.v.shape[-1]}; leave out the "
        "score term that mixes heads",
    )
    n, heads = call.q.shape[2], sum(layer.shares)
    rows = torch.linspace(0, n - 1, min(samples, n)).round().long().unique()
    book = _Book(heads, n, keep, rows)
    dealt = list(shares_of(call, layer.shares, layer._kv_shares))
    probed = [
        i
        for i, (plan, share) in enumerate(zip(call.plans, dealt, strict=True))
        if not _direct(call, plan, share)
    ]
    for i, (plan, share) in enumerate(zip(call.plans, dealt, strict=True)):
        if i in probed:
            continue
        for head in range(layer.shares[i]):
            blocks = _of_rows if isinstance(plan, Dense) else _of_ranges
            for block in blocks(plan, share, call.scope, head):
                book.add(share.first + head, *block)
            tick((share.first + head + 1) / heads)
    if probed:
        wanted = [dealt[i].first + head for i in probed for head in range(layer.shares[i])]
        for start in range(0, call.k.shape[2], PROBES):
            columns = _probe(layer, call, start)  # [H, N, E]
            keys = torch.arange(start, start + columns.shape[-1]).expand(n, -1)
            for head in wanted:
                book.merge(head, torch.arange(n), keys, columns[head])
            tick(min(1.0, (start + PROBES) / call.k.shape[2]))
    return book.closed()


def divergence(sample: Tensor) -> Tensor:
    """[H, H] Jensen-Shannon divergence of heads in bits over the sampled tokens; 0 = alike, 1 = apart."""
    p = sample.double()
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-12)
    own = -_plogp(p).sum(-1)  # [H, S]
    found = torch.zeros(len(p), len(p), dtype=torch.float64)
    for a in range(len(p)):
        for b in range(a + 1, len(p)):
            mixed = -_plogp((p[a] + p[b]) / 2).sum(-1)
            found[a, b] = found[b, a] = (mixed - (own[a] + own[b]) / 2).mean().clamp(min=0)
    return found


class _Book:
    """Gathers blocks of weights: the strongest of each token, sums for the statistics, and sampled rows."""

    def __init__(self, heads: int, n: int, keep: int, rows: Tensor) -> None:
        self.key = torch.full((heads, n, keep), -1, dtype=torch.long)
        self.weight = torch.zeros(heads, n, keep)
        self.distance, self.entropy = (
            torch.zeros(heads, dtype=torch.float64),
            torch.zeros(heads, dtype=torch.float64),
        )
        self.rows, self.sample = rows, torch.zeros(heads, len(rows), n)
        self.place = torch.full((n,), -1)
        self.place[rows] = torch.arange(len(rows))

    def add(self, head: int, rows: Tensor, keys: Tensor, weights: Tensor) -> None:
        """All weights of some rows at once."""
        self.merge(head, rows, keys, weights)

    def merge(self, head: int, rows: Tensor, keys: Tensor, weights: Tensor) -> None:
        """More weights of some rows [R], keys [R, K]; every key of a row comes once in all."""
        weights = weights.float().masked_fill(keys < 0, 0.0)
        away = (rows[:, None] - keys).abs()
        self.distance[head] += (weights * away).sum(dtype=torch.float64)
        self.entropy[head] -= _plogp(weights.double()).sum()
        all_weights = torch.cat([self.weight[head, rows], weights], 1)
        all_keys = torch.cat([self.key[head, rows], keys], 1)
        best, place = all_weights.topk(self.weight.shape[-1], dim=1)
        self.weight[head, rows] = best
        self.key[head, rows] = all_keys.gather(1, place).masked_fill(best <= 0, -1)
        here = self.place[rows]
        wanted = here >= 0
        if bool(wanted.any()):
            column = keys[wanted].clamp(min=0)
            self.sample[head].index_put_(
                (here[wanted][:, None].expand_as(column), column), weights[wanted], accumulate=True
            )

    def closed(self) -> Seen:
        n = self.weight.shape[1]
        return Seen(self.key, self.weight, self.distance / n, self.entropy / n, self.sample, self.rows)


def _direct(call: Call, plan: Plan, share: Share) -> bool:
    """Whether scores can be read off the plan: nothing is added to them, and nothing follows."""
    plain = share.bias is None and call.log_scale is None and not call.finish and not call.own_keys
    plain = plain and call.scope.segments is None
    if isinstance(plan, Dense):
        return plain and plan == Dense() and call.scope.key_is_real is None
    return plain and all(isinstance(part, Windows) or _is_null(part) for part in parts_of(plan))


def parts_of(plan: Plan) -> tuple[Plan, ...]:
    """The parts of a union; a plan by itself otherwise."""
    return plan.parts if isinstance(plan, Union) else (plan,)


def _is_null(part: Plan) -> bool:
    """Learned keys whose value is zero: a query may look at nothing."""
    if not isinstance(part, Dense) or part.keys is None:
        return False
    return part.values is None and part.value_mix is None and part.allowed is None and part.maps is None


def _of_ranges(plan: Plan, share: Share, scope: Scope, head: int) -> Iterator[Block]:
    """One head of windows under one softmax: the stretches of keys that a query sees, and null keys as -1."""
    n = share.q.shape[2]
    q, k = share.q[0, head], share.k[0, head * share.k.shape[1] // share.q.shape[1]]
    stretches = [_Stretches(part, share, scope, head) for part in parts_of(plan) if isinstance(part, Windows)]
    nulls = [
        _of_head(part.keys, head)
        for part in parts_of(plan)
        if isinstance(part, Dense) and part.keys is not None
    ]
    for first in range(0, n, ROWS):
        rows = torch.arange(first, min(n, first + ROWS))
        found = [pair for one in stretches for pair in one.of(rows)]
        keys = torch.cat([candidates for candidates, _ in found], 1)
        added = torch.cat([more.expand_as(candidates) for candidates, more in found], 1)
        scores = torch.einsum("rd,rkd->rk", q[rows], k[keys.clamp(min=0)]) / math.sqrt(q.shape[-1])
        scores = (scores + added).masked_fill(keys < 0, float("-inf"))
        for null in nulls:  # [K, D]
            scores = torch.cat([scores, q[rows] @ null.T / math.sqrt(q.shape[-1])], 1)
            keys = torch.cat([keys, torch.full((len(rows), len(null)), -1)], 1)
        yield rows, keys, scores.softmax(-1).nan_to_num(0.0)


class _Stretches:
    """The ranges of one head of a Windows plan, round by round."""

    def __init__(self, plan: Windows, share: Share, scope: Scope, head: int) -> None:
        heads, n, m = share.q.shape[1], share.q.shape[2], share.k.shape[2]
        ranges = ranges_of(for_heads(plan, heads), scope, n, m, share.q.device)
        self.copies, self.last = ranges.key_copies, m * ranges.key_copies - 1
        self.start, self.end = _of_head(ranges.start, head), _of_head(ranges.end, head)  # [r, N]
        self.key_order = None if ranges.key_order is None else _of_head(ranges.key_order, head)
        self.place = _places(ranges, head, n)  # [r, N]
        self.log_weight = None if ranges.log_weight is None else _of_head(ranges.log_weight, head)  # [N, r]

    def of(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each round, the keys [R, K] of some rows (-1 = none) and what is added to their scores."""
        for r in range(self.start.shape[0]):
            at = self.place[r, rows]
            low, high = self.start[r, at], self.end[r, at]
            index = low[:, None] + torch.arange(max(1, int((high - low).max())))
            inside = index < high[:, None]
            index = index.clamp(max=self.last)
            found = index if self.key_order is None else self.key_order[index]
            more = torch.zeros(1, 1) if self.log_weight is None else self.log_weight[rows, r, None]
            yield (found // self.copies).masked_fill(~inside, -1), more


def _of_rows(plan: Plan, share: Share, scope: Scope, head: int) -> Iterator[Block]:
    """One head of full attention."""
    heads, n = share.q.shape[1], share.q.shape[2]
    q, k = share.q[0, head], share.k[0, head * share.k.shape[1] // heads]
    keys = torch.arange(len(k))
    for first in range(0, n, ROWS):
        rows = torch.arange(first, min(n, first + ROWS))
        scores = q[rows] @ k.T / math.sqrt(q.shape[-1])
        if scope.causal:
            scores = scores.masked_fill(keys > rows[:, None], float("-inf"))
        weights = scores.softmax(-1)
        yield rows, keys.expand(len(rows), -1).masked_fill(weights <= 0, -1), weights


def _probe(layer: MultiHeadAttention, call: Call, start: int) -> Tensor:
    """[H, N, E] the weights of the keys start .. start + E - 1, out of the layer's own kernels."""
    count = min(PROBES, call.v.shape[2] - start)
    ones = torch.zeros(*call.v.shape[:3], count, dtype=call.v.dtype)
    index = torch.arange(count)
    ones[:, :, start + index, index] = 1.0
    return layer.run_call(replace(call, v=ones))[0][0]


def _of_head(x: Tensor, head: int) -> Tensor:
    """The head of [1, H or 1, ..]."""
    return x[0, head if x.shape[1] > 1 else 0]


def _places(ranges: Ranges, head: int, n: int) -> Tensor:
    """[r, N] where each query stands in the order of its round."""
    if ranges.query_order is None:
        return torch.arange(n).expand(ranges.start.shape[2], -1)
    return _of_head(ranges.query_order, head).argsort(-1)


def _plogp(p: Tensor) -> Tensor:
    """p log2 p, 0 at 0."""
    return torch.where(p > 0, p * p.clamp(min=1e-30).log2(), 0.0)
