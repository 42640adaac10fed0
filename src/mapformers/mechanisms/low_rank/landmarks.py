"""Landmarks: means of equal stretches of the real tokens, shared by the mechanisms that go through them."""

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mapformers.core.errors import require
from mapformers.core.scope import Scope
from mapformers.kernels.pooled import pool
from mapformers.kernels.softmax import (
    at_least_float32,
    default_scale,
    expand_heads,
    masked_softmax,
    scaled_scores,
)

Short = Literal["refuse", "take_all"]
SHORT = get_args(Short)


def check_length(name: str, landmarks: int, m: int, short: Short) -> None:
    """Refuse M keys where landmarks are more, unless every token is to be one then."""
    require(
        landmarks <= m or short == "take_all",
        f"{name}: landmarks must be at most the number of keys {m}, got {landmarks}; use fewer, or "
        "short=take_all",
    )


class Landmarks(NamedTuple):
    """Which token belongs to which landmark.

    row     [B or 1, M] int, negative at padding
    size    [B or 1, L] tokens of each; 0 where a row has fewer real tokens than landmarks
    """

    row: Tensor
    size: Tensor

    def means(self, x: Tensor) -> Tensor:
        """[B, H, L, D] means of x [B, H, M, D], in float32 or wider; 0 for empty landmarks."""
        summed = pool(at_least_float32(x), x.new_ones(1, 1, 1), self.row, self.size.shape[1])
        return summed / self.size.clamp(min=1)[:, None, :, None].to(summed.dtype)

    @property
    def exist(self) -> Tensor:
        """[B or 1, L] bool."""
        return self.size > 0


def landmarks_of(scope: Scope, m: int, most: int, device: torch.device) -> Landmarks:
    """`most` landmarks, or as many as there are real tokens; their sizes differ by one token at most."""
    count = min(most, m)
    ranks = scope.ranks_of_keys(m, device)
    all_real = torch.ones_like(ranks, dtype=torch.bool)
    real = all_real if scope.key_is_real is None else scope.key_is_real
    total = real.sum(-1, keepdim=True)  # [B or 1, 1]
    row = (ranks * total.clamp(max=count)) // total.clamp(min=1)
    row = row.masked_fill(~real, -1)
    size = (row.unsqueeze(1) == torch.arange(count, device=device)[:, None]).sum(-1)
    return Landmarks(row, size)


class Factors(NamedTuple):
    """The parts of attention through landmarks, all in float32 or wider.

    keys      [B, H, L, D] landmarks of the keys
    between   [B, H, L, L] weights from landmarks of the queries to landmarks of the keys
    to_keys   [B, H, L, M] weights from landmarks of the queries to the keys
    exist     [B or 1, 1, 1, L] bool
    """

    keys: Tensor
    between: Tensor
    to_keys: Tensor
    exist: Tensor


def factors_of(q: Tensor, k: Tensor, scope: Scope, most: int) -> Factors:
    """For q [B, H, N, D] and k [B, G, N, D] of the same tokens. The small matrix is in float64: it is
    inverted, which enlarges what was rounded.
    """
    marks = landmarks_of(scope, k.shape[2], most, k.device)
    keys, queries = expand_heads(marks.means(k), q.shape[1]), marks.means(q)
    exist = marks.exist[:, None, None, :]
    scale = default_scale(q.shape[-1])
    between = queries.double() @ keys.double().transpose(-1, -2) * scale
    between = masked_softmax(between, exist & exist.transpose(-1, -2))
    seen = exist.transpose(-1, -2) & (marks.row >= 0)[:, None, None, :]
    wide = at_least_float32(expand_heads(k, q.shape[1]))
    to_keys = masked_softmax(queries @ wide.transpose(-1, -2) * scale, seen)
    return Factors(keys, between, to_keys, exist)


def written_out(q: Tensor, k: Tensor, scope: Scope, most: int, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, H, N, N] for definitions: softmax(q Kl^T) inverse(softmax(Ql Kl^T)) softmax(Ql k^T), row by row of
    the batch on the real tokens alone, stretch by stretch.
    """
    k, n = expand_heads(k, q.shape[1]), q.shape[2]
    rows = []
    for b in range(q.shape[0]):
        kept = torch.arange(n) if scope.key_is_real is None else scope.key_is_real[b].nonzero()[:, 0]
        row = q.new_zeros(q.shape[1], n, n)
        if len(kept) > 0:
            marks = [_means(x[b : b + 1, :, kept], most) for x in (q, k)]
            first = scaled_scores(q[b : b + 1], marks[1]).softmax(-1)
            middle = inverse(scaled_scores(*marks).softmax(-1))
            last = scaled_scores(marks[0], k[b : b + 1, :, kept]).softmax(-1)
            row = row.index_copy(2, kept, (first @ middle @ last)[0])
        rows.append(row)
    return torch.stack(rows)


def _means(x: Tensor, most: int) -> Tensor:
    """[B, H, L, D] means of the stretches of x [B, H, N, D]: token r of N is in stretch r L // N."""
    n, count = x.shape[2], min(most, x.shape[2])
    borders = [-(-n * s // count) for s in range(count + 1)]  # the first r with r count // n = s
    return torch.stack([x[:, :, a:b].mean(2) for a, b in itertools.pairwise(borders)], 2)
