"""Projections of their own for the rows of global tokens.

Paper    Beltagy, Peters, Cohan 2020, "Longformer", arXiv 2004.05150, section 3.1, linear projections.
Formula  rows of global tokens: softmax_j(g_i . h_j / sqrt(D)) u_j over all j, with g, h, u of a second set;
         other rows: q, k, v of the first set, for global keys too
Differs  The second set is used where the mechanism marks rows; the paper has one mechanism that does.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.card import Card, options_of
from mapformers.heads.projection import GroupedQuery, GroupedQueryConfig, Sizes


@dataclass(frozen=True)
class LocalGlobalConfig:
    """No options."""


class LocalGlobal(GroupedQuery):
    """Two sets of projections; the second starts as a copy of the first."""

    Config = LocalGlobalConfig  # type: ignore[assignment]
    has_second = True
    card = Card(
        name="local_global",
        kind="project",
        family="sparse, position-based (compound)",
        paper="Beltagy et al. 2020, arXiv 2004.05150, section 3.1",
        formula="rows of global tokens: x W_qg, x W_kg, x W_vg; all other rows: x W_q, x W_k, x W_v",
        cost="time O(N dim^2), twice that of multi_head",
        summary="rows of global tokens have projections of their own; not causal",
        options=options_of(LocalGlobalConfig),
    )

    def __init__(self, config: LocalGlobalConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__(GroupedQueryConfig(kv_heads=sizes.heads), sizes, generator)
        self.global_query, self.global_key, self.global_value = (
            copy.deepcopy(first) for first in (self.query, self.key, self.value)
        )

    def second(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, with the second set."""
        q, k, v = self.global_query(x), self.global_key(context), self.global_value(context)
        return self._split(q), self._split(k), self._split(v)
