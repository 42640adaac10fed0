"""Decoding, generic by plan kind: what each kind must remember, and one step of it.

Windows keep a ring of the last `before` keys per segment, Features their sums, Dense all keys, Union the
states of its parts. A state is consumed by the step that takes it: its buffers are written to, and the
returned state replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mapformers.attention.ring import RingState
from mapformers.core.attended import Attended, merge
from mapformers.core.errors import MapformersError, require
from mapformers.core.plans import Dense, Features, Plan, Union, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.dense import dense_attend
from mapformers.kernels.features import causal_features, key_sums
from mapformers.kernels.softmax import at_least_float32, expand_heads


@dataclass
class Inputs:
    """The new tokens of one step: q [B, H, n, D], k and v [B, G, n, ..], positions and is_real [B, n]."""

    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    is_real: Tensor


@dataclass
class DenseState:
    """All keys so far, in buffers that double when full. keys [B, G, capacity, D]; is_real, positions
    [B, capacity].
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    is_real: Tensor
    length: int = 0

    @classmethod
    def empty(cls, new: Inputs) -> DenseState:
        """Room for nothing yet."""
        return cls(new.k[:, :, :0], new.v[:, :, :0], new.positions[:, :0], new.is_real[:, :0])

    def append(self, new: Inputs) -> None:
        """Add the new keys."""
        end = self.length + new.k.shape[2]
        if end > self.keys.shape[2]:
            room = max(end, 2 * self.keys.shape[2]) - self.keys.shape[2]
            self.keys = F.pad(self.keys[:, :, :], (0, 0, 0, room))
            self.values = F.pad(self.values, (0, 0, 0, room))
            self.positions, self.is_real = F.pad(self.positions, (0, room)), F.pad(self.is_real, (0, room))
        self.keys[:, :, self.length : end] = new.k
        self.values[:, :, self.length : end] = new.v
        self.positions[:, self.length : end] = new.positions
        self.is_real[:, self.length : end] = new.is_real
        self.length = end

    def step(self, plan: Dense, new: Inputs, score: ScoreTerm | None) -> Attended:
        """Append, then attend to everything so far."""
        require(
            plan.allowed is None,
            "decode: a Dense plan with `allowed` cannot be stepped, got one; use a Windows plan",
        )
        start = self.length
        self.append(new)
        scope = Scope(
            causal=True,
            key_is_real=self.is_real[:, : self.length],
            positions=new.positions,
            key_positions=self.positions[:, : self.length],
            query_start=start,
        )
        return dense_attend(
            plan, new.q, self.keys[:, :, : self.length], self.values[:, :, : self.length], scope, score
        )

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
        self.positions, self.is_real = (
            self.positions.index_select(0, index),
            self.is_real.index_select(0, index),
        )


@dataclass
class SumState:
    """sum_j phi_k[j] [v[j], 1]: [B, G, F, E + 1], constant size."""

    sums: Tensor

    @classmethod
    def empty(cls, plan: Features, new: Inputs) -> SumState:
        """Nothing seen."""
        phi = at_least_float32(plan.phi_k)
        return cls(phi.new_zeros(*phi.shape[:2], phi.shape[-1], new.v.shape[-1] + 1))

    def step(self, plan: Features, new: Inputs) -> Attended:
        """What was summed before, and the causal sums among the new tokens."""
        heads = plan.phi_q.shape[1]
        phi_q = at_least_float32(plan.phi_q)
        phi_k = at_least_float32(plan.phi_k) * new.is_real[:, None, :, None]
        values = new.v.to(phi_k.dtype)
        attended = causal_features(phi_q, *(expand_heads(x, heads) for x in (phi_k, values, self.sums)))
        self.sums = self.sums + key_sums(phi_k, values)
        return Attended(attended.output.to(new.v.dtype), attended.lse)

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        self.sums = self.sums.index_select(0, index)


@dataclass
class UnionState:
    """One state for each part; None for parts with keys of their own."""

    parts: list[PlanState | None]

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        for part in self.parts:
            if part is not None:
                part.reorder(index)


PlanState = DenseState | SumState | RingState | UnionState


def step_plan(
    plan: Plan, state: PlanState | None, new: Inputs, score: ScoreTerm | None = None
) -> tuple[Attended, PlanState | None]:
    """Attend from the new tokens to everything so far. `plan` speaks of the new tokens only; None =
    nothing so far.
    """
    if isinstance(plan, Union):
        states = state.parts if isinstance(state, UnionState) else [None] * len(plan.parts)
        stepped = [
            step_plan(part, before, new, score) for part, before in zip(plan.parts, states, strict=True)
        ]
        return merge([attended for attended, _ in stepped]), UnionState([after for _, after in stepped])
    if isinstance(plan, Dense) and plan.keys is not None:
        return dense_attend(plan, new.q, new.k, new.v, Scope()), None
    if isinstance(plan, Dense):
        dense = state if isinstance(state, DenseState) else DenseState.empty(new)
        return dense.step(plan, new, score), dense
    if isinstance(plan, Features):
        sums = state if isinstance(state, SumState) else SumState.empty(plan, new)
        return sums.step(plan, new), sums
    if isinstance(plan, Windows):
        ring = state if isinstance(state, RingState) else RingState.empty(plan, new.k, new.v)
        return ring.step(plan, new, score), ring
    raise MapformersError(
        f"decode: plan {type(plan).__name__} keeps no state; use a mechanism that supports decode"
    )
