"""Scores and softmax with rows that may be empty: the pieces that dense twins and dense kernels share."""

import torch
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.scope import Scope
from mapformers.core.score import Pairs, ScoreTerm


def default_scale(head_dim: int) -> float:
    """1 / sqrt(D)."""
    return head_dim**-0.5


def at_least_float32(x: Tensor) -> Tensor:
    """Half types as float32; the others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def expand_heads(x: Tensor, heads: int) -> Tensor:
    """[B, G, M, D] of G key/value heads to [B, H, M, D]; head h reads key/value head h // (H / G)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def by_groups(x: Tensor, y: Tensor) -> Tensor:
    """x [B, H, N, K] times y [B, G, K, P], whose heads serve H / G heads each: [B, H, N, P].

    The heads of a group stand as further rows, so that y is read once and never repeated in memory.
    """
    heads, groups = x.shape[1], y.shape[1]
    if heads == groups:
        return x @ y
    rows = x.unflatten(1, (groups, heads // groups)).flatten(2, 3)  # [B, G, H / G N, K]
    return (rows @ y).unflatten(2, (heads // groups, -1)).flatten(1, 2)


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """[B, H, N, M] q . k / sqrt(D), key/value heads repeated."""
    return q @ expand_heads(k, q.shape[1]).transpose(-1, -2) * default_scale(q.shape[-1])


def masked_softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed places of [..., N, M]; a row that may see nothing is all zero."""
    weights = scores.masked_fill(~allowed, float("-inf"))
    top = weights.detach().amax(-1, keepdim=True)
    weights = (weights - torch.where(top.isfinite(), top, 0.0)).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def softmax_attend(scores: Tensor, allowed: Tensor | None, v: Tensor) -> Attended:
    """One softmax over scores [..., N, M] (float32 or wider) and its values v [..., M, E]."""
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    top = scores.detach().amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    weights = weights.to(v.dtype)
    output = (by_groups(weights, v) if v.dim() == 4 else weights @ v) / total.to(v.dtype)
    lse = (total.log() + top).masked_fill(~seen, float("-inf"))
    return Attended(output, lse.squeeze(-1))


def score_bias(score: ScoreTerm, scope: Scope, q: Tensor, m: int, rows: slice) -> Tensor:
    """What a score term adds to the queries `rows` of [B, H, N, D] against all m keys."""
    batch, heads, n, device = q.shape[0], q.shape[1], q.shape[2], q.device
    return score.tile(
        Pairs(
            batch=torch.arange(batch, device=device).view(batch, 1, 1, 1),
            head=torch.arange(heads, device=device).view(1, heads, 1, 1),
            query=scope.query_positions(n, device)[:, None, rows, None],
            key=scope.positions_of_keys(m, device)[:, None, None, :],
            query_row=torch.arange(n, device=device)[rows, None],
            key_row=torch.arange(m, device=device),
        )
    )
