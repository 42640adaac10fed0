"""What a forward chose by content, kept for a computation of the same forward from restored inputs.

Restored inputs equal the old ones up to rounding, and rounding may move a token to another cluster or
bucket. So the integers of a plan are kept, as the reference code of Reformer keeps its buckets, and put into
the plan that is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mapformers.core.plans import Groups, Plan, Representatives, Union, WeightedSum, Windows

KEPT = {
    Windows: ("query_segment", "key_segment", "key_is_seen"),
    Representatives: ("row",),
    Groups: ("query_index", "key_index", "allowed"),
}


class Choices:
    """The plans of one call of a layer, in their order; differentiable parts are not kept."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._next: Iterator[Tensor] | None = None

    def again(self) -> Choices:
        """From now on `settle` puts in what was kept, from the first plan on."""
        self._next = iter(self._kept)
        return self

    def settle(self, plan: Plan) -> Plan:
        """The plan as it is, which is kept; after `again` the plan with the integers of the one kept."""
        if isinstance(plan, Union | WeightedSum):
            plan = replace(plan, parts=tuple(self.settle(part) for part in plan.parts))
            if isinstance(plan, WeightedSum) and not plan.weights.is_floating_point():  # they choose rows
                plan = replace(plan, weights=self._settled(plan.weights))
            return plan
        if isinstance(plan, Representatives):
            plan = replace(plan, plan=self.settle(plan.plan))
        names = KEPT.get(type(plan), ())
        found = {name: getattr(plan, name) for name in names}
        settled = {name: self._settled(x) for name, x in found.items() if x is not None}
        return replace(plan, **settled) if settled else plan  # type: ignore[arg-type]

    def _settled(self, x: Tensor) -> Tensor:
        if self._next is None:
            self._kept.append(_narrow(x))
            return x
        return next(self._next).to(x.dtype)

    def __len__(self) -> int:
        return len(self._kept)


def _narrow(x: Tensor) -> Tensor:
    """Integers in 32 bits where they fit: half the memory."""
    if x.dtype != torch.int64 or x.numel() == 0:
        return x
    largest = torch.iinfo(torch.int32).max
    return x.int() if -largest <= int(x.min()) and int(x.max()) <= largest else x
