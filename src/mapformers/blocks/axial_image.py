"""The Axial Transformer for images: an outer decoder over the rows above, an inner one along the row.

Paper    Ho, Kalchbrenner, Weissenborn, Salimans 2019, "Axial Attention in Multidimensional Transformers",
         arXiv 1912.12180, section 3.3.
Formula  U = (columns_causal after rows_full)^outer (X); H = right(X) + down(U); Y = (rows_causal)^inner (H).
         down moves by a row, right by a pixel inside its row; zeros come in
Cost     time O(N (height + width) dim) for each of the layers, memory O(N dim)
Differs  Each attention is a pre-norm Transformer layer with a feed-forward of its own. Positions belong into
         the input. One channel: the paper's encoder of the channels before is left out. Without causality
         nothing is masked and nothing shifted. Decoding runs the prefix again.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.blocks.base import Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation
from mapformers.blocks.prefix import PrefixBlock
from mapformers.blocks.transformer import TransformerBlock, TransformerConfig
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.errors import require, require_known
from mapformers.core.scope import Scope
from mapformers.mechanisms.sparse.grid import check_grid, require_sizes


@dataclass(frozen=True)
class AxialImageConfig:
    """Options of the axial_image block."""

    width: int = option(32, "pixels per row")
    height: int = option(0, "rows of the image, which refuses other lengths; 0 = any number")
    outer: int = option(2, "pairs of a row layer and a column layer over the rows above")
    inner: int = option(2, "row layers over the pixels before in the row")
    shift: bool = option(True, "place t predicts pixel t; false: it sees its own pixel too, for pixel t + 1")
    activation: Activation = option("gelu", "of the feed-forwards")
    hidden: int = option(0, "units of the feed-forwards; 0 = 4 dim")

    def __post_init__(self) -> None:
        require_known("axial_image", "activation", self.activation, ACTIVATIONS)
        require_sizes("axial_image", {"width": self.width, "outer": self.outer, "inner": self.inner}, 1)
        require_sizes("axial_image", {"height": self.height, "hidden": self.hidden}, 0)

    def layer(self, axis: str) -> TransformerConfig:
        """One layer along an axis."""
        attention = f"axial(axis={axis}, width={self.width})"
        return TransformerConfig(attention=attention, activation=self.activation, hidden=self.hidden)


class AxialImageBlock(PrefixBlock):
    """Outer and inner decoder of an image in raster order.

    If causal, output t depends on the pixels before t and on all of them, not on pixel t itself: it predicts
    pixel t without a further shift of the labels. With shift=False it depends on pixel t as well, as the
    layers of a language model do.
    """

    Config = AxialImageConfig
    card = Card(
        name="axial_image",
        kind="block",
        family="sparse, position-based (extended)",
        paper="Ho et al. 2019, arXiv 1912.12180, section 3.3",
        formula="U = outer rows and masked columns of X; Y = masked rows of right(X) + down(U)",
        cost="time O(N (height + width) dim), memory O(N dim)",
        summary="rows above by an outer decoder, the row itself by an inner one, two shifts",
        supports=capabilities("bidirectional", "causal", "decode"),
        options=options_of(AxialImageConfig),
    )

    def __init__(
        self,
        config: AxialImageConfig,
        causal: bool,
        outer: list[TransformerBlock],
        inner: list[TransformerBlock],
    ) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.outer, self.inner = nn.ModuleList(outer), nn.ModuleList(inner)

    @classmethod
    def build(cls, config: AxialImageConfig, site: Site) -> "AxialImageBlock":
        """Rows of the outer decoder are never masked: the shift by a row hides what they must not show."""

        def layer(axis: str, causal: bool) -> TransformerBlock:
            made = TransformerBlock.build(config.layer(axis), site)
            made.attention.options = replace(made.attention.options, causal=causal)
            return made

        outer = [
            layer(axis, site.causal and axis == "column")
            for _ in range(config.outer)
            for axis in ("row", "column")
        ]
        return cls(config, site.causal, outer, [layer("row", site.causal) for _ in range(config.inner)])

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim] pixels in raster order; a prefix of the image gives a prefix of the outputs."""
        require(
            carry.key_is_real is None and carry.segments is None,
            "axial_image: padding and segments are not supported, got one of them; give whole images of "
            "one size",
        )
        ranks = torch.arange(x.shape[1], device=x.device)[None]
        grid = self.config.height, self.config.width
        check_grid("axial_image", grid, ranks, Scope(causal=self.causal))
        above = x
        for layer in self.outer:
            above, carry = layer(above, carry)
        if self.causal:
            above = _shift(above, self.config.width)
            x = _shift_right(x, self.config.width) if self.config.shift else x
        x = x + above
        for layer in self.inner:
            x, carry = layer(x, carry)
        return x, carry


def _shift(x: Tensor, count: int) -> Tensor:
    """Tokens [B, N, dim] moved `count` places back, zeros in front."""
    return F.pad(x, (0, 0, count, 0))[:, : x.shape[1]]


def _shift_right(x: Tensor, width: int) -> Tensor:
    """Pixels moved by one inside their rows."""
    first = torch.arange(x.shape[1], device=x.device) % width == 0
    return _shift(x, 1).masked_fill(first[:, None], 0)
