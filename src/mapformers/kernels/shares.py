"""A call of all heads, dealt out to the mechanisms that share them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from mapformers.core.plans import Plan
from mapformers.core.score import Call, RowsOf, ScoreTerm
from mapformers.kernels.fit import fitted


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
