"""Run a plan: one kernel for each kind, and Union over them."""

from torch import Tensor

from mapformers.core.attended import Attended, merge
from mapformers.core.errors import require
from mapformers.core.plans import Dense, Groups, Plan, Union, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.dense import dense_attend, dense_output, is_plain
from mapformers.kernels.features import feature_attend
from mapformers.kernels.groups import group_attend
from mapformers.kernels.ranges import merge_copies, range_attend
from mapformers.kernels.windows import ranges_of


def run(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """Output [B, H, N, E] and log-sum-exp [B, H, N] of the plan for q [B, H, N, D], k [B, G, M, D], v
    [B, G, M, E].
    """
    if isinstance(plan, Dense):
        return dense_attend(plan, q, k, v, scope, score)
    if isinstance(plan, Windows):
        return window_attend(plan, q, k, v, scope, score)
    if isinstance(plan, Groups):
        return group_attend(plan, q, k, v, scope, score)
    if isinstance(plan, Union):
        return merge([run(part, q, k, v, scope, score) for part in plan.parts])
    require(
        score is None, f"features: takes no score terms, got {type(score).__name__}; use a softmax mechanism"
    )
    return feature_attend(plan, v, scope)


def run_output(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Tensor:
    """The output of `run` alone, which plain dense attention computes faster."""
    if isinstance(plan, Dense) and is_plain(plan, scope, score, q.shape[2], k.shape[2]):
        return dense_output(q, k, v, scope.causal)
    return run(plan, q, k, v, scope, score).output


def window_attend(
    plan: Windows, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """The Windows plan through its normal form."""
    ranges = ranges_of(plan, scope, q.shape[2], k.shape[2], q.device)
    attended = range_attend(ranges, q, k, v, scope, score)
    if ranges.query_copies == 1 and plan.log_weight is None:
        return attended
    return merge_copies(attended, ranges.query_copies, plan.log_weight)
