"""The block protocol: block(x, carry) -> (x, carry)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.card import Card
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError, require
from mapformers.heads.projection import Sizes


@dataclass(frozen=True)
class Site:
    """Where a block will stand: what `Block.build` makes it from.

    attention  makes the multi-head attention of a spec with these sizes, causality and positions; a second
               argument is the spec of its projection
    """

    dim: int
    heads: int
    causal: bool
    rotary: bool
    generator: torch.Generator
    attention: Callable[..., MultiHeadAttention]
    head_dim: int | None = None

    def sizes(self, name: str) -> Sizes:
        """For a block with projections of its own; heads of dim / heads where no head_dim is given."""
        require(
            self.head_dim is not None or self.dim % self.heads == 0,
            f"{name}: heads must divide dim={self.dim}, got {self.heads}; choose another number",
        )
        return Sizes(self.dim, self.heads, self.head_dim or self.dim // self.heads)


class Block(nn.Module):
    """Base of all blocks. x [B, N, dim]; what else travels from layer to layer stands in the carry."""

    card: ClassVar[Card]
    Config: ClassVar[type]

    @classmethod
    def build(cls, config: Any, site: Site) -> Block:
        """The block of this config at this site. Raises MapformersError for what it cannot be."""
        raise NotImplementedError(f"{cls.__name__} must define build(config, site)")

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """One layer."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, carry)")

    def init_state(self, batch_size: int = 1) -> Any:
        """An empty decode state. Raises MapformersError for blocks that cannot decode."""
        raise MapformersError(
            f"{self.card.name}: cannot decode token by token, got init_state; use a causal block"
        )

    def step(self, x: Tensor, carry: Carry, state: Any) -> tuple[Tensor, Carry, Any]:
        """The next tokens x [B, n, dim]; carry.key_is_real [B, n] marks the real ones. The state is
        consumed.
        """
        raise MapformersError(f"{self.card.name}: cannot decode token by token, got step; use a causal block")

    def update_centroids(self) -> None:
        """Let mechanisms move what gradients do not. Call after the optimiser step."""

    def telemetry(self) -> dict[str, float]:
        """Numbers about the state of the mechanisms, by name."""
        return {}
