"""One map for queries and keys, the keys of unit length.

Paper    Kitaev, Kaiser, Levskaya 2020, "Reformer", ICLR, arXiv 2001.04451, section 2, shared-QK attention.
Formula  q_i = x_i W_qk; k_j = sqrt(D) q_j / ||q_j||; v_j = x_j W_v
Differs  The factor sqrt(D) meets the 1 / sqrt(D) of every kernel, so the score is q_i . q_j / ||q_j||: the
         scale of trax and of Hugging Face. (reformer-pytorch divides by sqrt(D) once more.) As in both, the
         mean square of a key is raised by 1e-6 before the root.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from mapformers.core.card import Card, options_of
from mapformers.core.draw import linear
from mapformers.heads.projection import Projection, Sizes

EPSILON = 1e-6  # what is added to the mean square of a key


@dataclass(frozen=True)
class SharedQKConfig:
    """No options."""


class SharedQK(Projection):
    """Keys are the directions of the queries."""

    Config = SharedQKConfig
    card = Card(
        name="shared_qk",
        kind="project",
        family="sparse, content-based",
        paper="Kitaev et al. 2020, arXiv 2001.04451, section 2",
        formula="q = x W_qk, k = sqrt(D) q / ||q||, v = x W_v",
        cost="time O(N dim^2), two thirds of multi_head",
        summary="one map for queries and keys, keys of one length; what Reformer hashes",
        options=options_of(SharedQKConfig),
    )

    def __init__(self, config: SharedQKConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = sizes.heads, sizes.head_dim
        self.query_key = linear(sizes.dim, sizes.heads * sizes.head_dim, generator)
        self.value = linear(sizes.dim, sizes.heads * sizes.head_dim, generator)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of the context by the map of the queries."""
        q = self._split(self.query_key(x))
        raw = q if context is x else self._split(self.query_key(context))
        return q, of_one_length(raw), self._split(self.value(context))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", d=self.head_dim)


def of_one_length(x: Tensor) -> Tensor:
    """Rows of x [.., D] scaled to length sqrt(D), in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().mean(-1, keepdim=True) + EPSILON).rsqrt()).to(x.dtype)
