"""The causal form of Luna: running means in place of the packed memory.

Paper    Ma et al. 2021, "Luna: Linear Unified Nested Attention", arXiv 2106.01540, section 3.3, in the form
         of the published code
Formula  w_t = softplus(k_t . p / sqrt(D)) for the rows p of the second stream, with base 2;
         s_t = q_t . mean_{u <= t} k_u w_u^T; y_t = softmax(s_t) . mean_{u <= t} w_u v_u^T
Cost     time O(N length D), extra memory O(N length); decode state 2 length D numbers for each head
Differs  The mean runs over real tokens; the published code divides by the place and packs padding too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mapformers.core.draw import linear
from mapformers.heads.merging import Concatenate, ConcatenateConfig
from mapformers.heads.projection import MultiHead, MultiHeadConfig, Sizes
from mapformers.kernels.scan import causal_sums
from mapformers.kernels.softmax import at_least_float32, default_scale


@dataclass
class LunaState:
    """Sums so far: keys by weights [B, H, D, length], weights by values [B, H, length, D], tokens [B]."""

    keys: Tensor
    values: Tensor
    count: Tensor

    def reorder(self, index: Tensor) -> LunaState:
        """Batch rows in another order (beams): row b of the result is row index[b]."""
        return LunaState(*(x.index_select(0, index) for x in (self.keys, self.values, self.count)))


class RunningPack(nn.Module):
    """x [B, N, dim] reads running means, weighted by a fixed second stream."""

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = sizes
        self.project = MultiHead(MultiHeadConfig(), sizes, generator)
        self.stream_query = linear(sizes.dim, sizes.heads * sizes.head_dim, generator)
        self.merge = Concatenate(ConcatenateConfig(), sizes, generator)

    def empty(self, batch: int, length: int) -> LunaState:
        """Nothing seen yet by `batch` rows; length = rows of the second stream."""
        like = at_least_float32(self.stream_query.weight.detach())
        heads, dim = self.sizes.heads, self.sizes.head_dim
        count = torch.zeros(batch, dtype=torch.long, device=like.device)
        return LunaState(
            like.new_zeros(batch, heads, dim, length), like.new_zeros(batch, heads, length, dim), count
        )

    def forward(
        self, x: Tensor, stream: Tensor, is_real: Tensor | None, state: LunaState
    ) -> tuple[Tensor, LunaState]:
        """[B, N, dim] and the state behind x. stream [B, length, dim], is_real [B, N] bool."""
        q, k, v = (at_least_float32(one) for one in self.project(x, x))
        p = rearrange(self.stream_query(stream), "b l (h d) -> b h l d", d=self.sizes.head_dim).to(k.dtype)
        weight = F.softplus(k @ p.transpose(-1, -2) * default_scale(k.shape[-1]), beta=math.log(2))
        real = x.new_ones(1, x.shape[1], dtype=torch.bool) if is_real is None else is_real
        weight = weight * real[:, None, :, None]  # [B, H, N, length]
        count = state.count[:, None] + real.long().cumsum(1).expand(x.shape[0], -1)  # [B, N]
        share = count.clamp(min=1).to(k.dtype).reciprocal()[:, None, :, None]
        scores, keys = causal_sums(q, k, weight, state.keys)
        chosen = (scores * share).softmax(-1)
        read, values = causal_sums(chosen, weight, v, state.values)
        output: Tensor = self.merge((read * share).to(x.dtype))
        return output, LunaState(keys, values, count[:, -1])
