"""What travels from layer to layer besides x."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Carry:
    """The scope of the whole stack, and what one layer leaves for the next.

    key_is_real [B, N] bool, segments [B, N] int, positions [B, N] int: as in Scope, the same for all layers
    stream     second stream of two-stream blocks, [B, L, dim]
    embedding  x as the first layer got it, [B, N, dim], for blocks that read it in every layer
    labels     int labels of pairs by name; a block that reads some says which, and what they mean
    scores     scores of the layer below, [B, H, N, M]
    weights    attention weights of the layer below, [B, H, N, M]
    losses     auxiliary losses by name, scalars, summed over the layers so far
    """

    key_is_real: Tensor | None = None
    segments: Tensor | None = None
    positions: Tensor | None = None
    stream: Tensor | None = None
    embedding: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    weights: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)

    def add_losses(self, losses: Mapping[str, Tensor]) -> Carry:
        """A carry with these losses added to those of the same name."""
        if not losses:
            return self
        total = dict(self.losses)
        for name, value in losses.items():
            total[name] = total[name] + value if name in total else value
        return dataclasses.replace(self, losses=total)
