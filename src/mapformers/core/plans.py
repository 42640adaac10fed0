"""Plans: who sees whom, as data. A mechanism answers with one; a kernel runs it; plans know no papers.

Shapes use the letters of docs/how-it-fits.md: B batch, H heads, N queries, M keys, D head size, E value
size. Every tensor of a plan may have size 1 in B or H where all rows or heads agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """Softmax over all keys, or over a shorter list of new ones.

    keys       [B, H, K, D] new keys instead of the given ones; the scope of the call does not apply to them
    values     [B, H, K, E] their values; None with `keys` and without `value_mix` = zero (a null key)
    value_mix  [B, H, K, M] the new values as mixtures of the given ones, `value_mix @ v`
    allowed    [B, H, N, M] bool, narrows the scope (or [.., N, K] with new keys)
    maps       two [H, D, R]: queries and the given keys are multiplied by them before they are scored, over
               sqrt(R) then
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    value_mix: Tensor | None = None
    allowed: Tensor | None = None
    maps: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Windows:
    """Each query sees the nearest `before` keys at or before it, and `after` behind it, counted inside its
    segment.

    before          keys at or before the query, its own included when it lies in the segment; None = all
    after           keys behind the query; None = all; must be 0 under a causal scope
    query_segment   [B, H, N] int, or [B, H, N, r] when a query names r segments; negative = none.
                    None = one segment
    key_segment     [B, G, M] int, or [B, G, M, r] when a key lies in several; negative = in none
    segment_count   how many segments can be alive at once: the size of the decode state
    log_weight      [B, H, N, r] added to all scores of the r-th segment that a query names
    skip            of the keys at or before the query, the nearest `skip` count unseen; needs after=0
    key_is_seen     [B, G, M] bool; the other keys count among `before` and `after` and are not seen

    `skip` and `key_is_seen` leave to another part of a Union what that part shows.
    Packed documents (scope.segments) refine the segments; padding keys lie in none.
    A key that a query reaches through two segments counts twice.
    """

    before: int | None
    after: int | None = 0
    query_segment: Tensor | None = None
    key_segment: Tensor | None = None
    segment_count: int = 1
    log_weight: Tensor | None = None
    skip: int = 0
    key_is_seen: Tensor | None = None


@dataclass(frozen=True)
class Ranges:
    """Normal form of Windows: the ordered query p sees the ordered keys start[p] <= s < end[p].

    A query that names r segments has its place in each of r rounds; all rounds share the order of the keys.

    query_order  [B, H, r, N] int, rows of q. None = identity
    key_order    [B, H, S] int: S = M * key_copies; entry = row of k * key_copies + copy. None = identity
    start, end   [B, H, r, N] int; neither ever decreases along the ordered queries of one segment
    log_weight   [B, H, N, r] added to all scores of a round
    mass         [B, H, N] log-weight of further keys of value zero
    """

    query_order: Tensor | None
    key_order: Tensor | None
    start: Tensor
    end: Tensor
    key_copies: int = 1
    log_weight: Tensor | None = None
    mass: Tensor | None = None

    @property
    def rounds(self) -> int:
        """How many segments a query names."""
        return self.start.shape[2]

    def round(self, i: int) -> Ranges:
        """The i-th segment that every query names, alone and without the mass."""
        return replace(
            self,
            query_order=None if self.query_order is None else self.query_order[:, :, i : i + 1],
            start=self.start[:, :, i : i + 1],
            end=self.end[:, :, i : i + 1],
            log_weight=None if self.log_weight is None else self.log_weight[..., i : i + 1],
            mass=None,
        )


@dataclass(frozen=True)
class Groups:
    """T sets of queries against T sets of keys, gathered.

    query_index  [B, H, T, nq] int, rows of q, negative = empty place
    key_index    [B, H, T, nk] int, rows of k, negative = empty place
    allowed      [B, H, T, nq, nk] bool, narrows the scope
    combine      a query in several sets: "softmax" = one softmax over all of them, "mean" = mean of its
                 outputs
    """

    query_index: Tensor
    key_index: Tensor
    allowed: Tensor | None = None
    combine: Literal["softmax", "mean"] = "softmax"


