"""The Groups plan: sets of queries against sets of keys, gathered."""

import torch
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.plans import Groups
from mapformers.core.scope import Scope
from mapformers.core.score import Pairs, ScoreTerm
from mapformers.kernels.softmax import at_least_float32, default_scale, expand_heads, softmax_attend


def group_attend(
    plan: Groups, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """Attention of q [B, H, N, D] over k [B, G, M, D], v [B, G, M, E] inside the groups of the plan."""
    batch, heads, n, dim = q.shape
    k, v = expand_heads(k, heads), expand_heads(v, heads)
    query_index = plan.query_index.expand(batch, heads, -1, -1)  # [B, H, T, nq]
    key_index = plan.key_index.expand(batch, heads, -1, -1)  # [B, H, T, nk]
    q_rows, k_rows, v_rows = _gather(q, query_index), _gather(k, key_index), _gather(v, key_index)
    scores = at_least_float32(q_rows @ k_rows.transpose(-1, -2)) * default_scale(dim)  # [B, H, T, nq, nk]
    if score is not None:
        scores = scores + _term(score, scope, query_index, key_index, (n, k.shape[2])).to(scores.dtype)
    attended = softmax_attend(scores, _allowed(plan, scope, query_index, key_index), v_rows)
    empty = query_index < 0
    lse = attended.lse.masked_fill(empty, float("-inf")).flatten(2)  # [B, H, T nq]
    output = attended.output.flatten(2, 3)
    rows = query_index.clamp(min=0).flatten(2)
    if plan.combine == "mean":
        return _mean(output, lse, rows, n)
    return _one_softmax(output, lse, rows, n)


def _one_softmax(output: Tensor, lse: Tensor, rows: Tensor, n: int) -> Attended:
    """Merge the places of each query by log-sum-exp. output [B, H, P, E], lse and rows [B, H, P]."""
    batch, heads, _, size = output.shape
    top = lse.new_full((batch, heads, n), float("-inf")).scatter_reduce(2, rows, lse.detach(), "amax")
    top = torch.where(top.isfinite(), top, 0.0)
    weight = (lse - top.gather(2, rows)).exp()
    total = weight.new_zeros(batch, heads, n).scatter_add(2, rows, weight)
    weighted = output * weight.unsqueeze(-1).to(output.dtype)
    summed = output.new_zeros(batch, heads, n, size).scatter_add(2, _wide(rows, size), weighted)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    return Attended(
        summed / total.unsqueeze(-1).to(output.dtype), (total.log() + top).masked_fill(~seen, float("-inf"))
    )


def _mean(output: Tensor, lse: Tensor, rows: Tensor, n: int) -> Attended:
    """Mean of a query's outputs over the groups in which it sees something; lse = the mean of theirs,
    for merging.
    """
    batch, heads, _, size = output.shape
    sees = lse > float("-inf")
    count = lse.new_zeros(batch, heads, n).scatter_add(2, rows, sees.to(lse.dtype))
    share = (sees / count.clamp(min=1).gather(2, rows)).to(output.dtype)
    mean = output.new_zeros(batch, heads, n, size).scatter_add(
        2, _wide(rows, size), output * share.unsqueeze(-1)
    )
    lse_mean = lse.new_zeros(batch, heads, n).scatter_add(2, rows, torch.where(sees, lse * share, 0.0))
    return Attended(mean, lse_mean.masked_fill(count == 0, float("-inf")))


def _allowed(plan: Groups, scope: Scope, query_index: Tensor, key_index: Tensor) -> Tensor:
    """[B, H, T, nq, nk] bool: real places, the scope, and what the plan itself allows."""
    allowed = (query_index >= 0).unsqueeze(-1) & (key_index >= 0).unsqueeze(-2)
    if scope.causal:
        allowed = allowed & (key_index.unsqueeze(-2) <= query_index.unsqueeze(-1) + scope.query_start)
    if scope.key_is_real is not None:
        allowed = allowed & _pick(scope.key_is_real, key_index).unsqueeze(-2)
    documents = scope.documents_of_keys()
    if scope.segments is not None and documents is not None:
        same = _pick(scope.segments, query_index).unsqueeze(-1) == _pick(documents, key_index).unsqueeze(-2)
        allowed = allowed & same
    return allowed if plan.allowed is None else allowed & plan.allowed


def _term(
    score: ScoreTerm, scope: Scope, query_index: Tensor, key_index: Tensor, sizes: tuple[int, int]
) -> Tensor:
    batch, heads, device = query_index.shape[0], query_index.shape[1], query_index.device
    return score.tile(
        Pairs(
            batch=torch.arange(batch, device=device).view(-1, 1, 1, 1, 1),
            head=torch.arange(heads, device=device).view(1, -1, 1, 1, 1),
            query=_pick(scope.query_positions(sizes[0], device), query_index).unsqueeze(-1),
            key=_pick(scope.positions_of_keys(sizes[1], device), key_index).unsqueeze(-2),
            query_row=query_index.unsqueeze(-1),
            key_row=key_index.unsqueeze(-2),
        )
    )


def _pick(per_token: Tensor, index: Tensor) -> Tensor:
    """[B or 1, N] facts about tokens at index [B, H, T, n]."""
    batch, heads = index.shape[:2]
    spread = per_token[:, None].expand(batch, heads, -1)
    return spread.gather(2, index.clamp(min=0).flatten(2)).view(index.shape)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of [B, H, N, D] at index [B, H, T, n]: [B, H, T, n, D]."""
    rows = x.gather(2, _wide(index.clamp(min=0).flatten(2), x.shape[-1]))
    return rows.unflatten(2, index.shape[2:])


def _wide(index: Tensor, size: int) -> Tensor:
    """[B, H, P] to [B, H, P, size], without memory."""
    return index.unsqueeze(-1).expand(-1, -1, -1, size)
