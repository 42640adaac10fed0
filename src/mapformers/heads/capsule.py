"""Capsules: outputs of the heads are routed to parts of the result by how well they agree.

Paper    Li, Yang, Dou, Wang, Lyu, Tu 2019, "Information Aggregation for Multi-Head Attention with
         Routing-by-Agreement", NAACL, arXiv 1904.03100.
Formula  votes V[h, o] = O_h W[h, o] in R^(dim / capsules).
         dynamic: c = softmax_o(b); y_o = sum_h c V / sum_h c; b += y_o . V; b = 0 at first
         em: r = 1 / capsules; mean and variance of the votes under r; a_o = s(l (beta_a - sum_h r cost)),
         cost = sum_d (beta_u + log deviation); r = softmax_o(log a_o + log N(V; mean, variance));
         y_o = a_o mean
Cost     O(N H D dim) for the votes and O(iterations N H dim)
Differs  A head is an input capsule as it is, without a map before the votes. Gradients run through all
         iterations. em runs in float32 or wider.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known
from mapformers.heads.merging import Merge
from mapformers.heads.projection import Sizes
from mapformers.kernels.softmax import at_least_float32

EPSILON = 1e-8  # added to variances


@dataclass(frozen=True)
class CapsuleConfig:
    """Options of capsule."""

    routing: Literal["dynamic", "em"] = option("dynamic", "how agreement is found")
    capsules: int = option(0, "parts of the result; 0 = as many as heads; divides dim")
    iterations: int = option(3, "rounds of routing")
    sharpness: float = option(1.0, "l of em: how sharply a part is on or off")

    def __post_init__(self) -> None:
        require_known("capsule", "routing", self.routing, ("dynamic", "em"))
        require(self.capsules >= 0, f"capsule: capsules must be 0 or more, got {self.capsules}; use 0")
        require(self.iterations >= 1, f"capsule: iterations must be 1 or more, got {self.iterations}; use 3")
        require(self.sharpness > 0, f"capsule: sharpness must be above 0, got {self.sharpness}; use 1.0")


class Capsule(Merge):
    """Routing by agreement in place of concatenation."""

    Config = CapsuleConfig
    card = Card(
        name="capsule",
        kind="merge",
        family="improved multi-head",
        paper="Li et al. 2019, arXiv 1904.03100",
        formula="y_o = sum_h c[h,o] O_h W[h,o], c found by agreement",
        cost="O(N H D dim), and O(iterations N H dim)",
        summary="heads are routed to parts of the result by agreement",
        options=options_of(CapsuleConfig),
    )

    def __init__(self, config: CapsuleConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        count = config.capsules or sizes.heads
        require(
            sizes.dim % count == 0,
            f"capsule: capsules must divide dim={sizes.dim}, got {count}; choose a divisor",
        )
        shape = (sizes.heads, sizes.head_dim, count, sizes.dim // count)
        self.votes = nn.Parameter(normal(shape, generator, sizes.head_dim**-0.5))  # W[h, :, o, :]
        if config.routing == "em":
            self.beta_u = nn.Parameter(torch.zeros(count))
            self.beta_a = nn.Parameter(torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, N, D] to [B, N, dim], the parts beside each other."""
        # [B, N, H, capsules, dim / capsules]
        votes = torch.einsum("bhnd,hdoe->bnhoe", x, self.votes.to(x.dtype))
        if self.config.routing == "dynamic":
            return self._dynamic(votes).flatten(2)
        return self._em(at_least_float32(votes)).flatten(2).to(x.dtype)

    def _dynamic(self, votes: Tensor) -> Tensor:
        agreement = votes.new_zeros(votes.shape[:4])  # [B, N, H, capsules]
        for turn in range(self.config.iterations):
            share = agreement.softmax(-1)
            found = (share.unsqueeze(-1) * votes).sum(2) / share.sum(2).unsqueeze(-1)
            if turn + 1 < self.config.iterations:
                agreement = agreement + (found.unsqueeze(2) * votes).sum(-1)
        return found

    def _em(self, votes: Tensor) -> Tensor:
        share = torch.full_like(votes[..., 0], 1 / votes.shape[3])
        for turn in range(self.config.iterations):
            weight = share.unsqueeze(-1)
            total = share.sum(2)  # [B, N, capsules]
            mean = (weight * votes).sum(2) / (total.unsqueeze(-1) + EPSILON)
            squares = (votes - mean.unsqueeze(2)).square()
            variance = (weight * squares).sum(2) / (total.unsqueeze(-1) + EPSILON) + EPSILON
            cost = (self.beta_u.unsqueeze(-1) + 0.5 * variance.log()).sum(-1) * total
            on = self.config.sharpness * (self.beta_a - cost)  # logit of the activation
            if turn + 1 < self.config.iterations:
                away = squares / variance.unsqueeze(2)
                density = -0.5 * (away + (2 * math.pi * variance).log().unsqueeze(2)).sum(-1)
                share = (nn.functional.logsigmoid(on).unsqueeze(2) + density).softmax(-1)
        return torch.sigmoid(on).unsqueeze(-1) * mean
