"""The Perceiver as a block: latents read the sequence, attend to each other, and the sequence reads them.

Paper    Jaegle et al. 2021, "Perceiver", ICML, arXiv 2103.03206, section 3; the sequence as its own output
         queries: Jaegle et al. 2022, "Perceiver IO", ICLR, arXiv 2107.14795, section 3
Formula  Z <- Z + A(LN Z, LN X), then Z + F(LN Z); `depth` Transformer blocks over Z; X <- X + A(LN X, LN Z),
         then X + F(LN X)
Cost     time O(N latents dim) and O(depth latents^2 dim), memory O(N)
Differs  A Perceiver has an input and latents, and outputs at its end only (models/perceiver). As a block of a
         stack it writes back in every layer; the latents travel on in the carry.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from mapformers.blocks.base import Block, Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.blocks.transformer import TransformerBlock, TransformerConfig
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known


@dataclass(frozen=True)
class PerceiverBlockConfig:
    """Options of the perceiver block."""

    latents: int = option(32, "rows of the second stream")
    depth: int = option(1, "Transformer blocks over the latents; 0 = none")
    attention: str = option("full", "spec of the attention of these blocks")
    activation: Activation = option("gelu", "of the feed-forwards")
    hidden: int = option(0, "units of the feed-forwards; 0 = 4 dim")
    learned_start: bool = option(
        True, "own learned first latents; only the first layer of a stack needs them"
    )

    def __post_init__(self) -> None:
        require(self.latents >= 1, f"perceiver: latents must be 1 or more, got {self.latents}; use 32")
        require(self.depth >= 0, f"perceiver: depth must be 0 or more, got {self.depth}; use 1")
        require(self.hidden >= 0, f"perceiver: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")
        require_known("perceiver", "activation", self.activation, ACTIVATIONS)


class PerceiverBlock(Block):
    """Two-stream block."""

    Config = PerceiverBlockConfig
    card = Card(
        name="perceiver",
        kind="block",
        family="compressed memory",
        paper="Jaegle et al. 2021, arXiv 2103.03206; Jaegle et al. 2022, arXiv 2107.14795",
        formula="Z += A(LN Z, LN X), F; blocks over Z; X += A(LN X, LN Z), F",
        cost="time O(N latents dim)",
        summary="latents read the sequence, think, and are read by it",
        causal="refuses",
        supports=capabilities("bidirectional", "padding"),
        options=options_of(PerceiverBlockConfig),
    )

    def __init__(self, config: PerceiverBlockConfig, site: Site) -> None:
        super().__init__()
        dim, generator = site.dim, site.generator
        hidden = config.hidden or 4 * dim
        self.config = config
        self.read, self.write = site.attention("full"), site.attention("full")
        inner = TransformerConfig(attention=config.attention, activation=config.activation, hidden=hidden)
        self.blocks = nn.ModuleList(TransformerBlock.build(inner, site) for _ in range(config.depth))
        self.start = (
            nn.Parameter(normal((config.latents, dim), generator, dim**-0.5))
            if config.learned_start
            else None
        )
        self.feed_latents = FeedForward(dim, hidden, config.activation, generator)
        self.feed_forward = FeedForward(dim, hidden, config.activation, generator)
        self.read_norm, self.source_norm, self.latent_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.write_norm, self.stream_norm, self.feed_norm = (nn.LayerNorm(dim) for _ in range(3))

    @classmethod
    def build(cls, config: PerceiverBlockConfig, site: Site) -> "PerceiverBlock":
        """With an attention to read, one to write, and blocks between."""
        require(
            not site.causal,
            "perceiver: causal is not supported, since latents read the whole sequence, got causal=True; use "
            "PerceiverARForCausalLM",
        )
        require(
            not site.rotary,
            "perceiver: rotary is not supported, since latents have no places, got rotary=True; add "
            "positions to the input",
        )
        return cls(config, site)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]; carry.stream [B, latents, dim], or None to begin with the learned ones."""
        require(
            carry.segments is None,
            "perceiver: segments are not supported, got packed documents; unpack them into rows",
        )
        z = self._latents(x, carry)
        source, real = self.source_norm(x), carry.key_is_real
        z = z + self.read(self.read_norm(z), context=source, context_is_real=real)
        z = z + self.feed_latents(self.latent_norm(z))
        inner = Carry()
        for block in self.blocks:
            z, inner = block(z, inner)
        x = x + self.write(self.write_norm(x), context=self.stream_norm(z))
        x = x + self.feed_forward(self.feed_norm(x))
        return x, replace(carry, stream=z).add_losses(inner.losses)

    def update_centroids(self) -> None:
        """Those of the blocks over the latents."""
        for block in self.blocks:
            block.update_centroids()  # type: ignore[operator]

    def _latents(self, x: Tensor, carry: Carry) -> Tensor:
        if carry.stream is not None:
            return carry.stream
        require(
            self.start is not None,
            "perceiver: stream must come from the layer below, got none; use learned_start=True",
        )
        assert self.start is not None
        return self.start.expand(x.shape[0], -1, -1)  # [B, latents, dim]
