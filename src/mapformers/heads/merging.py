"""Merge port: how the outputs of the heads become one vector."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from mapformers.core.card import Card, options_of
from mapformers.core.draw import linear
from mapformers.heads.projection import Sizes


@dataclass(frozen=True)
class ConcatenateConfig:
    """Concatenation has no options."""


class Merge(nn.Module):
    """Base of the merge port: [B, H, N, D] to [B, N, dim]."""

    card: ClassVar[Card]
    Config: ClassVar[type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, N, D] to [B, N, dim]."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")


class Concatenate(Merge):
    """Concatenate and project."""

    Config = ConcatenateConfig
    card = Card(
        name="concatenate",
        kind="merge",
        family="improved multi-head",
        paper="Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2",
        formula="concat(head_1, .., head_H) W_o",
        cost="time O(N dim^2)",
        summary="concatenate the heads, one linear map",
        options=options_of(ConcatenateConfig),
    )

    def __init__(self, config: ConcatenateConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.output = linear(sizes.heads * sizes.head_dim, sizes.dim, generator)

    def forward(self, x: Tensor) -> Tensor:
        """One linear map of all heads."""
        output: Tensor = self.output(rearrange(x, "b h n d -> b n (h d)"))
        return output
