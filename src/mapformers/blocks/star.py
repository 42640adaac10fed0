"""Star-Transformer: satellites on a ring see their neighbours and a relay, the relay sees all of them.

Paper    Guo, Qiu, Liu, Shao, Xue, Zhang 2019, "Star-Transformer", arXiv 1902.09113, section 3.
Formula  C_i = [h_{i-1}; h_i; h_{i+1}; e_i; s]; h'_i = LN(act(MHA(h_i, C_i)));
         s' = LN(act(MHA(s, [s; h'_1; ..; h'_n]))), e the input of the first layer, s = mean(e) at first
Cost     time O(N dim), memory O(N dim), beside the projections
Differs  One block is one cycle of the paper, with weights of its own. A neighbour that does not exist is not
         seen; the official code attends to a key of zeros in its place, and to padding likewise. On a ring
         of one or two tokens no token is seen twice. Packed documents are refused.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.blocks.base import Block, Site
from mapformers.core.attended import Attended, merge
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.errors import require, require_known
from mapformers.core.plans import Dense
from mapformers.core.scope import Scope
from mapformers.heads.merging import Concatenate, ConcatenateConfig
from mapformers.heads.projection import MultiHead, MultiHeadConfig, Sizes
from mapformers.kernels.dense import dense_attend
from mapformers.kernels.softmax import at_least_float32, default_scale

ACTIVATIONS = ("relu", "leaky_relu")


@dataclass(frozen=True)
class StarConfig:
    """Options of the star block."""

    ring: bool = option(True, "the first and the last real token are neighbours")
    activation: Literal["relu", "leaky_relu"] = option("relu", "after both attentions")

    def __post_init__(self) -> None:
        require_known("star", "activation", self.activation, ACTIVATIONS)


class Neighbour(NamedTuple):
    """The token on one side of every token: its place [B, N], and whether it exists and is not seen yet."""

    place: Tensor
    there: Tensor


class StarBlock(Block):
    """One cycle; the relay travels in carry.stream [B, 1, dim], the embeddings in carry.embedding."""

    Config = StarConfig
    card = Card(
        name="star",
        kind="block",
        family="sparse, position-based (compound)",
        paper="Guo et al. 2019, arXiv 1902.09113",
        formula="h'_i = LN(act(MHA(h_i, [h_{i-1}; h_i; h_{i+1}; e_i; s]))); s' = LN(act(MHA(s, [s; H'])))",
        cost="time and memory O(N dim)",
        summary="a ring of neighbours, and a relay between all of them",
        causal="refuses",
        supports=capabilities("bidirectional", "padding"),
        options=options_of(StarConfig),
    )

    def __init__(self, config: StarConfig, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.dim = config, sizes.dim
        self.satellites, self.relay = (MultiHead(MultiHeadConfig(), sizes, generator) for _ in range(2))
        self.satellites_merge, self.relay_merge = (
            Concatenate(ConcatenateConfig(), sizes, generator) for _ in range(2)
        )
        self.satellites_norm, self.relay_norm = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)

    @classmethod
    def build(cls, config: StarConfig, site: Site) -> "StarBlock":
        """With heads of dim / heads."""
        require(
            not site.causal,
            "star: causal is not supported, got causal=True; its relay sees all tokens: use causal=False",
        )
        require(not site.rotary, "star: rotary is not supported, got rotary=True; add positions to the input")
        return cls(config, site.sizes("star"), site.generator)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim]. Without a relay in the carry it begins as the mean of the real tokens, and without
        embeddings x itself is taken for them.
        """
        require(
            carry.segments is None,
            "star: segments are not supported, got packed documents; unpack them into rows",
        )
        batch, n, dim = x.shape
        Scope(key_is_real=carry.key_is_real).check(batch, n, n)
        real = x.new_ones(1, 1, dtype=torch.bool) if carry.key_is_real is None else carry.key_is_real
        real = real.expand(batch, n)
        embedding = x if carry.embedding is None else carry.embedding
        for name, given, rows in (("embedding", embedding, n), ("stream", carry.stream, 1)):
            require(
                given is None or given.shape == (batch, rows, dim),
                f"star: {name} must have shape {(batch, rows, dim)} over {n} tokens, got "
                f"{None if given is None else tuple(given.shape)}; stack blocks of one kind",
            )
        relay = _mean(embedding, real) if carry.stream is None else carry.stream
        attended = self._satellites(x, torch.cat([embedding, relay], 1), real)
        x = self.satellites_norm(self._act(self.satellites_merge(attended)))
        relay = self.relay_norm(self._act(self.relay_merge(self._relay(relay, x, real))))
        return x, replace(carry, stream=relay, embedding=embedding)

    def _act(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.config.activation == "relu" else F.leaky_relu(x)

    def _satellites(self, x: Tensor, others: Tensor, real: Tensor) -> Tensor:
        """[B, H, N, D] of satellites x [B, N, dim]; others [B, N + 1, dim] their embeddings, then the relay.

        A context has five rows at most, so each of them is a part of its own, merged by its score.
        """
        n = x.shape[1]
        q, k, v = self.satellites(x, torch.cat([x, others], 1))
        # Its own key, that of its embedding, that of the relay.
        rows = k.split([n, n, 1], 2), v.split([n, n, 1], 2)
        parts = [_one_key(q, *row) for row in zip(*rows, strict=True)]
        for side in neighbours(real, self.config.ring):
            index = side.place[:, None, :, None].expand_as(q)
            part = _one_key(q, k.gather(2, index), v.gather(2, index))
            parts.append(part._replace(lse=part.lse.masked_fill(~side.there[:, None], float("-inf"))))
        return merge(parts).output

    def _relay(self, relay: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """[B, H, 1, D] of the relay [B, 1, dim] over itself and the new satellites x [B, N, dim]."""
        q, k, v = self.relay(relay, torch.cat([relay, x], 1))
        return dense_attend(Dense(), q, k, v, Scope(key_is_real=F.pad(real, (1, 0), value=True))).output


def neighbours(real: Tensor, ring: bool) -> tuple[Neighbour, Neighbour]:
    """The nearest real tokens before and behind every token, real [B, N]."""
    n = real.shape[1]
    index = torch.arange(n, device=real.device).expand_as(real)
    last = index.masked_fill(~real, -1).cummax(1).values  # the last real token up to here
    first = index.masked_fill(~real, n).flip(1).cummin(1).values.flip(1)  # the first one from here on
    before, behind = F.pad(last, (1, -1), value=-1), F.pad(first, (-1, 1), value=n)
    if ring:
        before = torch.where(before < 0, last[:, -1:], before)
        behind = torch.where(behind >= n, first[:, :1], behind)
    there = (before >= 0) & (before != index)
    also_there = (behind < n) & (behind != index) & (behind != before)
    return Neighbour(before.clamp(min=0), there), Neighbour(behind.clamp(max=n - 1), also_there)


def _one_key(q: Tensor, k: Tensor, v: Tensor) -> Attended:
    """Attention of each query of [B, H, N, D] to one key of its own, k [B, H, N or 1, D]."""
    score = (at_least_float32(q) * at_least_float32(k)).sum(-1) * default_scale(q.shape[-1])
    return Attended(v.expand(*q.shape[:3], -1), score)


def _mean(x: Tensor, real: Tensor) -> Tensor:
    """[B, 1, dim] mean of the real tokens of x [B, N, dim]; zero where there are none."""
    total = x.masked_fill(~real.unsqueeze(-1), 0).sum(1, keepdim=True)
    return total / real.sum(1).clamp(min=1)[:, None, None].to(x.dtype)
