"""Run a plan: one kernel for each kind, Union and WeightedSum over them."""

import functools
from dataclasses import replace

import torch
from torch import Tensor

from mapformers.core.attended import Attended, merge
from mapformers.core.errors import require
from mapformers.core.plans import (
    DeltaRule,
    Dense,
    Groups,
    Plan,
    Pooled,
    Ranges,
    Representatives,
    Taps,
    Union,
    WeightedSum,
    Windows,
)
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.delta import delta_attend
from mapformers.kernels.dense import dense_attend, dense_output, is_mass, is_plain, own_mass
from mapformers.kernels.features import feature_attend
from mapformers.kernels.gpu.flex import flex_can_run, flex_range_attend
from mapformers.kernels.gpu.varlen import varlen_arguments, varlen_can_run, varlen_window_attend
from mapformers.kernels.groups import group_attend
from mapformers.kernels.native.call import DistanceTable
from mapformers.kernels.native.library import takes
from mapformers.kernels.native.op import distance_table, native_range_attend
from mapformers.kernels.own_key import is_own_key, own_key_attend
from mapformers.kernels.pooled import pooled_rows
from mapformers.kernels.ranges import range_attend
from mapformers.kernels.taps import taps_attend
from mapformers.kernels.windows import for_heads, ranges_of


