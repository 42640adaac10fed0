"""Collaborative attention: heads share one wide map of queries and one of keys, and mix their columns.

Paper    Cordonnier, Loukas, Jaggi 2020, "Multi-Head Attention: Collaborate Instead of Concatenate",
         arXiv 2006.16362.
Formula  score[h] = ((x W_q) m_h) . (y W_k) / sqrt(D) + y c_h / sqrt(D), D = width / heads; v as usual
Cost     the score product grows width / head_dim times; queries and keys are 2 dim width parameters, and
         decoding keeps one key of `width` numbers for all heads
Differs  The content bias rides along as one more number per head behind the key. Rotary positions turn pairs
         of columns, which the shared map does not keep apart for a head: they are refused.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mapformers.core.card import Card, option, options_of
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require, require_known
from mapformers.heads.projection import Projection, Sizes

NOISE = 0.2  # standard deviation of start=normal, that of the authors' code


@dataclass(frozen=True)
class CollaborativeConfig:
    """Options of collaborative."""

    width: int = option(0, "columns of the shared maps; 0 = heads times head_dim")
    content_bias: bool = option(False, "a learned score of each key by itself, per head")
    start: Literal["concatenate", "normal"] = option("concatenate", "separate heads, or random mixing")

    def __post_init__(self) -> None:
        require_known("collaborative", "start", self.start, ("concatenate", "normal"))
        require(self.width >= 0, f"collaborative: width must be 0 or more, got {self.width}; use 0")


class Collaborative(Projection):
    """One key for all heads, wide enough for them to differ."""

    Config = CollaborativeConfig
    takes_rotary = False
    card = Card(
        name="collaborative",
        kind="project",
        family="improved multi-head",
        paper="Cordonnier et al. 2020, arXiv 2006.16362",
        formula="q_h = (x W_q) m_h, k = y W_k for all heads, v as usual",
        cost="score product width / head_dim times larger; one key of `width` numbers in decoding",
        summary="heads mix the columns of shared queries and keys",
        options=options_of(CollaborativeConfig),
    )

    def __init__(self, config: CollaborativeConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.kv_heads = config, sizes.heads
        self.width = config.width or sizes.heads * sizes.head_dim
        self.query = linear(sizes.dim, self.width, generator)
        self.key = linear(sizes.dim, self.width, generator)
        self.value = linear(sizes.dim, sizes.heads * sizes.head_dim, generator)
        self.content = linear(sizes.dim, sizes.heads, generator) if config.content_bias else None
        if config.start == "normal":
            mixing = normal((sizes.heads, self.width), generator, NOISE)
        else:
            mixing = of_own_columns(sizes.heads, self.width)
        self.mixing = nn.Parameter(mixing)

    @property
    def key_dim(self) -> int:
        """Numbers of a key, with those of the content bias."""
        return self.width + (0 if self.content is None else self.kv_heads)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, N, width], one k [B, 1, M, width] and v [B, H, M, D]; a content bias adds H columns."""
        heads = self.kv_heads
        q = self.query(x)[:, None] * self.mixing[:, None]  # [B, H, N, width]
        k = self.key(context)[:, None]
        if self.content is not None:
            own = torch.eye(heads, dtype=q.dtype, device=q.device)[:, None].expand(
                x.shape[0], -1, x.shape[1], -1
            )
            q, k = torch.cat([q, own], -1), torch.cat([k, self.content(context)[:, None]], -1)
        v = rearrange(self.value(context), "b m (h d) -> b h m d", h=heads)
        # Kernels divide by the root of the columns that they see.
        return q * math.sqrt(self.key_dim * heads / self.width), k, v


def of_own_columns(heads: int, width: int) -> Tensor:
    """[H, width] ones where a column belongs to a head: the columns dealt out in equal runs."""
    owner = torch.arange(width) * heads // width
    return (owner[None] == torch.arange(heads)[:, None]).float()
