"""Attention whose weights serve several layers: what each of them runs, and what they share in decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.attention.ring import RingState
from mapformers.attention.state import DenseState, HistoryState, PlanState, UnionState
from mapformers.core.draw import linear
from mapformers.core.score import Call
from mapformers.heads.merging import Concatenate, ConcatenateConfig


class ReusedAttention(nn.Module):
    """Values and an output of its own, under the plan, queries and keys of another layer."""

    def __init__(self, owner: MultiHeadAttention, generator: torch.Generator) -> None:
        super().__init__()
        sizes = owner.sizes
        self.head_dim = sizes.head_dim
        self.value = linear(sizes.dim, owner.project.kv_heads * sizes.head_dim, generator)
        self.merge = Concatenate(ConcatenateConfig(), sizes, generator)

    def forward(self, x: Tensor, owner: MultiHeadAttention, call: Call) -> Tensor:
        """x [B, N, dim] to [B, N, dim]."""
        return self.merge(owner.run_call(replace(call, v=self._values(x)))[0])

    def step(
        self, x: Tensor, owner: MultiHeadAttention, call: Call, parts: list[PlanState | None]
    ) -> tuple[Tensor, list[PlanState | None]]:
        """The next tokens x [B, n, dim]."""
        heads, parts = owner.step_call(replace(call, v=self._values(x)), parts)
        return self.merge(heads), parts

    def _values(self, x: Tensor) -> Tensor:
        return rearrange(self.value(x), "b n (h d) -> b h n d", d=self.head_dim)


@dataclass
class LazyState:
    """Decode state of a block: tokens seen per row [B], and for each layer what its mechanisms remember.

    All layers hold the same keys, in the same memory.
    """

    length: Tensor
    layers: list[list[PlanState | None]]

    def reorder(self, index: Tensor) -> LazyState:
        """Batch rows in another order."""
        for layer in self.layers:
            for part in layer:
                if part is not None:
                    part.reorder(index)
        self.share()
        return replace(self, length=self.length.index_select(0, index))

    def share(self) -> None:
        """Give all layers the keys of the first."""
        for layer in self.layers[1:]:
            for first, other in zip(self.layers[0], layer, strict=True):
                _share(first, other)

    def part(self) -> None:
        """Give the other layers rings of keys of their own: several new tokens are read before they are
        written, and the first layer writes what the others have still to read.
        """
        for layer in self.layers[1:]:
            for part in layer:
                for ring in _rings(part):
                    ring.keys = ring.keys.clone()
                    ring.positions = ring.positions.clone()
                    ring.seen = None if ring.seen is None else ring.seen.clone()


def _share(first: PlanState | None, other: PlanState | None) -> None:
    """What is the same in both lies in one place."""
    if isinstance(first, UnionState) and isinstance(other, UnionState):
        for one, two in zip(first.parts, other.parts, strict=True):
            _share(one, two)
    elif isinstance(first, RingState) and isinstance(other, RingState):
        other.keys, other.positions, other.seen = first.keys, first.positions, first.seen
    elif isinstance(first, HistoryState) and isinstance(other, HistoryState):
        other.plain_keys.room = first.plain_keys.room
        _share(first.dense, other.dense)
    elif isinstance(first, DenseState) and isinstance(other, DenseState):
        for name in ("keys", "positions", "is_real"):
            getattr(other, name).room = getattr(first, name).room


def _rings(state: PlanState | None) -> list[RingState]:
    if isinstance(state, UnionState):
        return [ring for part in state.parts for ring in _rings(part)]
    return [state] if isinstance(state, RingState) else []