def run(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """Output [B, H, N, E] and log-sum-exp [B, H, N] of the plan for q [B, H, N, D], k [B, G, M, D], v
    [B, G, M, E]. Where one of k and v has a single head, it serves all heads of the other.
    """
    k, v = _of_equal_heads(k, v)
    if isinstance(plan, Dense):
        return dense_attend(plan, q, k, v, scope, score)
    if isinstance(plan, Windows):
        return window_attend(plan, q, k, v, scope, score)
    if isinstance(plan, Groups):
        return group_attend(plan, q, k, v, scope, score)
    if isinstance(plan, Union):
        return _union(plan, q, k, v, scope, score)
    if isinstance(plan, WeightedSum):
        return _weighted_sum(plan, q, k, v, scope, score)
    if isinstance(plan, Representatives):
        return _of_representatives(plan, k, v, scope, score)
    kind = type(plan).__name__.lower()
    require(score is None, f"{kind}: takes no score terms, got {type(score).__name__}; use another mechanism")
    if isinstance(plan, Pooled):
        pooled_k, pooled_v, ranges = pooled_rows(plan, k, v)
        return ranges_attend(ranges, q, pooled_k, pooled_v, Scope(), None)
    if isinstance(plan, Taps):
        return taps_attend(plan, q, v, scope)
    if isinstance(plan, DeltaRule):
        return delta_attend(plan, v, scope)
    return feature_attend(plan, v, scope)


def run_output(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> tuple[Tensor, str]:
    """The output of `run` alone, which plain dense attention computes faster, and the kernel that ran."""
    k, v = _of_equal_heads(k, v)
    if isinstance(plan, Dense) and is_plain(plan, scope, score, q.shape[2], k.shape[2]):
        return dense_output(q, k, v, scope.causal), "sdpa"
    attended = _varlen(plan, q, k, v, scope) if isinstance(plan, Windows) and score is None else None
    if attended is None:
        attended = run(plan, q, k, v, scope, score)
    return attended.output, attended.kernel


def _of_equal_heads(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A single head repeated without memory."""
    heads = max(k.shape[1], v.shape[1])
    if k.shape[1] == v.shape[1]:
        return k, v
    return k.expand(-1, heads, -1, -1), v.expand(-1, heads, -1, -1)


def _varlen(plan: Windows, q: Tensor, k: Tensor, v: Tensor, scope: Scope) -> Attended | None:
    """On varlen_attn where it can. Only for the output: its log-sum-exp has no gradient."""
    if not varlen_can_run(q, k, v):
        return None
    arguments = varlen_arguments(plan, scope, q.shape[0], q.shape[2], k.shape[2], q.device)
    return None if arguments is None else varlen_window_attend(arguments, q, k, v)


def _union(plan: Union, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None) -> Attended:
    masses = [own_mass(part, q) for part in plan.parts if isinstance(part, Dense) and is_mass(part)]
    mass = functools.reduce(torch.logaddexp, masses) if masses else None
    parts = [part for part in plan.parts if not is_mass(part)]
    if len(parts) == 1 and isinstance(parts[0], Windows):
        ranges = _normal_form(parts[0], q, k, scope)
        return ranges_attend(replace(ranges, mass=mass), q, k, v, scope, score)
    require(
        not any(isinstance(part, WeightedSum | Taps | DeltaRule) for part in parts),
        "union: a part must have a log-sum-exp, got a weighted sum; sum the unions instead",
    )
    attended = [
        own_key_attend(part, q, k, v)
        if isinstance(part, Windows) and is_own_key(part, scope, score, q, k)
        else run(part, q, k, v, scope, score)
        for part in parts
    ]
    return merge(attended, mass)


def _weighted_sum(
    plan: WeightedSum, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None
) -> Attended:
    """The log-sum-exp is NaN: there is none."""
    parts = [run(part, q, k, v, scope, score) for part in plan.parts]
    weights = plan.weights.to(v.dtype).unsqueeze(-1).unbind(3)  # [B, H, N, 1] each
    output = functools.reduce(
        torch.add, (part.output * weight for part, weight in zip(parts, weights, strict=True))
    )
    kernels = "+".join(sorted({part.kernel for part in parts}))
    return Attended(output, torch.full_like(parts[0].lse.detach(), float("nan")), kernels)


def _of_representatives(
    plan: Representatives, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None
) -> Attended:
    require(
        score is None and not scope.causal and scope.segments is None,
        "representatives: take no score terms, causality or documents, got one; use another mechanism",
    )
    attended = run(plan.plan, plan.queries, k, v, Scope(key_is_real=scope.key_is_real))
    row, unseen = plan.row.clamp(min=0), plan.row < 0
    output = attended.output.gather(2, row.unsqueeze(-1).expand(*row.shape, v.shape[-1]))
    output = output.masked_fill(unseen.unsqueeze(-1), 0.0)
    return Attended(output, attended.lse.gather(2, row).masked_fill(unseen, float("-inf")), attended.kernel)


def window_attend(
    plan: Windows, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """The Windows plan through its normal form."""
    return ranges_attend(_normal_form(plan, q, k, scope), q, k, v, scope, score)


def _normal_form(plan: Windows, q: Tensor, k: Tensor, scope: Scope) -> Ranges:
    return ranges_of(for_heads(plan, q.shape[1]), scope, q.shape[2], k.shape[2], q.device)


def ranges_attend(
    ranges: Ranges, q: Tensor, k: Tensor, v: Tensor, scope: Scope, score: ScoreTerm | None = None
) -> Attended:
    """On the native kernel or FlexAttention where they can; elsewhere on the torch path, which can all."""
    if takes(q, k, v):
        table = None if score is None else distance_table(score, scope, q, k)
        if score is None or table is not None:
            return _native(ranges, q, k, v, table)
    if flex_can_run(q, k, v):
        return flex_range_attend(ranges, q, k, v, scope, score)
    return range_attend(ranges, q, k, v, scope, score)


def _native(ranges: Ranges, q: Tensor, k: Tensor, v: Tensor, table: DistanceTable | None) -> Attended:
    """A weight of a whole round moves its log-sum-exp and nothing else."""
    weight = ranges.log_weight
    if weight is None:
        return native_range_attend(ranges, q, k, v, table)
    parts = []
    for i in range(ranges.rounds):
        one = native_range_attend(replace(ranges.round(i), log_weight=None), q, k, v, table)
        parts.append(one._replace(lse=one.lse + weight[..., i].to(one.lse.dtype)))
    return parts[0] if len(parts) == 1 and ranges.mass is None else merge(parts, ranges.mass)
