"""Decoding, generic by plan kind: what each kind must remember, and one step of it.

Windows keep a ring of the last `before` keys per segment, Features their sums, DeltaRule its matrix, Dense
all keys, Union the states of its parts. A mechanism that plans from its history keeps all keys. A state is
consumed by the step that takes it: its buffers are written to, and the returned state replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mapformers.attention.ring import RingState
from mapformers.core.attended import Attended, merge
from mapformers.core.errors import MapformersError, require
from mapformers.core.mechanism import Mechanism
from mapformers.core.plans import DeltaRule, Dense, Features, Plan, Union, Windows
from mapformers.core.scope import Scope
from mapformers.core.score import ScoreTerm
from mapformers.kernels.delta import delta_rule
from mapformers.kernels.dense import dense_attend
from mapformers.kernels.feature_sums import Sums
from mapformers.kernels.features import causal_features, keys_of
from mapformers.kernels.run import run
from mapformers.kernels.shares import Share
from mapformers.kernels.softmax import at_least_float32, expand_heads


@dataclass
class Inputs:
    """The new tokens of one step: q [B, H, n, D], k and v [B, G, n, ..], positions and is_real [B, n]."""

    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    is_real: Tensor

    def of_keys(self) -> tuple[tuple[Tensor, int], ...]:
        """What is kept of the keys, with the dimension along which tokens follow each other."""
        return (self.k, 2), (self.v, 2), (self.positions, 1), (self.is_real, 1)

    def for_rings(self, plan: Windows) -> Inputs:
        """Keys and values with as many heads as each other, and as the segments of the keys."""
        segments = 1 if plan.key_segment is None else plan.key_segment.shape[1]
        heads = max(self.k.shape[1], self.v.shape[1], segments)
        return replace(self, k=expand_heads(self.k, heads), v=expand_heads(self.v, heads))


@dataclass
class Buffer:
    """A tensor that grows along one dimension; its room doubles when it is full."""

    room: Tensor
    dim: int
    length: int = 0

    @classmethod
    def empty(cls, like: Tensor, dim: int) -> Buffer:
        """Room for nothing yet."""
        return cls(like.narrow(dim, 0, 0), dim)

    def append(self, x: Tensor) -> None:
        """Add the entries of x behind those held."""
        end, room = self.length + x.shape[self.dim], self.room.shape[self.dim]
        if end > room:
            shape = list(self.room.shape)
            shape[self.dim] = max(end, 2 * room) - room
            self.room = torch.cat([self.room, self.room.new_zeros(shape)], self.dim)
        self.room.narrow(self.dim, self.length, x.shape[self.dim]).copy_(x)
        self.length = end

    def held(self) -> Tensor:
        """All entries so far; a view."""
        return self.room.narrow(self.dim, 0, self.length)

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        self.room = self.room.index_select(0, index)


@dataclass
class DenseState:
    """All keys so far: keys [B, G, M, D], values [B, G, M, E], positions and is_real [B, M]."""

    keys: Buffer
    values: Buffer
    positions: Buffer
    is_real: Buffer

    @classmethod
    def empty(cls, new: Inputs) -> DenseState:
        """Room for nothing yet."""
        return cls(*(Buffer.empty(x, dim) for x, dim in new.of_keys()))

    def append(self, new: Inputs) -> Scope:
        """Add the new keys; the scope of the new queries over all keys so far."""
        start = self.keys.length
        buffers = (self.keys, self.values, self.positions, self.is_real)
        for buffer, (x, _) in zip(buffers, new.of_keys(), strict=True):
            buffer.append(x)
        return Scope(
            causal=True,
            key_is_real=self.is_real.held(),
            positions=new.positions,
            key_positions=self.positions.held(),
            query_start=start,
        )

    def step(self, plan: Dense, new: Inputs, score: ScoreTerm | None) -> Attended:
        """Append, then attend to everything so far."""
        require(
            plan.allowed is None,
            "decode: a Dense plan with `allowed` cannot be stepped, got one; use a Windows plan",
        )
        scope = self.append(new)
        return dense_attend(plan, new.q, self.keys.held(), self.values.held(), scope, score)

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        for buffer in (self.keys, self.values, self.positions, self.is_real):
            buffer.reorder(index)


@dataclass
class HistoryState:
    """All keys so far, before and after rotation: the plan is made anew in each step."""

    plain_keys: Buffer
    dense: DenseState

    @classmethod
    def empty(cls, plain_k: Tensor, new: Inputs) -> HistoryState:
        """Room for nothing yet."""
        return cls(Buffer.empty(plain_k, 2), DenseState.empty(new))

    def step(
        self, mechanism: Mechanism, plain: tuple[Tensor, Tensor], new: Inputs, share: Share | None
    ) -> Attended:
        """plain: q and k of the new tokens before rotation."""
        scope = self.dense.append(new)
        self.plain_keys.append(plain[1])
        plan = mechanism.plan(plain[0], self.plain_keys.held(), scope)
        score = None if share is None else share.bias
        plan = plan if share is None else share.fit(plan)
        return run(plan, new.q, self.dense.keys.held(), self.dense.values.held(), scope, score)

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        self.plain_keys.reorder(index)
        self.dense.reorder(index)


@dataclass
class SumState:
    """What the keys so far sum up to, of constant size: sums [B, G, F, E + 1] and their level [B, G]."""

    carried: Sums | None = None

    def step(self, plan: Features, new: Inputs) -> Attended:
        """What was summed before, and the causal sums among the new tokens."""
        heads, kv_heads = plan.phi_q.shape[1], max(new.k.shape[1], new.v.shape[1])
        before = None
        if self.carried is not None:
            sums, level = self.carried
            before = Sums(expand_heads(sums, heads), level.repeat_interleave(heads // kv_heads, 1))
        attended, after = causal_features(
            at_least_float32(plan.phi_q), keys_of(plan, new.v, new.is_real), plan.floor, before
        )
        self.carried = Sums(*(x[:, :: heads // kv_heads] for x in after))
        return Attended(attended.output.to(new.v.dtype), attended.lse)

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        if self.carried is not None:
            self.carried = Sums(*(x.index_select(0, index) for x in self.carried))


@dataclass
class DeltaState:
    """What the keys so far were written into, of constant size: [B, G, F, E]."""

    matrix: Tensor | None = None

    def step(self, plan: DeltaRule, new: Inputs) -> Attended:
        """The new keys correct the matrix one after another, and each query reads it behind its own."""
        beta = plan.beta.masked_fill(~new.is_real[:, None], 0.0)
        y, self.matrix = delta_rule(plan.phi_q, plan.phi_k, beta, new.v, self.matrix)
        return Attended(y.to(new.v.dtype), y.new_full(y.shape[:3], float("nan")))

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        if self.matrix is not None:
            self.matrix = self.matrix.index_select(0, index)


@dataclass
class UnionState:
    """One state for each part; None for parts with keys of their own."""

    parts: list[PlanState | None]

    def reorder(self, index: Tensor) -> None:
        """Batch rows in another order."""
        for part in self.parts:
            if part is not None:
                part.reorder(index)


PlanState = DenseState | HistoryState | SumState | DeltaState | RingState | UnionState


def step_mechanism(
    mechanism: Mechanism,
    plain: tuple[Tensor, Tensor],
    new: Inputs,
    state: PlanState | None,
    share: Share | None = None,
) -> tuple[Attended, PlanState | None]:
    """Attend from the new tokens to everything so far; plain: their q and k before rotation. share: what
    score terms made of the call, None without any.
    """
    if mechanism.plans_from_history:
        history = state if isinstance(state, HistoryState) else HistoryState.empty(plain[1], new)
        return history.step(mechanism, plain, new, share), history
    scope = Scope(causal=True, key_is_real=new.is_real, positions=new.positions, ranks=new.positions)
    plan = mechanism.plan(*plain, scope)
    if share is None:
        return step_plan(plan, state, new)
    return step_plan(share.fit(plan), state, new, share.bias)


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
        sums = state if isinstance(state, SumState) else SumState()
        return sums.step(plan, new), sums
    if isinstance(plan, DeltaRule):
        matrix = state if isinstance(state, DeltaState) else DeltaState()
        return matrix.step(plan, new), matrix
    if isinstance(plan, Windows):
        new = new.for_rings(plan)
        ring = state if isinstance(state, RingState) else RingState.empty(plan, new.k, new.v)
        return ring.step(plan, new, score), ring
    raise MapformersError(
        f"decode: plan {type(plan).__name__} keeps no state; use a mechanism that supports decode"
    )