@dataclass(frozen=True)
class Features:
    """Kernel feature maps: weight(i, j) = phi_q[i] . phi_k[j] / sum_j; the N x M matrix never exists.

    phi_q         [B, H, N, F]; phi_k [B, G, M, F]
    log_weight_k  [B, G, M] each key's features are multiplied by exp of it, however large it is
    log_decay     [B, G, M], 0 or less: what is at or before the key before this one counts exp of it as much
                  for all queries from here on; needs a causal scope
    exponents     [F, D]: phi_q [B, H, N, D] and phi_k [B, G, M, D] stand for their features
                  exp(exponents phi), which are made where they are needed
    floor         sums below it are raised to it before the division; 0 needs features of 0 or more
    """

    phi_q: Tensor
    phi_k: Tensor
    log_weight_k: Tensor | None = None
    log_decay: Tensor | None = None
    exponents: Tensor | None = None
    floor: float = 0.0


@dataclass(frozen=True)
class Pooled:
    """Keys pooled into fewer rows; each query sees the rows start <= s < end.

    Row s has the key sum_j key_weight[j] k[j] and the value sum_j value_weight[j] v[j] over all keys j with
    row[j] = s. What is causal in it is the plan's own care: the scope of the call does not apply.

    row           [B, M] int, negative = in none
    key_weight    [B, G, M]
    value_weight  [B, G, M]
    start, end    [B, N] int; neither ever decreases along the queries
    count         number of rows
    """

    row: Tensor
    key_weight: Tensor
    value_weight: Tensor
    start: Tensor
    end: Tensor
    count: int


@dataclass(frozen=True)
class Taps:
    """The values of the nearest tokens on both sides times fixed weights, without a softmax.

    weight  [H, T], T odd: query i has sum_t weight[t] v[i + t - (T - 1) / 2], steps counted by rank among the
            real tokens; beyond the ends is 0

    It has no log-sum-exp either. It is not causal and knows no packed documents.
    """

    weight: Tensor


@dataclass(frozen=True)
class DeltaRule:
    """A matrix W [F, E] that every key corrects: with W before it, key j adds beta[j] phi_k[j] (v[j] - W^T
    phi_k[j])^T; query i reads W^T phi_q[i] behind its own key.

    phi_q  [B, H, N, F]; phi_k [B, G, N, F]
    beta   [B, G, N] how much of the error is corrected; padding corrects nothing

    It needs a causal scope and has no log-sum-exp: weights may be negative and sum to anything.
    """

    phi_q: Tensor
    phi_k: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Representatives:
    """A few queries attend in place of all: query i has the output of row[i].

    queries  [B, H, C, D] in place of the given ones; they see all keys that the padding leaves, in no order
    row      [B, H, N] int, negative = sees nothing
    plan     what the C queries see
    """

    queries: Tensor
    row: Tensor
    plan: Plan


@dataclass(frozen=True)
class Union:
    """Parts with disjoint keys under one softmax, merged by their log-sum-exp."""

    parts: tuple[Plan, ...]


@dataclass(frozen=True)
class WeightedSum:
    """The outputs of parts, each under a softmax of its own, times weights [B, H, N, parts].

    It has no log-sum-exp, so it cannot be a part of a Union.
    """

    parts: tuple[Plan, ...]
    weights: Tensor


Plan = Dense | Windows | Groups | Features | Pooled | Taps | DeltaRule | Representatives | Union | WeightedSum


@dataclass(frozen=True)
class ByRows:
    """Two plans for one call whose rows have two sets of q, k, v: together they are the mechanism's plan.

    marked     [B, N] bool, the queries of the second set
    of_marked  shows them their keys, and the other queries nothing
    of_others  the other way round, with the first set
    """

    marked: Tensor
    of_marked: Plan
    of_others: Plan
