"""Poolingformer: a window of tokens, and a second, larger window of pooled ones.

Paper    Zhang, Gong, Shen, Li, Lv, Duan, Chen 2021, "Poolingformer: Long Document Modeling with Pooling
         Attention", ICML, arXiv 2105.04371, section 3
Formula  y = band attention of x; z_i = softmax over the cells c of the second window of q_i . k'_c / sqrt(D),
         of v'_c, with q, k, v projected from y and k', v' pooled over `kernel` tokens every `stride` tokens;
         x + y + z, then + F
Cost     time O(N (window + second_window / stride) dim), extra memory O(N dim kernel / stride)
Differs  Pre-norm. We found no published code: the dynamic convolution weighs the tokens of a cell by softmax
         of a linear map of their mean, which is ours. Causal is ours too: cells whose last token is at or
         before the query. Decoding runs the prefix again.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.blocks.base import Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.blocks.prefix import PrefixBlock
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.draw import linear
from mapformers.core.errors import require, require_known
from mapformers.core.plans import Ranges
from mapformers.core.scope import Scope
from mapformers.heads.merging import Concatenate, ConcatenateConfig
from mapformers.heads.projection import MultiHead, MultiHeadConfig
from mapformers.kernels.run import ranges_attend

Pooling = Literal["mean", "max", "convolution", "dynamic"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True)
class PoolingformerConfig:
    """Options of the poolingformer block."""

    window: int = option(128, "tokens that the first level sees on each side")
    second_window: int = option(512, "tokens that the second level sees, pooled, on each side")
    kernel: int = option(5, "tokens in a cell")
    stride: int = option(4, "tokens from one cell to the next")
    pooling: Pooling = option("dynamic", "of the keys and values of a cell")
    activation: Activation = option("gelu", "of the feed-forward")
    hidden: int = option(0, "units of the feed-forward; 0 = 4 dim")

    def __post_init__(self) -> None:
        for name, least in (("window", 0), ("second_window", 0), ("kernel", 1), ("stride", 1), ("hidden", 0)):
            value = getattr(self, name)
            require(
                value >= least,
                f"poolingformer: {name} must be {least} or more, got {value}; the default is "
                f"{getattr(type(self), name)}",
            )
        require_known("poolingformer", "pooling", self.pooling, POOLINGS)
        require_known("poolingformer", "activation", self.activation, ACTIVATIONS)


class PoolingformerBlock(PrefixBlock):
    """Two levels of attention, then the feed-forward."""

    Config = PoolingformerConfig
    card = Card(
        name="poolingformer",
        kind="block",
        family="compressed memory",
        paper="Zhang et al. 2021, arXiv 2105.04371",
        formula="x + y + z, then + F; y a band over tokens, z a larger band over cells pooled from y",
        cost="time O(N (window + second_window / stride) dim), memory O(N dim kernel / stride)",
        summary="a window of tokens, and a larger window of pooled ones",
        supports=capabilities("bidirectional", "causal", "padding", "decode"),
        options=options_of(PoolingformerConfig),
    )

    def __init__(self, config: PoolingformerConfig, site: Site) -> None:
        super().__init__()
        sizes, generator, dim = site.sizes("poolingformer"), site.generator, site.dim
        self.config, self.causal, self.dim = config, site.causal, dim
        self.near: MultiHeadAttention = site.attention(f"band(window={config.window})")
        self.project = MultiHead(MultiHeadConfig(), sizes, generator)
        self.merge = Concatenate(ConcatenateConfig(), sizes, generator)
        self.pool_keys, self.pool_values = (
            CellPooling(config, (sizes.heads, sizes.head_dim), generator) for _ in range(2)
        )
        self.feed_forward = FeedForward(dim, config.hidden or 4 * dim, config.activation, generator)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: PoolingformerConfig, site: Site) -> "PoolingformerBlock":
        """Positions belong into the input."""
        require(
            not site.rotary,
            "poolingformer: rotary is not supported, got rotary=True; add positions to the input",
        )
        return cls(config, site)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]."""
        require(
            carry.segments is None,
            "poolingformer: segments are not supported, got packed documents; unpack them into rows",
        )
        y = self.near(self.attention_norm(x), carry.key_is_real)
        x = x + y + self._far(y, carry.key_is_real)
        return x + self.feed_forward(self.feed_forward_norm(x)), carry

    def _far(self, y: Tensor, is_real: Tensor | None) -> Tensor:
        """The second level [B, N, dim]. Real tokens move to the front first: cells are counted among them."""
        batch, n, _ = y.shape
        order = None
        if is_real is not None:
            is_real = is_real.expand(batch, n)
            order = is_real.long().argsort(dim=1, descending=True, stable=True)
            y, is_real = y.gather(1, order.unsqueeze(-1).expand_as(y)), is_real.gather(1, order)
        q, k, v = self.project(y, y)
        lengths = torch.full((1,), n, device=y.device) if is_real is None else is_real.sum(1)  # [B or 1]
        ranges = self._ranges(n, lengths)
        read = ranges_attend(ranges, q, self.pool_keys(k, lengths), self.pool_values(v, lengths), Scope())
        z: Tensor = self.merge(read.output.to(y.dtype))
        return z if order is None else z.gather(1, order.argsort(1).unsqueeze(-1).expand_as(z))

    def _ranges(self, n: int, lengths: Tensor) -> Ranges:
        """Query i sees the cells that touch i - second_window .. i + second_window; causal: whole ones."""
        config, i = self.config, torch.arange(n, device=lengths.device)
        first = -((config.second_window + config.kernel - 1 - i) // config.stride)  # the quotient, upwards
        last = (i - config.kernel + 1 if self.causal else i + config.second_window) // config.stride
        most = (-(-lengths // config.stride))[:, None]  # cells of the row
        start = torch.minimum(first.clamp(min=0)[None], most)
        end = torch.maximum(torch.minimum((last + 1).clamp(min=0)[None], most), start)
        return Ranges(None, None, start[:, None, None], end[:, None, None])


class CellPooling(nn.Module):
    """x [B, H, N, D] to cells [B, H, ceil(N / stride), D]."""

    def __init__(
        self, config: PoolingformerConfig, sizes: tuple[int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        heads, dim = sizes
        if config.pooling == "convolution":  # begins as the mean
            identity = torch.eye(dim) / config.kernel
            self.taps = nn.Parameter(identity.expand(heads, config.kernel, dim, dim).clone())
        elif config.pooling == "dynamic":
            self.weigh = linear(dim, config.kernel, generator)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Cells of the first `lengths` [B or 1] tokens of each row; tokens beyond count as absent."""
        n, kernel, stride = x.shape[2], self.config.kernel, self.config.stride
        index = torch.arange(0, n, stride, device=x.device)[:, None] + torch.arange(kernel, device=x.device)
        there = (index < lengths[:, None, None])[:, None, :, :, None]  # [B or 1, 1, S, kernel, 1]
        members = x[:, :, index.clamp(max=n - 1)]  # [B, H, S, kernel, D]
        if self.config.pooling == "max":
            lowest = torch.finfo(x.dtype).min
            return members.masked_fill(~there, lowest).amax(3).masked_fill(~there.any(3), 0.0)
        members = members.masked_fill(~there, 0.0)
        if self.config.pooling == "convolution":
            return torch.einsum("bhskd,hkde->bhse", members, self.taps.to(x.dtype))
        mean = members.sum(3) / there.sum(3).clamp(min=1)  # [B, H, S, D]
        if self.config.pooling == "mean":
            return mean
        scores = self.weigh(mean).unsqueeze(-1).masked_fill(~there, torch.finfo(x.dtype).min)
        return (scores.softmax(3) * members).sum(3)
