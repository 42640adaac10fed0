"""Decoding for blocks without a state of their own: the prefix is kept, and run again with the new tokens.

Exact, because a causal block gives a prefix the same outputs whatever follows; each token costs a forward
over all tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mapformers.blocks.base import Block
from mapformers.core.carry import Carry
from mapformers.core.errors import require


@dataclass
class PrefixState:
    """Inputs so far, x [B, n, dim] and is_real [B, n] bool; None = nothing yet."""

    x: Tensor | None = None
    is_real: Tensor | None = None

    def append(self, x: Tensor, is_real: Tensor | None) -> tuple[Tensor, Tensor]:
        """The inputs with new ones behind them, and which of them are real."""
        new = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if is_real is None else is_real
        new = new.expand(x.shape[:2])
        self.is_real = new if self.is_real is None else torch.cat([self.is_real, new], 1)
        self.x = x if self.x is None else torch.cat([self.x, x], 1)
        return self.x, self.is_real

    def reorder(self, index: Tensor) -> PrefixState:
        """Batch rows in another order (beams): row b of the result is row index[b]."""
        if self.x is None or self.is_real is None:
            return self
        return PrefixState(self.x.index_select(0, index), self.is_real.index_select(0, index))


class PrefixBlock(Block):
    """A block that decodes over its whole prefix. carry.stream is then that of the whole prefix too."""

    causal: bool

    def init_state(self, batch_size: int = 1) -> PrefixState:
        """Nothing seen. Raises MapformersError for blocks that are not causal."""
        require(
            self.causal,
            f"{self.card.name}: decoding needs causal=True, got causal=False; make a causal block",
        )
        return PrefixState()

    def step(self, x: Tensor, carry: Carry, state: PrefixState) -> tuple[Tensor, Carry, PrefixState]:
        """The next tokens x [B, n, dim]; carry.key_is_real [B, n] marks the real ones."""
        whole, is_real = state.append(x, carry.key_is_real)
        scope = Carry(key_is_real=None if is_real.all() else is_real, stream=carry.stream)
        y, after = self(whole, scope)
        return y[:, -x.shape[1] :], replace(carry, stream=after.stream), state
