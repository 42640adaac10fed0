"""Multi-head attention with four exchangeable ports: project, mechanism, score, merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.attention.choices import Choices
from mapformers.attention.rotary import Rotation, rotate, rotation
from mapformers.attention.state import Inputs, PlanState, step_mechanism
from mapformers.core.errors import require
from mapformers.core.mechanism import Mechanism, Shape
from mapformers.core.plans import Plan
from mapformers.core.scope import Scope
from mapformers.core.score import Pairs, ScoreTerm
from mapformers.functional import check_supports
from mapformers.heads.merging import Merge
from mapformers.heads.projection import Projection, Sizes
from mapformers.kernels.run import run_output

Qkv = tuple[Tensor, Tensor, Tensor]


class AttentionResult(NamedTuple):
    """output [B, N, dim]; losses: auxiliary losses by name, unweighted scalars (empty outside training).

    kernels: the code that ran for each mechanism, in their order: sdpa, torch, native, flex or varlen; parts
    of a union that ran on different ones are joined by "+".
    """

    output: Tensor
    losses: dict[str, Tensor]
    kernels: tuple[str, ...] = ()


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

    def reorder(self, index: Tensor) -> AttentionState:
        """Batch rows in another order (beams): row b of the result is row index[b]."""
        for part in self.parts:
            if part is not None:
                part.reorder(index)
        return replace(self, length=self.length.index_select(0, index))


class _HeadsOf(ScoreTerm):
    """A score term as seen by some of the heads of a layer."""

    def __init__(self, term: ScoreTerm, first: int) -> None:
        super().__init__()
        self.term, self.first = term, first

    def tile(self, pairs: Pairs) -> Tensor:
        return self.term.tile(replace(pairs, head=pairs.head + self.first))

    def by_distance(self, head: Tensor, distance: Tensor) -> Tensor | None:
        return self.term.by_distance(head + self.first, distance)


class MultiHeadAttention(nn.Module):
    """x [B, N, dim] -> [B, N, dim]. Mechanisms share the heads in the order given, `shares` heads each."""

    def __init__(
        self,
        sizes: Sizes,
        mechanisms: list[tuple[Mechanism, int]],
        project: Projection,
        merge: Merge,
        score: ScoreTerm | None,
        options: AttentionOptions,
    ) -> None:
        super().__init__()
        self.sizes, self.options = sizes, options
        self.project, self.merge, self.score = project, merge, score
        self.mechanisms = nn.ModuleList(mechanism for mechanism, _ in mechanisms)
        self.shares = [share for _, share in mechanisms]
        group = sizes.heads // project.kv_heads
        for mechanism, share in mechanisms:
            require(
                share % group == 0,
                f"{mechanism.card.name}: heads must be a multiple of heads / kv_heads = {group}, got "
                f"{share}; "
                "change the shares or kv_heads",
            )
            check_supports(mechanism, options.causal, rotary=options.rotary, score=score, grouped=group > 1)
        require(
            not options.rotary or sizes.head_dim % 2 == 0,
            f"rotary: head_dim must be even, got {sizes.head_dim}; choose another head_dim or rotary=False",
        )
        self._kv_shares = [share // group for share in self.shares]
        if project.has_second:
            _check_second(project, self._mechanisms(), options.causal)

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
            return self._attend(x, context, Scope(key_is_real=context_is_real)).output
        require(
            context_is_real is None,
            "attention: context_is_real goes with context, got it alone; use key_is_real",
        )
        return self.attend(x, key_is_real, segments, positions).output

    def attend(
        self,
        x: Tensor,
        key_is_real: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        choices: Choices | None = None,
    ) -> AttentionResult:
        """Self-attention like `forward`, with the auxiliary losses beside the output.

        choices keeps the plans of this call, or brings those of an earlier one.
        """
        return self._attend(x, x, Scope.of(self.options.causal, key_is_real, segments, positions), choices)

    def init_state(self, batch_size: int = 1) -> AttentionState:
        """An empty decode state. Raises MapformersError where the layer cannot decode exactly."""
        require(
            self.options.causal,
            "attention: decoding needs causal=True, got causal=False; make a causal layer",
        )
        for mechanism in self._mechanisms():
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
        batch, n, _ = x.shape
        require(
            state.length.shape[0] == batch,
            f"attention: x must have the state's batch size {state.length.shape[0]}, got {batch}; "
            "reorder the state",
        )
        is_real = (
            torch.ones(batch, n, dtype=torch.bool, device=x.device) if key_is_real is None else key_is_real
        )
        positions = (state.length[:, None] + is_real.long().cumsum(1) - 1).clamp(min=0)  # [B, n]
        turn = self._rotation(positions, x.dtype)
        outputs, parts = [], []
        for i, (mechanism, q, k, v) in enumerate(self._split(x, x, self.project)):
            plain = (q, k)
            if turn is not None:
                q, k = rotate(q, turn), rotate(k, turn)
            attended, part = step_mechanism(
                mechanism, plain, Inputs(q, k, v, positions, is_real), state.parts[i], self._score_of(i)
            )
            outputs.append(attended.output)
            parts.append(part)
        return self.merge(torch.cat(outputs, 1)), AttentionState(state.length + is_real.sum(1), parts)

    def update_centroids(self) -> None:
        """Let mechanisms move what gradients do not. Call after the optimiser step."""
        for mechanism in self._mechanisms():
            mechanism.update_centroids()

    def telemetry(self) -> dict[str, float]:
        """Numbers about the state of the mechanisms, by name; of the first, where two have the same."""
        numbers: dict[str, float] = {}
        for mechanism in self._mechanisms():
            numbers = {**mechanism.telemetry(), **numbers}
        return numbers

    def _attend(
        self, x: Tensor, context: Tensor, scope: Scope, choices: Choices | None = None
    ) -> AttentionResult:
        scope.check(x.shape[0], x.shape[1], context.shape[1])
        outputs: list[Tensor] = []
        kernels: list[str] = []
        losses: dict[str, Tensor] = {}
        gathering = self.training and not _in_backward()
        q_turn = k_turn = self._rotation(scope.query_positions(x.shape[1], x.device), x.dtype)
        if context is not x:
            k_turn = self._rotation(scope.positions_of_keys(context.shape[1], x.device), x.dtype)
        second = self._split(x, context, self.project.second) if self.project.has_second else []
        for i, (mechanism, q, k, v) in enumerate(self._split(x, context, self.project)):
            check_supports(mechanism, scope.causal, scope, cross=context is not x)
            by_rows = mechanism.plan_by_rows(q, k, scope) if second else None
            plan = mechanism.plan(q, k, scope) if by_rows is None else by_rows.of_others
            plan = plan if choices is None else choices.settle(plan)
            if self.training:
                for name, loss in mechanism.losses(q, k, scope).items():
                    losses[name] = losses[name] + loss if name in losses else loss
            if gathering:
                mechanism.observe(q.detach(), k.detach(), scope)
            output, kernel = self._run(i, plan, (q, k, v), scope, (q_turn, k_turn))
            if by_rows is not None:
                marked, other = self._run(i, by_rows.of_marked, second[i][1:], scope, (q_turn, k_turn))
                output = torch.where(by_rows.marked[:, None, :, None], marked, output)
                kernel = "+".join(sorted({kernel, other}))
            outputs.append(output)
            kernels.append(kernel)
        heads = F.dropout(torch.cat(outputs, 1), self.options.dropout, self.training)
        return AttentionResult(self.merge(heads), losses, tuple(kernels))

    def _run(
        self, i: int, plan: Plan, qkv: Qkv, scope: Scope, turns: tuple[Rotation | None, Rotation | None]
    ) -> tuple[Tensor, str]:
        """The output of the i-th mechanism's plan and the kernel that ran; q and k are rotated here."""
        q, k, v = qkv
        q_turn, k_turn = turns
        if q_turn is not None and k_turn is not None:
            q, k = rotate(q, q_turn), rotate(k, k_turn)
        return run_output(plan, q, k, v, scope, self._score_of(i))

    def _split(
        self, x: Tensor, context: Tensor, project: Callable[[Tensor, Tensor], Qkv]
    ) -> list[tuple[Mechanism, Tensor, Tensor, Tensor]]:
        """The mechanisms with their heads of q, k, v."""
        require(
            x.dim() == 3 and x.shape[-1] == self.sizes.dim,
            f"attention: x must have shape [batch, tokens, {self.sizes.dim}], got {tuple(x.shape)}; "
            "check dim",
        )
        q, k, v = project(x, context)
        parts = []
        for mechanism, q_part, k_part, v_part in zip(
            self._mechanisms(),
            q.split(self.shares, 1),
            k.split(self._kv_shares, 1),
            v.split(self._kv_shares, 1),
            strict=True,
        ):
            parts.append((mechanism, q_part, q_part if mechanism.shares_qk else k_part, v_part))
        return parts

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        """The angles of positions [B or 1, N], once for all heads."""
        if not self.options.rotary:
            return None
        return rotation(positions, self.sizes.head_dim, dtype, self.options.rotary_base)

    def _score_of(self, i: int) -> ScoreTerm | None:
        return None if self.score is None else _HeadsOf(self.score, sum(self.shares[:i]))

    def _mechanisms(self) -> list[Mechanism]:
        return list(self.mechanisms)  # type: ignore[arg-type]


def bind_mechanisms(
    shares: list[tuple[Mechanism, int]], sizes: Sizes, kv_heads: int, generator: torch.Generator
) -> list[tuple[Mechanism, int]]:
    """Bind each mechanism to its share of the heads."""
    for mechanism, share in shares:
        mechanism.bind(Shape(share, max(1, share * kv_heads // sizes.heads), sizes.head_dim), generator)
    return shares


def _check_second(project: Projection, mechanisms: list[Mechanism], causal: bool) -> None:
    """Refuse a second set of q, k, v where no rows are marked for it."""
    others = [mechanism.card.name for mechanism in mechanisms if not mechanism.marks_rows]
    require(
        not causal and not others,
        f"{project.card.name}: needs causal=False and mechanisms that mark rows, got causal={causal}"
        + (f" and {', '.join(others)} without any" if others else "")
        + '; use "longformer(global_tokens=1)" for example, or another projection',
    )


def _in_backward() -> bool:
    """Whether autograd is running: a forward inside it is a recomputation (activation checkpointing),
    not a new one.
    """
    return torch._C._current_graph_task_id() != -1
