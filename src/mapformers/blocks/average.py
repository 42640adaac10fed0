"""Average attention: the mean of all tokens so far, a gate, and nothing that compares tokens.

Paper    Zhang, Xiong, Su 2018, "Accelerating Neural Transformer via an Average Attention Network", ACL,
         arXiv 1805.00631.
Formula  m_t = 1/t sum_{k <= t} y_k, with feed: m_t = F(m_t); [i, f] = s([y_t, m_t] W + b), s the sigmoid;
         h = LN(y + i y + f m), then LN(h + F(h)); with norm=pre: h = x + i y + f m for y = LN(x), then
         h + F(LN h)
Cost     O(N dim^2), no products of tokens; decoding keeps a sum and a count
Differs  The feed-forward on the mean is off: the authors' later advice, as good with fewer parameters. Means
         count real tokens of the same document, in float32 or wider. The paper has post-norm only.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.blocks.base import Block, Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.draw import linear
from mapformers.core.errors import require, require_known
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import at_least_float32
from mapformers.priors.seen import SeenKeys


@dataclass(frozen=True)
class AverageConfig:
    """Options of the average block."""

    feed: bool = option(False, "a feed-forward on the mean, as the paper has it")
    norm: Literal["pre", "post"] = option("post", "where the layer norms stand")
    activation: Activation = option("relu", "of the feed-forwards")
    hidden: int = option(0, "units of the feed-forwards; 0 = 4 dim")
    dropout: float = option(0.0, "of both branches, in training")

    def __post_init__(self) -> None:
        require_known("average", "norm", self.norm, ("pre", "post"))
        require_known("average", "activation", self.activation, ACTIVATIONS)
        require(self.hidden >= 0, f"average: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")
        require(0 <= self.dropout < 1, f"average: dropout must lie in [0, 1), got {self.dropout}; use 0.1")


class AverageBlock(Block):
    """A gated cumulative mean, then feed-forward."""

    Config = AverageConfig
    card = Card(
        name="average",
        kind="block",
        family="attention with prior",
        paper="Zhang et al. 2018, arXiv 1805.00631",
        formula="LN(y + i y + f mean_{k<=t} y_k), gates i and f of y and the mean",
        cost="O(N dim^2); decoding keeps a sum and a count",
        summary="a gated mean of all tokens so far in place of attention",
        supports=capabilities("causal", "padding", "segments", "decode"),
        options=options_of(AverageConfig),
    )

    def __init__(self, config: AverageConfig, site: Site) -> None:
        super().__init__()
        dim, hidden = site.dim, config.hidden or 4 * site.dim
        self.config, self.dim = config, site.dim
        self.feed = FeedForward(dim, hidden, config.activation, site.generator) if config.feed else None
        self.gate = linear(2 * dim, 2 * dim, site.generator, bias=True)
        self.feed_forward = FeedForward(dim, hidden, config.activation, site.generator)
        self.average_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: AverageConfig, site: Site) -> "AverageBlock":
        """For causal models without rotary positions."""
        require(
            site.causal,
            "average: needs causal=True, got causal=False; the mean of all tokens says the same to each",
        )
        require(not site.rotary, "average: rotary is not supported, got rotary=True; there are no queries")
        return cls(config, site)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]."""
        y, _, _ = self.step(x, carry, self.init_state(x.shape[0]))
        return y, carry

    def init_state(self, batch_size: int = 1) -> SeenKeys:
        """Nothing summed."""
        return SeenKeys()

    def step(self, x: Tensor, carry: Carry, state: SeenKeys) -> tuple[Tensor, Carry, SeenKeys]:
        """The next tokens x [B, n, dim]."""
        pre = self.config.norm == "pre"
        y = self.average_norm(x) if pre else x
        scope = Scope.of(True, carry.key_is_real, carry.segments)
        mean = state.means(at_least_float32(y).unsqueeze(1), scope).squeeze(1).to(y.dtype)  # [B, n, dim]
        mean = mean if self.feed is None else self.feed(mean)
        keep, take = torch.sigmoid(self.gate(torch.cat([y, mean], -1))).chunk(2, -1)
        x = x + F.dropout(keep * y + take * mean, self.config.dropout, self.training)
        if pre:
            return x + self._fed(self.feed_forward_norm(x)), carry, state
        x = self.average_norm(x)
        return self.feed_forward_norm(x + self._fed(x)), carry, state

    def _fed(self, x: Tensor) -> Tensor:
        return F.dropout(self.feed_forward(x), self.config.dropout, self.training)
