"""The block protocol: block(x, carry) -> (x, carry)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from mapformers.core.card import Card
from mapformers.core.carry import Carry
from mapformers.core.errors import MapformersError


class Block(nn.Module):
    """Base of all blocks. x [B, N, dim]; what else travels from layer to layer stands in the carry."""

    card: ClassVar[Card]
    Config: ClassVar[type]

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
