"""A call of all heads, dealt out to the mechanisms that share them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from mapformers.core.attended import Attended
from mapformers.core.plans import Plan
from mapformers.core.score import Call, RowsOf, ScoreTerm
from mapformers.kernels.fit import fitted
from mapformers.kernels.run import run, run_output


class Share(NamedTuple):
    """What one mechanism's kernel gets: q, k, v, what is added to the scores, and how plans are made to fit.

    first: the first of its heads among those of the layer.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: ScoreTerm | None
    fit: Callable[[Plan], Plan]
    first: int = 0


def run_share(plan: Plan, share: Share, call: Call) -> tuple[Tensor, str]:
    """The output of one mechanism, and the kernel that ran."""
    plan = share.fit(plan)
    if call.log_scale is None:
        return run_output(plan, share.q, share.k, share.v, call.scope, share.bias)
    attended = run(plan, share.q, share.k, share.v, call.scope, share.bias)
    return weighed(attended, call), attended.kernel


def weighed(attended: Attended, call: Call) -> Tensor:
    """The output, with weights that are not normalised where the call says so."""
    if call.log_scale is None:
        return attended.output
    return attended.output * (attended.lse + call.log_scale).exp().unsqueeze(-1).to(attended.output.dtype)


def shares_of(call: Call, shares: Sequence[int], kv_shares: Sequence[int]) -> Iterator[Share]:
    """The call as each mechanism runs it. A single head of keys or values serves all heads."""
    heads = sum(shares)
    parts = []
    for x in (call.q, call.k, call.v):
        if x.shape[1] == 1:
            parts.append((x,) * len(shares))
        else:
            parts.append(x.split(list(shares if x.shape[1] == heads else kv_shares), 1))
    for i, (q, k, v) in enumerate(zip(*parts, strict=True)):
        first = sum(shares[:i])
        bias = None if call.bias is None else RowsOf(call.bias, head=first)
        yield Share(q, k, v, bias, partial(fitted, call=call, first=first), first)
