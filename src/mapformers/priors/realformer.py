"""RealFormer: the scores of a layer are added to those of the layers below it.

Paper    He, Ravula, Kanagal, Ainslie 2021, "RealFormer: Transformer Likes Residual Attention",
         arXiv 2012.11747.
Formula  C_l = C_(l-1) + Q_l K_l^T / sqrt(D); A_l = softmax(C_l + biases), with mean: softmax(C_l / l + ..)
Cost     form=pairs: the score product of layer l costs l times as much; form=scores: O(N M) memory
Differs  form=pairs keeps queries and keys instead of scores: C_l is the product of [Q_1 .. Q_l] and
         [K_1 .. K_l] side by side. It runs on every kernel, and layers may see different keys. Only products
         are carried: biases and masks belong to their layer. A mechanism's own keys (routing's null key)
         start anew in every layer. Decoding keeps the keys of the layers below once more in every layer.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import Card, option, options_of
from mapformers.core.errors import require_known
from mapformers.core.score import ByQuery, Call, Memory, ScoreSite, ScoreTerm
from mapformers.priors.maps import KeysSoFar, key_row, raw_scores

FORMS = ("pairs", "scores")


@dataclass(frozen=True)
class RealFormerConfig:
    """Options of realformer."""

    mean: bool = option(False, "the mean over the layers so far instead of their sum, for deep stacks")
    form: Literal["pairs", "scores"] = option("pairs", "carry queries and keys, or scores (full attention)")

    def __post_init__(self) -> None:
        require_known("realformer", "form", self.form, FORMS)


class RealFormer(ScoreTerm):
    """Residual scores."""

    Config = RealFormerConfig
    carries = True
    card = Card(
        name="realformer",
        kind="score",
        family="attention with prior",
        paper="He et al. 2021, arXiv 2012.11747",
        formula="softmax(sum over layers up to l of Q K^T / sqrt(D))",
        cost="l times the score product in layer l",
        summary="scores add up from layer to layer",
        options=options_of(RealFormerConfig),
    )

    def __init__(self, config: RealFormerConfig, site: ScoreSite, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.needs_map = self.replaces_scores = config.form == "scores"
        self.changes_scores = config.form == "pairs"

    def bind(self, call: Call, memory: Memory | None = None) -> tuple[Call, Memory | None]:
        """This layer's queries and keys beside those below, or its scores on top of theirs."""
        if self.needs_map:
            return self._on_scores(call, memory if isinstance(memory, KeysSoFar) else KeysSoFar())
        queries, keys = (*call.carry.queries, call.q), (*call.carry.keys, call.k)
        layers, dim = len(queries), call.q.shape[-1]
        gain = math.sqrt(layers) / (layers if self.config.mean else 1)  # kernels divide by the root of l D

        def behind_nothing(own: Tensor, first: int) -> Tensor:
            nothing = own.new_zeros(*own.shape[:3], (layers - 1) * dim)
            return torch.cat([nothing, own * (layers if self.config.mean else 1)], -1)

        carry = replace(call.carry, queries=queries, keys=keys)
        q, k = torch.cat(queries, -1) * gain, torch.cat(keys, -1)
        return replace(call, q=q, k=k, carry=carry, own_keys=(*call.own_keys, behind_nothing)), None

    def _on_scores(self, call: Call, seen: KeysSoFar) -> tuple[Call, Memory]:
        scores = raw_scores(call.q, seen.add(call.k, call.scope.key_is_real))  # [B, H, N, M]
        layers = call.carry.scores_of + 1
        if call.carry.scores is not None:
            scores = scores + call.carry.scores
        carry = replace(call.carry, scores=scores, scores_of=layers)
        bias = ByQuery(scores / layers if self.config.mean else scores, key_row)
        return replace(call.without_scores(), carry=carry).add(bias), seen
