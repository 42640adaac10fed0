"""BP-Transformer: a binary tree over the tokens; near tokens are seen one by one, far ones as spans.

Paper    Ye, Guo, Gan, Qiu, Zhang 2019, "BP-Transformer: Modelling Long-Range Context via Binary
         Partitioning", arXiv 1911.04070, section 3.
Formula  leaf i sees itself and, to either side, the next k nodes of level 0, then k of level 1, 2, ..., with
         scores (q_i . k_j + q_i . a_kind(i, j)) / sqrt(D); span s sees its leaves, with q_s . k_j / sqrt(D);
         kind = (level up to clip, side, place). Then h <- LN(h + A), h <- LN(h + F(h)) for all nodes
Cost     time O((k log(N / k) + log N) N dim), memory O(N (k log(N / k) + dim)): the indices of the edges, and
         the nodes; keys are gathered for some leaves at a time, and again in the backward
Differs  The edges of a span have one kind in each level, which shifts all its scores alike: left out. Where
         the last parent of a level has one child only, the official builder lets leaves to the left of it
         see the first node of the next level as if it were the missing child; here there is no such edge.
         Without cross-attention; packed documents are refused. Decoding runs the prefix again.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.blocks.base import Site
from mapformers.blocks.feed_forward import ACTIVATIONS, Activation, FeedForward
from mapformers.blocks.prefix import PrefixBlock
from mapformers.blocks.tree_attention import Gather, gathered_attention
from mapformers.blocks.tree_edges import TreeEdges, TreeShape, tree_edges
from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.carry import Carry
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known
from mapformers.core.plans import Windows
from mapformers.core.scope import Scope
from mapformers.heads.merging import Concatenate, ConcatenateConfig
from mapformers.heads.projection import MultiHead, MultiHeadConfig, Sizes
from mapformers.kernels.run import window_attend

NORMS = ("post", "pre")
GATHERED = 2**22  # numbers of the keys that are gathered at a time


@dataclass(frozen=True)
class BinaryTreeConfig:
    """Options of the binary_tree block."""

    k: int = option(4, "nodes of each level that a leaf sees on each side")
    clip: int = option(6, "last level whose edges have embeddings of their own; higher ones share them")
    norm: Literal["post", "pre"] = option("post", "where the layer norms stand")
    activation: Activation = option("relu", "of the feed-forward")
    hidden: int = option(0, "units of the feed-forward; 0 = 4 dim")

    def __post_init__(self) -> None:
        require(self.k >= 1, f"binary_tree: k must be 1 or more, got {self.k}; use k=4 for example")
        require(self.clip >= 0, f"binary_tree: clip must be 0 or more, got {self.clip}; use clip=6")
        require_known("binary_tree", "norm", self.norm, NORMS)
        require_known("binary_tree", "activation", self.activation, ACTIVATIONS)
        require(self.hidden >= 0, f"binary_tree: hidden must be 0 or more, got {self.hidden}; 0 means 4 dim")


class BinaryTreeBlock(PrefixBlock):
    """One layer over the leaves and the spans of a tree; the spans travel in carry.stream [B, spans, dim].

    If causal, leaves see to the left only. A span reads all its leaves, but no leaf before its end reads it.
    """

    Config = BinaryTreeConfig
    card = Card(
        name="binary_tree",
        kind="block",
        family="sparse, position-based (extended)",
        paper="Ye et al. 2019, arXiv 1911.04070",
        formula="leaf: softmax over k nodes per level and side, (q.k + q.a_kind) / sqrt(D); span: its leaves",
        cost="time O(k N log(N / k)), memory O(N (k log(N / k) + dim))",
        summary="near tokens one by one, far ones as spans of a binary tree",
        supports=capabilities("bidirectional", "causal", "padding", "decode"),
        options=options_of(BinaryTreeConfig),
    )

    def __init__(
        self, config: BinaryTreeConfig, sizes: Sizes, causal: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config, self.causal, self.dim = config, causal, sizes.dim
        self.project = MultiHead(MultiHeadConfig(), sizes, generator)
        self.merge = Concatenate(ConcatenateConfig(), sizes, generator)
        kinds = self._shape(1).kinds
        self.edge_keys = nn.Parameter(normal((kinds, sizes.head_dim), generator, sizes.head_dim**-0.5))
        hidden = config.hidden or 4 * sizes.dim
        self.feed_forward = FeedForward(sizes.dim, hidden, config.activation, generator)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)

    @classmethod
    def build(cls, config: BinaryTreeConfig, site: Site) -> "BinaryTreeBlock":
        """With heads of dim / heads; the kinds of edges are its only positions."""
        require(
            not site.rotary,
            "binary_tree: rotary is not supported, got rotary=True; its edges know their distance",
        )
        return cls(config, site.sizes("binary_tree"), site.causal, site.generator)

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, dim] the leaves; carry.stream [B, spans, dim], or None to begin with spans of zero."""
        require(
            carry.segments is None,
            "binary_tree: segments are not supported, got packed documents; unpack them into rows",
        )
        batch, n, dim = x.shape
        shape = self._shape(n)
        stream = x.new_zeros(batch, shape.spans, dim) if carry.stream is None else carry.stream
        require(
            stream.shape == (batch, shape.spans, dim),
            f"binary_tree: stream must have shape {(batch, shape.spans, dim)} over {n} tokens, got "
            f"{tuple(stream.shape)}; stack blocks of one kind",
        )
        # The tree stands over the real tokens: they move to the front, in their order.
        real = None if carry.key_is_real is None else carry.key_is_real.expand(batch, n)
        order = None if real is None else real.long().argsort(dim=1, descending=True, stable=True)
        if order is not None and real is not None:
            x, real = _rows(x, order), real.gather(1, order)
        nodes = self._layer(torch.cat([x, stream], 1), real, tree_edges(shape).to(x.device))
        leaves, stream = nodes.split([n, shape.spans], 1)
        if order is not None:
            leaves = _rows(leaves, order.argsort(1))
        return leaves, replace(carry, stream=stream)

    def _shape(self, n: int) -> TreeShape:
        return TreeShape(n, self.config.k, self.config.clip, self.causal)

    def _layer(self, nodes: Tensor, real: Tensor | None, edges: TreeEdges) -> Tensor:
        """All nodes [B, nodes, dim] at once; real [B, N] of the leaves."""
        pre = self.config.norm == "pre"
        y = self.attention_norm(nodes) if pre else nodes
        nodes = nodes + self.merge(self._attend(y, real, edges))
        if pre:
            return nodes + self.feed_forward(self.feed_forward_norm(nodes))
        nodes = self.attention_norm(nodes)
        normed: Tensor = self.feed_forward_norm(nodes + self.feed_forward(nodes))
        return normed

    def _attend(self, nodes: Tensor, real: Tensor | None, edges: TreeEdges) -> Tensor:
        """[B, H, nodes, D] the heads of all nodes."""
        q, k, v = self.project(nodes, nodes)
        n, spans = edges.node.shape[0], edges.start.shape[0]
        of_leaves, of_spans = q.split([n, spans], 2)
        leaves, k, v = self._leaves(of_leaves, k, v, real, edges)
        if spans == 0:
            return leaves
        own = torch.arange(spans, device=nodes.device)[None, None]
        none = edges.span_of_leaf.new_full(
            (spans, edges.span_of_leaf.shape[1]), -1
        )  # spans read leaves alone
        segment = torch.cat([edges.span_of_leaf, none])
        windows = Windows(None, None, query_segment=own, key_segment=segment[None, None])
        whole = None if real is None else F.pad(real, (0, spans), value=False)
        read = window_attend(windows, of_spans, k, v, Scope(key_is_real=whole)).output
        return torch.cat([leaves, read.to(leaves.dtype)], 2)

    def _leaves(
        self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, edges: TreeEdges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Leaves q [B, H, N, D] over the nodes k, v [B, H, nodes, D] that they see: [B, H, N, D], k and v."""
        batch, heads, n, dim = q.shape
        # A span holds something real when its first leaf is.
        node_real = None if real is None else torch.cat([real, real[:, edges.start]], 1)
        edge_keys = self.edge_keys.to(q.dtype)[edges.kind]  # [F, D]

        size = max(16, GATHERED // (batch * heads * dim * edges.node.shape[1]))
        parts = [slice(i, min(i + size, n)) for i in range(0, n, size)]
        return gathered_attention(q, k, v, edge_keys, Gather(edges.node.long(), node_real, parts))


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """Rows of x [B, N, dim] in the order [B, N]."""
    return x.gather(1, order.unsqueeze(-1).expand_as(x))
