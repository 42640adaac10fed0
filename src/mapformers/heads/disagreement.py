"""Disagreement: heads are kept from doing the same, in their values, their outputs or their weights.

Paper    Li, Tu, Yang, Lyu, Zhang 2018, "Multi-Head Attention with Disagreement Regularization", EMNLP,
         arXiv 1810.10183.
Formula  subspace: mean over tokens of 1/H^2 sum_{g,h} cos(v_g, v_h); output: the same of the heads' outputs;
         position: mean over queries of 1/H^2 sum_{g,h} sum_j A_g[j] A_h[j]
Cost     subspace, output O(N H E); position H (H + 1) / 2 score products
Differs  The sums of cosines are squared lengths of sums of directions. Sums of products of weights come from
         log-sum-exps: sum_j A_g A_h = exp(lse(S_g + S_h) - lse(S_g) - lse(S_h)). include_self=false leaves
         out g = h, which is constant for directions and pushes weights towards uniform ones.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import Card, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.plans import Plan, Union
from mapformers.core.score import Call, Pairs, ScoreSite, ScoreTerm
from mapformers.heads.head_loss import HeadLoss, Heads, mean_over, weighing_twice
from mapformers.kernels.softmax import at_least_float32, expand_heads

KINDS = ("output", "subspace", "position")


@dataclass(frozen=True)
class DisagreementConfig:
    """Options of disagreement."""

    of: Literal["output", "subspace", "position"] = option("output", "what heads may not have in common")
    include_self: bool = option(True, "whether a head counts as alike to itself, as in the paper")

    def __post_init__(self) -> None:
        require_known("disagreement", "of", self.of, KINDS)


class Disagreement(HeadLoss):
    """How alike the heads are."""

    Config = DisagreementConfig
    loss_weights = {f"disagreement_{kind}": 1.0 for kind in KINDS}  # noqa: RUF012
    card = Card(
        name="disagreement",
        kind="loss",
        family="improved multi-head",
        paper="Li et al. 2018, arXiv 1810.10183",
        formula="1/H^2 sum over pairs of heads of their cosine, or of the product of their weights",
        cost="O(N H E); position: H (H+1) / 2 score products",
        summary="heads are kept from doing the same",
        options=options_of(DisagreementConfig),
    )

    def __init__(self, config: DisagreementConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config

    @property
    def reads_weights(self) -> bool:  # type: ignore[override]
        """Whether weights are compared."""
        return self.config.of == "position"

    def forward(self, heads: Heads) -> dict[str, Tensor]:
        """1 where all heads are the same."""
        if self.config.of == "position":
            alike, selves = self._of_weights(heads)
        else:
            count = heads.outputs.shape[1]
            rows = heads.outputs if self.config.of == "output" else expand_heads(heads.values, count)
            alike, selves = self._of_directions(at_least_float32(rows))
        loss = alike if self.config.include_self else alike - selves
        return {f"disagreement_{self.config.of}": mean_over(heads.rows(), loss)}

    @staticmethod
    def _of_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means over pairs of heads of [B, H, N, E], and what of them is g = h: [B, N] each."""
        length = rows.square().sum(-1, keepdim=True)
        some = length > 0
        directions = rows * torch.where(some, length, 1.0).rsqrt() * some
        count = rows.shape[1]
        return directions.sum(1).square().sum(-1) / count**2, some.sum(1).squeeze(-1) / count**2

    @staticmethod
    def _of_weights(heads: Heads) -> tuple[Tensor, Tensor]:
        count = heads.outputs.shape[1]
        first, second = torch.triu_indices(count, count, device=heads.outputs.device)
        # Weights are compared key by key: all heads must see the same keys.
        require(
            len(heads.shares) == 1 and _is_shared(heads.call.plans[0]),
            "disagreement: of=position needs one mechanism that shows all heads the same keys, got another; "
            "use of=output, or a band for example",
        )
        lse = heads.log_sums()
        number, call = (len(first),), _of_pairs(heads, first, second)
        both = replace(heads, shares=number, kv_shares=number, call=call).log_sums()  # [B, pairs, N]
        seen = lse.isfinite()
        lse = torch.where(seen, lse, 0.0)
        seen = seen[:, first] & seen[:, second]
        product = torch.where(seen, both, 0.0) - lse[:, first] - lse[:, second]
        product = product.exp() * seen
        own = (first == second)[:, None]
        alike = torch.where(own, 1, 2) * product
        return alike.sum(1) / count**2, (product * own).sum(1) / count**2


class _OfPairs(ScoreTerm):
    """The sum of the biases of two heads."""

    def __init__(self, term: ScoreTerm, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.term, self.heads = [term], (first, second)

    def tile(self, pairs: Pairs) -> Tensor:
        (term,) = self.term
        one, two = (term.tile(replace(pairs, head=heads[pairs.head])) for heads in self.heads)
        return one + two

    def reach(self) -> int | None:
        return self.term[0].reach()


def _is_shared(plan: Plan) -> bool:
    """Whether no tensor of the plan tells heads apart."""
    if isinstance(plan, Union):
        return all(_is_shared(part) for part in plan.parts)
    tensors = [x for x in vars(plan).values() if isinstance(x, Tensor)]
    return all(x.dim() < 3 or x.shape[1] == 1 for x in tensors)


def _of_pairs(heads: Heads, first: Tensor, second: Tensor) -> Call:
    """The call whose heads are pairs of heads: scores add up where queries and keys stand side by side."""
    call, count = heads.call, heads.outputs.shape[1]
    k = expand_heads(call.k, count)
    q = torch.cat([call.q[:, first], call.q[:, second]], -1)
    q = q * 2**0.5  # kernels divide by the root of the width
    k = torch.cat([k[:, first], k[:, second]], -1)
    bias = None if call.bias is None else _OfPairs(call.bias, first, second)
    plans = tuple(weighing_twice(plan) for plan in call.plans)
    return replace(call, q=q, k=k, v=k[..., :1], bias=bias, plans=plans)
