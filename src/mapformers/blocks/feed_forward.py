"""The feed-forward part of a block."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.core.draw import linear

Activation = Literal["gelu", "relu", "geglu"]
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "relu", "geglu")


class FeedForward(nn.Module):
    """[.., dim] to [.., dim] through `hidden` units; geglu (Shazeer 2020, arXiv 2002.05202) gates them."""

    def __init__(self, dim: int, hidden: int, activation: Activation, generator: torch.Generator) -> None:
        super().__init__()
        self.activation = activation
        self.inner = linear(dim, 2 * hidden if activation == "geglu" else hidden, generator, bias=True)
        self.outer = linear(hidden, dim, generator, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """[.., dim] to [.., dim]."""
        x = self.inner(x)  # [.., hidden or 2 hidden]
        if self.activation == "geglu":
            value, gate = x.chunk(2, -1)
            x = value * F.gelu(gate)
        else:
            x = F.relu(x) if self.activation == "relu" else F.gelu(x)
        output: Tensor = self.outer(x)
        return output
