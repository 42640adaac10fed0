"""Multi-head attention with four exchangeable ports: project, mechanism, score, merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.attention.choices import Choices
from mapformers.attention.ports import check_ports
from mapformers.attention.result import AttentionOptions, AttentionResult, AttentionState, Ports
from mapformers.attention.rotary import Rotation, rotate, rotation
from mapformers.attention.state import DenseState, Inputs, PlanState, step_mechanism
from mapformers.core.carry import Carry, added
from mapformers.core.errors import require
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.plans import ByRows, Plan
from mapformers.core.scope import Scope, ranks_among_real
from mapformers.core.score import Call
from mapformers.functional import check_supports
from mapformers.heads.head_loss import HeadLoss, Heads
from mapformers.heads.projection import Projection, Sizes
from mapformers.kernels.shares import run_share, shares_of, weighed
from mapformers.mechanisms.sparse.full import Full

Qkv = tuple[Tensor, Tensor, Tensor]


class _Heads(NamedTuple):
    """q [B, H, N, D], k and v [B, G, M, ..] of all heads, before rotation."""

    q: Tensor
    k: Tensor
    v: Tensor


class MultiHeadAttention(nn.Module):
    """x [B, N, dim] -> [B, N, dim]. Mechanisms share the heads in the order given, `shares` heads each."""

    def __init__(
        self,
        sizes: Sizes,
        mechanisms: list[tuple[Mechanism, int]],
        ports: Ports,
        options: AttentionOptions,
    ) -> None:
        super().__init__()
        self.sizes, self.options = sizes, options
        self.project, self.merge, self.score = ports.project, ports.merge, ports.score
        self.losses = nn.ModuleList(ports.losses)
        self.mechanisms = nn.ModuleList(mechanism for mechanism, _ in mechanisms)
        self.shares = [share for _, share in mechanisms]
        group = sizes.heads // ports.project.kv_heads
        self._kv_shares = [max(1, share // group) for share in self.shares]
        check_ports(self)

    def forward(
        self,
        x: Tensor,
        key_is_real: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        context_is_real: Tensor | None = None,
    ) -> Tensor:
        """x [B, N, dim] to [B, N, dim].

        key_is_real [B, N] bool, False = padding; segments [B, N] int, packed documents; positions [B, N] int,
        default the rank among the real tokens of the document. With context [B, M, dim] (and context_is_real
        [B, M])
        keys and values come from there, and nothing is causal.
        Raises MapformersError for what a mechanism does not support.
        """
        if context is not None:
            require(
                segments is None and key_is_real is None,
                "attention: context takes context_is_real, got key_is_real or segments; pass the "
                "mask of the context",
            )
            require(
                not self.options.causal,
                "attention: context needs causal=False, got causal=True; make a layer for it",
            )
            return self.read(x, context, Carry(context_is_real=context_is_real)).output
        require(
            context_is_real is None,
            "attention: context_is_real goes with context, got it alone; use key_is_real",
        )
        carry = Carry(key_is_real=key_is_real, segments=segments, positions=positions)
        return self.attend(x, carry).output

    def attend(
        self, x: Tensor, carry: Carry | None = None, choices: Choices | None = None
    ) -> AttentionResult:
        """Self-attention like `forward`, inside a stack of layers.

        carry brings padding, documents and positions, and what score terms left in the layer below. choices
        keeps the plans of this call, or brings those of an earlier one.
        """
        carry = Carry() if carry is None else carry
        scope = Scope.of(self.options.causal, carry.key_is_real, carry.segments, carry.positions)
        return self._attend(x, x, scope, carry, choices)

    def read(self, x: Tensor, context: Tensor, carry: Carry) -> AttentionResult:
        """Cross-attention of x [B, N, dim] to a context [B, M, dim] inside a stack of layers.

        carry.context_is_real [B, M] marks its padding. Nothing is causal, and x has no place in the context.
        """
        real = carry.context_is_real
        places = None if real is None else ranks_among_real(real)  # so that its padding shifts nothing
        return self._attend(x, context, Scope(key_is_real=real, key_positions=places, cross=True), carry)

    def attend_last(self, x: Tensor, first: int, carry: Carry) -> AttentionResult:
        """The outputs of the tokens x[:, first:] alone, each of which sees those before it and itself.

        x [B, M, dim] to [B, M - first, dim]. Of causal mechanisms that take fewer queries than keys.
        """
        scope = Scope.of(True, carry.key_is_real, None, carry.positions)
        keys = scope.query_positions(x.shape[1], x.device)
        scope = Scope(
            causal=True,
            key_is_real=carry.key_is_real,
            positions=keys[:, first:],
            key_positions=keys,
            query_start=first,
        )
        return self._attend(x[:, first:], x, scope, carry)

    def remember(self, x: Tensor, state: AttentionState) -> AttentionState:
        """Keys and values of the next tokens x [B, n, dim], whose outputs nobody asks for.

        Raises MapformersError for mechanisms that do not keep all keys.
        """
        require(
            all(isinstance(mechanism, Full) for mechanism in self.parts()) and self.score is None,
            "attention: remember needs full attention without score terms, got others; step over the tokens",
        )
        batch, n, _ = x.shape
        heads = self._project(x, x, self.project)
        positions = state.length[:, None] + torch.arange(n, device=x.device)
        turn = self._rotation(positions, x.dtype)
        keys = heads.k if turn is None else rotate(heads.k, turn)
        is_real = torch.ones(batch, n, dtype=torch.bool, device=x.device)
        after: list[PlanState | None] = []
        values = heads.v.split(self._kv_shares, 1)
        for k, v, part in zip(self._keys_of(keys), values, state.parts, strict=True):
            new = Inputs(k[:, :, :0], k, v, positions, is_real)
            dense = part if isinstance(part, DenseState) else DenseState.empty(new)
            dense.append(new)
            after.append(dense)
        return AttentionState(state.length + n, after)

    def init_state(self, batch_size: int = 1) -> AttentionState:
        """An empty decode state. Raises MapformersError where the layer cannot decode exactly."""
        require(
            self.options.causal,
            "attention: decoding needs causal=True, got causal=False; make a causal layer",
        )
        for mechanism in self.parts():
            require(
                "decode" in mechanism.card.supports and mechanism.can_decode(),
                f"{mechanism.card.name}: cannot decode token by token, got {mechanism.config}; run "
                "the whole prefix",
            )
        device = next(self.parameters()).device
        return AttentionState(
            torch.zeros(batch_size, dtype=torch.long, device=device), [None] * len(self.shares)
        )

    def step(
        self, x: Tensor, state: AttentionState, key_is_real: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        """The next tokens x [B, n, dim], n >= 1, after those of `state`: their outputs, and the new state.

        Equal to the parallel form. The state passed in is consumed: its buffers are reused.
        """
        result, state = self.advance(x, Carry(key_is_real=key_is_real), state)
        return result.output, state

    def advance(
        self, x: Tensor, carry: Carry, state: AttentionState
    ) -> tuple[AttentionResult, AttentionState]:
        """`step` inside a stack of layers: the carry is that of the new tokens."""
        batch, n, _ = x.shape
        require(
            state.length.shape[0] == batch,
            f"attention: x must have the state's batch size {state.length.shape[0]}, got {batch}; "
            "reorder the state",
        )
        is_real = carry.key_is_real
        if is_real is None:
            is_real = torch.ones(batch, n, dtype=torch.bool, device=x.device)
        positions = (state.length[:, None] + is_real.long().cumsum(1) - 1).clamp(min=0)  # [B, n]
        scope = Scope(causal=True, key_is_real=is_real, positions=positions, ranks=positions)
        heads = self._project(x, x, self.project)
        turn = self._rotation(positions, x.dtype)
        call = self._call(heads, (turn, turn), scope, carry)
        call, memory = (call, None) if self.score is None else self.score.bind(call, state.memory)
        output, parts = self.step_call(call, state.parts)
        state = AttentionState(state.length + is_real.sum(1), parts, memory)
        return AttentionResult(self.merge(output), {}, call.carry, call=call), state

    def run_call(self, call: Call) -> tuple[Tensor, list[str]]:
        """Outputs of the heads [B, H, N, D] of a call that has its plans, and the kernels that ran."""
        outputs, kernels = [], []
        for plan, share in zip(call.plans, shares_of(call, self.shares, self._kv_shares), strict=True):
            output, kernel = run_share(plan, share, call)
            outputs.append(output)
            kernels.append(kernel)
        return call.finished(torch.cat(outputs, 1)), kernels

    def step_call(self, call: Call, parts: list[PlanState | None]) -> tuple[Tensor, list[PlanState | None]]:
        """The same of a call of new tokens, on top of what the mechanisms remember of those before."""
        assert call.scope.positions is not None
        assert call.scope.key_is_real is not None
        outputs, after = [], []
        plain_q, plain_k = call.plain_q.split(self.shares, 1), self._keys_of(call.plain_k)
        dealt = shares_of(call, self.shares, self._kv_shares)
        for mechanism, q, k, share, part in zip(self.parts(), plain_q, plain_k, dealt, parts, strict=True):
            new = Inputs(share.q, share.k, share.v, call.scope.positions, call.scope.key_is_real)
            attended, kept = step_mechanism(mechanism, (q, k), new, part, share)
            outputs.append(weighed(attended, call))
            after.append(kept)
        return call.finished(torch.cat(outputs, 1)), after

    def update_centroids(self) -> None:
        """Let mechanisms and score terms move what gradients do not. Call after the optimiser step."""
        for mechanism in self.parts():
            mechanism.update_centroids()
        for asked in (self.score, *self.head_losses()):
            if asked is not None:
                asked.after_step()

    def telemetry(self) -> dict[str, float]:
        """Numbers about the state of the mechanisms, by name; of the first, where two have the same."""
        numbers: dict[str, float] = {}
        for mechanism in self.parts():
            numbers = {**mechanism.telemetry(), **numbers}
        return numbers

    def _attend(
        self, x: Tensor, context: Tensor, scope: Scope, carry: Carry, choices: Choices | None = None
    ) -> AttentionResult:
        scope.check(x.shape[0], x.shape[1], context.shape[1])
        heads = self._project(x, context, self.project)
        gathering = self.training and not _in_backward()
        plans: list[Plan] = []
        by_rows: list[ByRows] = []
        losses: dict[str, Tensor] = {}
        for mechanism, q, k in self._plain(heads):
            check_supports(mechanism, scope.causal, scope, cross=context is not x)
            if self.project.has_second:
                by_rows.append(mechanism.plan_by_rows(q, k, scope))
                plan = by_rows[-1].of_others
            else:
                plan = mechanism.plan(q, k, scope)
            plans.append(plan if choices is None else choices.settle(plan))
            if self.training:
                losses = added(losses, mechanism.losses(q, k, scope))
            if gathering:
                mechanism.observe(q.detach(), k.detach(), scope)
        turns = self._turns(x, context, scope)
        output, kernels, call = self._run(heads, plans, turns, scope, carry)
        if by_rows:
            second = self._project(x, context, self.project.second)
            other, more, _ = self._run(second, [rows.of_marked for rows in by_rows], turns, scope, carry)
            marked = [
                rows.marked[:, None].expand(-1, share, -1)
                for rows, share in zip(by_rows, self.shares, strict=True)
            ]
            output = torch.where(torch.cat(marked, 1).unsqueeze(-1), other, output)  # [B, H, N, E]
            kernels = ["+".join(sorted({a, b})) for a, b in zip(kernels, more, strict=True)]
        if self.training and self.score is not None:
            losses = added(losses, self.score.losses())
        if self.training and len(self.losses):
            seen = Heads(call, tuple(self.shares), tuple(self._kv_shares), heads.v, output)
            for loss in self.head_losses():
                losses = added(losses, loss(seen))
        output = F.dropout(output, self.options.dropout, self.training)
        return AttentionResult(
            self.merge(output), losses, call.carry.add_losses(losses), tuple(kernels), call
        )

    def _run(
        self,
        heads: _Heads,
        plans: list[Plan],
        turns: tuple[Rotation | None, Rotation | None],
        scope: Scope,
        carry: Carry,
    ) -> tuple[Tensor, list[str], Call]:
        """Outputs of the heads [B, H, N, D], the kernels that ran, and the call behind the score terms."""
        call = self._call(heads, turns, scope, carry, tuple(plans))
        if self.score is not None:
            call, _ = self.score.bind(call)
        return *self.run_call(call), call

    def _call(
        self,
        heads: _Heads,
        turns: tuple[Rotation | None, Rotation | None],
        scope: Scope,
        carry: Carry,
        plans: tuple[Plan, ...] = (),
    ) -> Call:
        """The call before the score terms: q and k are rotated here, after the plans were made."""
        q_turn, k_turn = turns
        q, k = heads.q, heads.k
        if q_turn is not None and k_turn is not None:
            q, k = rotate(q, q_turn), rotate(k, k_turn)
        return Call(heads.q, heads.k, q, k, heads.v, plans, scope, carry)

    def _project(self, x: Tensor, context: Tensor, project: Callable[[Tensor, Tensor], Qkv]) -> _Heads:
        """q, k, v of all heads."""
        require(
            x.dim() == 3 and x.shape[-1] == self.sizes.dim,
            f"attention: x must have shape [batch, tokens, {self.sizes.dim}], got {tuple(x.shape)}; "
            "check dim",
        )
        q, k, v = project(x, context)
        if any(mechanism.shares_qk for mechanism in self.parts()):
            shared = zip(self.parts(), q.split(self.shares, 1), self._keys_of(k), strict=True)
            k = torch.cat([one if mechanism.shares_qk else other for mechanism, one, other in shared], 1)
        return _Heads(q, k, v)

    def _keys_of(self, k: Tensor) -> list[Tensor]:
        """The keys that each mechanism plans with; a single head repeated without memory."""
        if k.shape[1] == 1:
            return [k.expand(-1, count, -1, -1) for count in self._kv_shares]
        return list(k.split(self._kv_shares, 1))

    def _plain(self, heads: _Heads) -> list[tuple[Mechanism, Tensor, Tensor]]:
        """The mechanisms with their heads of q and k."""
        return list(
            zip(
                self.parts(),
                heads.q.split(self.shares, 1),
                self._keys_of(heads.k),
                strict=True,
            )
        )

    def _turns(self, x: Tensor, context: Tensor, scope: Scope) -> tuple[Rotation | None, Rotation | None]:
        """The angles of queries and keys."""
        turn = self._rotation(scope.query_positions(x.shape[1], x.device), x.dtype)
        if context is x:
            return turn, turn
        return turn, self._rotation(scope.positions_of_keys(context.shape[1], x.device), x.dtype)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        """The angles of positions [B or 1, N], once for all heads."""
        if not self.options.rotary:
            return None
        return rotation(positions, self.sizes.head_dim, dtype, self.options.rotary_base)

    def parts(self) -> list[Mechanism]:
        """The mechanisms, which share the heads in this order."""
        return list(self.mechanisms)  # type: ignore[arg-type]

    def head_losses(self) -> list[HeadLoss]:
        """What the heads are asked for in training."""
        return list(self.losses)  # type: ignore[arg-type]


def bind_mechanisms(
    shares: list[tuple[Mechanism, int]], sizes: Sizes, project: Projection, generator: torch.Generator
) -> list[tuple[Mechanism, int]]:
    """Bind each mechanism to its share of the heads."""
    for mechanism, share in shares:
        kv_heads = max(1, share * project.kv_heads // sizes.heads)
        mechanism.bind(Shape(share, kv_heads, project.key_dim or sizes.head_dim), generator)
    return shares


def _in_backward() -> bool:
    """Whether autograd is running: a forward inside it is a recomputation (activation checkpointing),
    not a new one.
    """
    return torch._C._current_graph_task_id() != -1
