"""A window of one key, the query's own: the output is its value, the log-sum-exp its score."""

import torch
from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.softmax import at_least_float32, default_scale, expand_heads


def is_own_key(plan: Windows, scope: Scope, score: ScoreTerm | None, q: Tensor, k: Tensor) -> bool:
    """Whether every query sees its own key alone. With padding it might see the one before."""
    return (
        (plan.before, plan.after, plan.skip) == (1, 0, 0)
        and plan.query_segment is None
        and plan.key_segment is None
        and plan.key_is_seen is None
        and scope.key_is_real is None
        and scope.query_start == 0
        and q.shape[2] == k.shape[2]
        and score is None
    )


def own_key_attend(plan: Windows, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """q [B, H, N, D], k [B, G, N, D], v [B, G, N, E]. The output is v and not a copy; no kernel is named."""
    q, k = at_least_float32(q), at_least_float32(expand_heads(k, q.shape[1]))
    lse = torch.linalg.vecdot(q, k) * default_scale(q.shape[-1])  # [B, H, N]
    if plan.log_weight is not None:
        lse = lse + plan.log_weight.squeeze(-1).to(lse.dtype)
    return Attended(expand_heads(v, q.shape[1]), lse, "")
