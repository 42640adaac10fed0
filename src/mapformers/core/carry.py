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
    scores     scores of the layers below, [B, H, N, M] before masks; scores_of: of how many layers
    queries, keys   of the layers below, the lowest first: q [B, H, N, F] and k [B, G, M, F], whose scores are
               q . k
    context    [B, M, dim] what the layers of a decoder read besides x; context_is_real [B, M] bool
    losses     auxiliary losses by name, scalars, summed over the layers so far
    """

    key_is_real: Tensor | None = None
    segments: Tensor | None = None
    positions: Tensor | None = None
    stream: Tensor | None = None
    embedding: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    scores_of: int = 0
    queries: tuple[Tensor, ...] = ()
    keys: tuple[Tensor, ...] = ()
    context: Tensor | None = None
    context_is_real: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)

    def add_losses(self, losses: Mapping[str, Tensor]) -> Carry:
        """A carry with these losses added to those of the same name."""
        return dataclasses.replace(self, losses=added(self.losses, losses)) if losses else self


def added(losses: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both, those of the same name as their sum."""
    return {
        **losses,
        **{name: losses[name] + loss if name in losses else loss for name, loss in more.items()},
    }
