"""Reading: attention of a short array to a long one, or to itself, and a feed-forward, both with residuals.

Paper    Jaegle et al. 2021, "Perceiver", arXiv 2103.03206, section 3; Jaegle et al. 2022, "Perceiver IO",
         arXiv 2107.14795, appendix E
Formula  x <- x + A(LN x, LN c), then x + F(LN x); the first residual may be left out (output queries)
Cost     time O(N M), memory O(N): the long array is read in portions and merged by log-sum-exp
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mapformers.blocks.feed_forward import FeedForward
from mapformers.core.attended import Attended, merge
from mapformers.core.draw import linear
from mapformers.core.errors import require
from mapformers.kernels.softmax import at_least_float32, default_scale, softmax_attend

SCORES_ALIVE = 2**23  # of one portion, over all heads and batch rows


@dataclass(frozen=True)
class ReadSizes:
    """Widths of a read.

    dim      of x; context: of what is read, 0 = x reads itself
    qk, v    of all heads together, 0 = that of what is read
    hidden   units of the feed-forward; 0 = dim
    dropout  of attended values and feed-forward, in training; eps of the layer norms
    """

    dim: int
    context: int = 0
    heads: int = 1
    qk: int = 0
    v: int = 0
    hidden: int = 0
    dropout: float = 0.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, value in (("qk", self.key_width), ("v", self.value_width)):
            require(
                value % self.heads == 0,
                f"read: {name} must be a multiple of heads={self.heads}, got {value}; change one of them",
            )

    @property
    def source(self) -> int:
        """Width of what is read."""
        return self.context or self.dim

    @property
    def key_width(self) -> int:
        """Of queries and keys, all heads together."""
        return self.qk or self.source

    @property
    def value_width(self) -> int:
        """Of values, all heads together."""
        return self.v or self.key_width


class Read(nn.Module):
    """x [B, N, dim] reads a context [B, M, context], or itself."""

    def __init__(self, sizes: ReadSizes, generator: torch.Generator, residual: bool = True) -> None:
        super().__init__()
        self.sizes, self.residual = sizes, residual
        self.query_norm = nn.LayerNorm(sizes.dim, sizes.eps)
        self.context_norm = nn.LayerNorm(sizes.context, sizes.eps) if sizes.context else None
        self.query = linear(sizes.dim, sizes.key_width, generator, bias=True)
        self.key = linear(sizes.source, sizes.key_width, generator, bias=True)
        self.value = linear(sizes.source, sizes.value_width, generator, bias=True)
        self.output = linear(sizes.value_width, sizes.dim, generator, bias=True)
        self.feed_norm = nn.LayerNorm(sizes.dim, sizes.eps)
        self.feed_forward = FeedForward(sizes.dim, sizes.hidden or sizes.dim, "gelu", generator)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        context_is_real: Tensor | None = None,
        portion: int | None = None,
    ) -> Tensor:
        """[B, N, dim].

        context_is_real [B, M] bool, False = padding. A row that may read nothing gets zeros from its
        attention. portion: tokens of the context at once; None = as many as fit a fixed number of scores.
        """
        require(
            (context is None) == (self.context_norm is None),
            f"read: context must be {'given' if self.context_norm else 'left out'}, got the contrary; see "
            "ReadSizes.context",
        )
        y = self.query_norm(x)
        attended = self._attended(y, y if context is None else context, context_is_real, portion)
        read = F.dropout(self.output(attended), self.sizes.dropout, self.training)
        if context_is_real is not None:
            read = read * context_is_real.any(1)[:, None, None]
        x = x + read if self.residual else read
        fed = self.feed_forward(self.feed_norm(x))
        return x + F.dropout(fed, self.sizes.dropout, self.training)

    def weights(self, x: Tensor, context: Tensor, context_is_real: Tensor | None = None) -> Tensor:
        """[B, H, N, M] how much each row of x reads of each token of a context: to look at, as a whole."""
        assert self.context_norm is not None
        q = self._heads(self.query(self.query_norm(x)))
        k = self._heads(self.key(self.context_norm(context)))
        scores = at_least_float32(q @ k.transpose(-1, -2)) * default_scale(q.shape[-1])
        if context_is_real is not None:
            scores = scores.masked_fill(~context_is_real[:, None, None], float("-inf"))
        return scores.softmax(-1).nan_to_num(0.0)

    def _attended(self, y: Tensor, context: Tensor, real: Tensor | None, portion: int | None) -> Tensor:
        """[B, N, v] values of all heads."""
        q = self._heads(self.query(y))
        batch, heads, n, _ = q.shape
        size = portion or max(256, SCORES_ALIVE // (batch * heads * n))
        pieces = [slice(i, min(i + size, context.shape[1])) for i in range(0, context.shape[1], size)]
        if len(pieces) == 1:
            return self._piece(q, context, real).output.transpose(1, 2).flatten(2)
        parts = []
        for piece in pieces:
            known = None if real is None else real[:, piece]
            # Keys, values and scores of a portion are made again in the backward instead of being kept.
            output, lse = checkpoint(
                self._lists, q, context[:, piece], known, use_reentrant=False, preserve_rng_state=False
            )
            parts.append(Attended(output, lse))
        return merge(parts).output.transpose(1, 2).flatten(2)

    def _lists(self, q: Tensor, context: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        part = self._piece(q, context, real, want_lse=True)
        return part.output, part.lse

    def _piece(self, q: Tensor, context: Tensor, real: Tensor | None, want_lse: bool = False) -> Attended:
        """Attention of q [B, H, N, D] to some tokens [B, m, context]; the lse only where it is asked for."""
        source = context if self.context_norm is None else self.context_norm(context)
        k, v = self._heads(self.key(source)), self._heads(self.value(source))
        if real is None and not want_lse:
            return Attended(F.scaled_dot_product_attention(q, k, v), q.new_zeros(()))
        scores = at_least_float32(q @ k.transpose(-1, -2)) * default_scale(q.shape[-1])
        return softmax_attend(scores, None if real is None else real[:, None, None], v)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, width] to [B, H, N, width / H]."""
        return x.unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2)
