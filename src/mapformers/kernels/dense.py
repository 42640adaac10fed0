"""The Dense plan: softmax over all keys, in blocks of queries so that no N x M tensor stays in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mapformers.core.attended import Attended
from mapformers.core.plans import Dense, Plan
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.softmax import (
    at_least_float32,
    by_groups,
    default_scale,
    expand_heads,
    score_bias,
    softmax_attend,
)

SCORES_ALIVE = 2**23  # scores of one block of queries, over all heads and batch rows


def dense_output(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The plain case, [B, H, N, E]: every row sees something, nobody asks for the log-sum-exp."""
    k, v = expand_heads(k, q.shape[1]), expand_heads(v, q.shape[1])
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def is_plain(plan: Dense, scope: Scope, score: ScoreTerm | None, n: int, m: int) -> bool:
    """Whether `dense_output` may serve: no mask but the causal triangle of a square, no terms, no new
    keys.
    """
    return (
        plan == Dense()
        and score is None
        and scope.key_is_real is None
        and scope.segments is None
        and (not scope.causal or (n == m and scope.query_start == 0))
    )


def dense_attend(
    plan: Dense, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """Softmax of q [B, H, N, D] over k [B, G, M, D], v [B, G, M, E], or over the plan's own keys."""
    batch, heads, n, dim = q.shape
    own_keys = plan.keys is not None
    if plan.maps is not None:
        q, k = q @ plan.maps[0].to(q.dtype), expand_heads(k, heads) @ plan.maps[1].to(k.dtype)
        dim = q.shape[-1]
    m = k.shape[2]
    k = k if plan.keys is None else plan.keys.to(q.dtype)
    if plan.value_mix is not None:
        v = plan.value_mix.to(v.dtype) @ expand_heads(v, heads)
    elif plan.values is not None:
        v = plan.values.to(v.dtype)
    elif own_keys:
        v = v.new_zeros(1, 1, k.shape[2], v.shape[-1])
    k, v = k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)

    def rows_of(rows: slice) -> tuple[Tensor, Tensor]:
        products = by_groups(q[:, :, rows], k.transpose(-1, -2))  # [B, H, rows, K]
        scores = at_least_float32(products) * default_scale(dim)
        if score is not None and not own_keys:
            scores = scores + score_bias(score, scope, q, m, rows).to(scores.dtype)
        allowed = None if own_keys else _visible(scope, rows, n, m, q.device)
        if plan.allowed is not None:
            narrowed = plan.allowed[:, :, rows]
            allowed = narrowed if allowed is None else allowed & narrowed
        attended = softmax_attend(scores, allowed, v)
        return attended.output, attended.lse

    size = max(32, SCORES_ALIVE // (batch * heads * max(1, k.shape[2])))
    blocks = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    if len(blocks) == 1:
        return Attended(*rows_of(blocks[0]))
    # Scores of a block are computed again in the backward instead of being kept: memory stays linear in N.
    parts = [checkpoint(rows_of, rows, use_reentrant=False, preserve_rng_state=False) for rows in blocks]
    return Attended(torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2))


def is_mass(plan: Plan) -> bool:
    """Whether the plan holds only keys of its own of value zero: they add weight and no output."""
    return (
        isinstance(plan, Dense)
        and plan.keys is not None
        and plan.values is None
        and plan.value_mix is None
        and plan.allowed is None
    )


def own_mass(plan: Dense, q: Tensor) -> Tensor:
    """[B, H, N] log-sum-exp of the scores of the plan's own keys for q [B, H, N, D]."""
    assert plan.keys is not None
    scores = at_least_float32(q @ plan.keys.to(q.dtype).transpose(-1, -2)) * default_scale(q.shape[-1])
    return scores.squeeze(-1) if scores.shape[-1] == 1 else scores.logsumexp(-1)  # [B, H, N]


def _visible(scope: Scope, rows: slice, n: int, m: int, device: torch.device) -> Tensor | None:
    """[B or 1, 1, rows, M] the scope of a block of queries; None where everything is visible."""
    if not scope.causal and scope.key_is_real is None and scope.segments is None:
        return None
    part = Scope(
        causal=scope.causal,
        key_is_real=scope.key_is_real,
        segments=None if scope.segments is None else scope.segments[:, rows],
        key_segments=scope.documents_of_keys(),
        query_start=scope.query_start + rows.start,
    )
    return part.visible(rows.stop - rows.start, m, device)
