"""What a layer is told, what it returns, and what it remembers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from mapformers.attention.state import PlanState
from mapformers.core.carry import Carry
from mapformers.core.score import Call, Memory, ScoreTerm
from mapformers.heads.head_loss import HeadLoss
from mapformers.heads.merging import Merge
from mapformers.heads.projection import Projection


class AttentionResult(NamedTuple):
    """output [B, N, dim]; losses: auxiliary losses by name, unweighted scalars (empty outside training).

    carry: for the layer above, with these losses added. kernels: the code that ran for each mechanism, in
    their order: sdpa, torch, native, flex or varlen; parts of a union that ran on different ones are joined
    by "+". call: what ran, behind the score terms.
    """

    output: Tensor
    losses: dict[str, Tensor]
    carry: Carry
    kernels: tuple[str, ...] = ()
    call: Call | None = None


@dataclass(frozen=True)
class Ports:
    """What can be exchanged in a layer beside its mechanisms."""

    project: Projection
    merge: Merge
    score: ScoreTerm | None = None
    losses: tuple[HeadLoss, ...] = ()


@dataclass(frozen=True)
class AttentionOptions:
    """What a layer is told beside its ports.

    causal   strict causality; a context (cross-attention) is never causal
    rotary   rotate q and k by true positions, after the plan was made; base as in Su et al. 2021
    dropout  of the heads' outputs, in training
    """

    causal: bool = False
    rotary: bool = False
    rotary_base: float = 10000.0
    dropout: float = 0.0


@dataclass
class AttentionState:
    """Decode state of one layer: tokens seen per row, and what each mechanism remembers."""

    length: Tensor  # [B]
    parts: list[PlanState | None] = field(default_factory=list)
    memory: Memory | None = None  # of the score terms

    def reorder(self, index: Tensor) -> AttentionState:
        """Batch rows in another order (beams): row b of the result is row index[b]."""
        for part in self.parts:
            if part is not None:
                part.reorder(index)
        if self.memory is not None:
            self.memory.reorder(index)
        return replace(self, length=self.length.index_select(0, index))
