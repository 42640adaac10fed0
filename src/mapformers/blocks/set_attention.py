"""Set Transformer: attention between sets through a few learned points, and pooling into a few vectors.

Paper    Lee, Lee, Kim, Kosiorek, Choi, Teh 2019, "Set Transformer", ICML, arXiv 1810.00825, section 3
Formula  MAB(X, Y) = LN(H + F(H)), H = LN(X + MHA(X, Y, Y)); SAB(X) = MAB(X, X);
         ISAB(X) = MAB(X, MAB(I, X)) with learned points I; PMA(Z) = MAB(S, F(Z)) with learned seeds S
Cost     ISAB time O(N points dim), SAB time O(N^2 dim), PMA time O(N seeds dim)
Differs  variant="official" is the published code: the residual adds the projected queries, there is no output
         projection and no norm, scores are divided by the root of dim, F is one linear layer with a ReLU, and
         PMA has no F before it. Padding hides elements in both; the published code has no masks.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.blocks.base import Block, Site
from mapformers.blocks.feed_forward import FeedForward
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require, require_known
from mapformers.core.plans import Dense
from mapformers.core.scope import Scope
from mapformers.heads.projection import MultiHead, MultiHeadConfig
from mapformers.kernels.run import run_output

Variant = Literal["paper", "official"]
VARIANTS: tuple[Variant, ...] = ("paper", "official")


@dataclass(frozen=True)
class InducedSetConfig:
    """Options of the induced_set block."""

    points: int = option(32, "learned points between the elements; 0 = none, all pairs (SAB)")
    variant: Variant = option("paper", "official = as the published code computes it")
    hidden: int = option(0, 'units of the feed-forward of variant="paper"; 0 = 4 dim')

    def __post_init__(self) -> None:
        require(self.points >= 0, f"induced_set: points must be 0 or more, got {self.points}; use 32")
        require_known("induced_set", "variant", self.variant, VARIANTS)
        require(self.hidden >= 0, f"induced_set: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")


class SetAttention(nn.Module):
    """MAB: x [B, N, dim] reads y [B, M, dim] and goes through F."""

    def __init__(self, attention: MultiHeadAttention, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        dim = attention.sizes.dim
        self.attention = attention
        self.feed_forward = FeedForward(dim, hidden or 4 * dim, "relu", generator)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, y_is_real: Tensor | None) -> Tensor:
        """[B, N, dim]; y_is_real [B, M] bool, False = padding."""
        h = self.attention_norm(x + self.attention(x, context=y, context_is_real=y_is_real))
        output: Tensor = self.feed_forward_norm(h + self.feed_forward(h))
        return output


class OfficialSetAttention(nn.Module):
    """MAB as the published code computes it."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        sizes = site.sizes("induced_set")
        self.project = MultiHead(MultiHeadConfig(), sizes, site.generator)
        self.feed_forward = linear(site.dim, site.dim, site.generator, bias=True)
        self.scale = (sizes.head_dim / site.dim) ** 0.5  # from 1 / sqrt(D) to 1 / sqrt(dim)

    def forward(self, x: Tensor, y: Tensor, y_is_real: Tensor | None) -> Tensor:
        """[B, N, dim]; y_is_real [B, M] bool, False = padding."""
        q, k, v = self.project(x, y)
        heads = q + run_output(Dense(), q * self.scale, k, v, Scope(key_is_real=y_is_real))[0]
        h = heads.transpose(1, 2).flatten(2)  # [B, N, dim]
        return h + F.relu(self.feed_forward(h))


def set_attention(site: Site, variant: Variant, hidden: int) -> nn.Module:
    """The MAB of that variant."""
    if variant == "official":
        return OfficialSetAttention(site)
    return SetAttention(site.attention("full"), hidden, site.generator)


def require_set(name: str, site: Site) -> None:
    """Sets have no order."""
    require(not site.causal, f"{name}: causal is not supported, got causal=True; elements of a set see all")
    require(not site.rotary, f"{name}: rotary is not supported, got rotary=True; a set has no positions")


class InducedSetBlock(Block):
    """ISAB, or SAB without points. Elements that change places change nothing else."""

    Config = InducedSetConfig
    card = Card(
        name="induced_set",
        kind="block",
        family="compressed memory",
        paper="Lee et al. 2019, arXiv 1810.00825",
        formula="MAB(X, MAB(I, X)) with learned points I; MAB(X, Y) = LN(H + F(H)), H = LN(X + MHA(X, Y, Y))",
        cost="time O(N points dim)",
        summary="a few learned points read a set, and its elements read the points",
        causal="refuses",
        supports=capabilities("bidirectional", "padding"),
        options=options_of(InducedSetConfig),
    )

    def __init__(self, config: InducedSetConfig, site: Site) -> None:
        super().__init__()
        self.config, self.dim = config, site.dim
        self.read = set_attention(site, config.variant, config.hidden)
        if config.points:
            self.points = nn.Parameter(normal((config.points, site.dim), site.generator, site.dim**-0.5))
            self.gather = set_attention(site, config.variant, config.hidden)

    @classmethod
    def build(cls, config: InducedSetConfig, site: Site) -> "InducedSetBlock":
        """Neither causal nor with positions."""
        require_set("induced_set", site)
        return cls(config, site)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim] elements in any order."""
        require(
            carry.segments is None,
            "induced_set: segments are not supported, got packed documents; unpack them into rows",
        )
        if not self.config.points:
            return self.read(x, x, carry.key_is_real), carry
        points = self.points.expand(x.shape[0], -1, -1)  # [B, points, dim]
        return self.read(x, self.gather(points, x, carry.key_is_real), None), carry


class SetPooling(nn.Module):
    """PMA: a set [B, N, dim] to `seeds` vectors [B, seeds, dim], whatever the order of its elements."""

    def __init__(self, site: Site, seeds: int, variant: Variant = "paper", hidden: int = 0) -> None:
        super().__init__()
        require(seeds >= 1, f"set_pooling: seeds must be 1 or more, got {seeds}; use 1 for one vector")
        require_known("set_pooling", "variant", variant, VARIANTS)
        require_set("set_pooling", site)
        self.seeds = nn.Parameter(normal((seeds, site.dim), site.generator, site.dim**-0.5))
        self.prepare = (
            FeedForward(site.dim, hidden or 4 * site.dim, "relu", site.generator)
            if variant == "paper"
            else nn.Identity()
        )
        self.read = set_attention(site, variant, hidden)

    def forward(self, z: Tensor, is_real: Tensor | None = None) -> Tensor:
        """z [B, N, dim], is_real [B, N] bool, to [B, seeds, dim]."""
        seeds = self.seeds.expand(z.shape[0], -1, -1)
        pooled: Tensor = self.read(seeds, self.prepare(z), is_real)
        return pooled
