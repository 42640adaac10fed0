"""Loss port: what the heads of a layer are asked for besides the task, in training.

Losses that read attention weights need no map of them: a log-sum-exp of scores under another plan or with
other terms says enough, on any softmax mechanism.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mapformers.core.card import Card
from mapformers.core.plans import Dense, Plan, Union, Windows
from mapformers.core.score import Call, Pairs, ScoreSite, ScoreTerm
from mapformers.kernels.run import run
from mapformers.kernels.shares import Share, shares_of


@dataclass(frozen=True)
class Heads:
    """One call of a layer, after it ran.

    call      behind the score terms; shares: heads of each of its plans
    values    [B, G, M, E] of the key/value heads; outputs [B, H, N, E] of the heads, before dropout
    """

    call: Call
    shares: tuple[int, ...]
    kv_shares: tuple[int, ...]
    values: Tensor
    outputs: Tensor

    def log_sums(self, change: Callable[[Share], Share] | None = None, own_keys: bool = True) -> Tensor:
        """[B, H, N] log of the sum of exp(score) over the keys that each query sees; -inf where it sees none.

        change makes other scores of a share; own_keys=False leaves out keys that belong to a plan.
        """
        found = []
        call = self.call
        for plan, share in zip(call.plans, shares_of(call, self.shares, self.kv_shares), strict=True):
            changed = share if change is None else change(share)
            fitted = changed.fit(plan if own_keys else without_own_keys(plan))
            ones = changed.k.new_ones(*changed.k.shape[:3], 1)
            found.append(run(fitted, changed.q, changed.k, ones, call.scope, changed.bias).lse)
        return torch.cat(found, 1)

    def rows(self) -> Tensor:
        """[B, N] bool, which queries are real."""
        batch, _, n, _ = self.outputs.shape
        real = self.call.scope.key_is_real
        if real is None:
            return torch.ones(batch, n, dtype=torch.bool, device=self.outputs.device)
        return real.expand(batch, -1)


class HeadLoss(nn.Module):
    """Base of the loss port. An entry is made as Loss(config, site, generator)."""

    card: ClassVar[Card]
    Config: ClassVar[type]
    loss_weights: ClassVar[dict[str, float]]  # what it may return, with the weight that the paper gives it
    reads_weights: bool = False  # needs a mechanism whose scores can be changed

    def forward(self, heads: Heads) -> dict[str, Tensor]:
        """Losses by name, unweighted scalars."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(heads)")

    def check(self, site: ScoreSite) -> None:
        """Raise MapformersError where such a layer cannot be asked."""

    def after_step(self) -> None:
        """Called after the optimiser step."""


class Changed(ScoreTerm):
    """A term whose tiles are changed, pair by pair."""

    def __init__(self, term: ScoreTerm | None, change: Callable[[Tensor, Pairs], Tensor]) -> None:
        super().__init__()
        self.term, self.change = [term], change  # a list: no second owner of the parameters

    def tile(self, pairs: Pairs) -> Tensor:
        """The changed tile."""
        (term,) = self.term
        return self.change(
            torch.zeros((), device=pairs.key.device) if term is None else term.tile(pairs), pairs
        )


def doubled(share: Share) -> Share:
    """All scores twice: the sum of exp(2 score) is that of squared weights."""
    bias = None if share.bias is None else Changed(share.bias, lambda tile, _: 2 * tile)
    return share._replace(q=2 * share.q, bias=bias, fit=lambda plan: weighing_twice(share.fit(plan)))


def weighing_twice(plan: Plan) -> Plan:
    """The plan with its own additions to scores twice."""
    if isinstance(plan, Union):
        return replace(plan, parts=tuple(weighing_twice(part) for part in plan.parts))
    if isinstance(plan, Windows) and plan.log_weight is not None:
        return replace(plan, log_weight=2 * plan.log_weight)
    return plan


def without_own_keys(plan: Plan) -> Plan:
    """The plan without keys of its own."""
    if isinstance(plan, Union):
        return replace(plan, parts=tuple(part for part in plan.parts if not _is_own(part)))
    return plan


def mean_over(rows: Tensor, values: Tensor) -> Tensor:
    """Mean of values [B, N] over the rows [B, N] that count."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)


def _is_own(part: Plan) -> bool:
    return isinstance(part, Dense) and part.keys is not None
