"""Clustered attention: queries of a cluster share the weights of their mean.

Paper    Vyas, Katharopoulos, Fleuret 2020, "Fast Transformers with Clustered Attention", arXiv 2007.04825,
         section 3.1; clusters: hamming.py.
Formula  w_i = A_c = softmax(mean of cluster c's queries . k / sqrt(D)) for i in c
Cost     time O(N C D + iterations N C bits), memory O(N C)
Differs  Clusters and their order are deterministic (hamming.py), and padding takes no part in them; the
         public code starts from memory that was never written. No more queries than clusters: exact
         attention. Causal use is refused: means are over later queries too.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Dense, Plan, Representatives
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import at_least_float32, masked_softmax, scaled_scores
from mapformers.mechanisms.prototypes.hamming import bits_of, clusters_of


@dataclass(frozen=True)
class ClusteredConfig:
    """Options of clustered attention."""

    clusters: int = option(100, "groups of queries")
    bits: int = option(32, "random planes that queries are hashed by")
    iterations: int = option(10, "steps of Lloyd's algorithm")

    def __post_init__(self) -> None:
        for name in ("clusters", "bits"):
            value = getattr(self, name)
            require(value >= 1, f"clustered: {name} must be 1 or more, got {value}; see its default")
        require(
            self.iterations >= 0,
            f"clustered: iterations must be 0 or more, got {self.iterations}; 10 are usual",
        )


class Clusters(NamedTuple):
    """Of queries: cluster [B, H, N] of each, -1 = padding; their means [B, H, C, D], float32 or wider."""

    cluster: Tensor
    means: Tensor


class Clustered(Mechanism):
    """Attention of the means of clusters of queries."""

    Config = ClusteredConfig
    config: ClusteredConfig
    planes: Tensor
    card = Card(
        name="clustered",
        family="prototype",
        paper="Vyas et al. 2020, arXiv 2007.04825",
        formula="w_i = softmax(mean of i's cluster . k / sqrt(D))",
        cost="time O(N C D), memory O(N C)",
        summary="queries of a cluster share the weights of their mean",
        causal="refuses",
        supports=capabilities("bidirectional", "padding", "cross", "grouped", "rows_sum_to_one"),
        options=options_of(ClusteredConfig),
    )

    def check_causal(self, causal: bool) -> None:
        """Say why not."""
        require(
            not causal,
            f"{self.card.name}: causal is not supported, since clusters are made of later queries too, got "
            "causal=True; use causal=False, or routing",
        )

    @property
    def mixes_queries(self) -> bool:
        """A cluster's mean is over all of its queries."""
        return True

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """The planes [H, bits, D + 1]."""
        size = (shape.heads, self.config.bits, shape.head_dim + 1)
        self.register_buffer("planes", normal(size, generator))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """The means see all keys; each query takes the output of its cluster's."""
        groups = self.clusters_of_queries(q, scope)
        return Representatives(groups.means.to(q.dtype), groups.cluster, Dense())

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Cluster by cluster, the softmax of the mean of its members."""
        cluster, visible = self.clusters_of_queries(q, scope).cluster, scope.visible(1, k.shape[2], q.device)
        weights = q.new_zeros(*q.shape[:3], k.shape[2])
        for c in range(int(cluster.max()) + 1):
            member = (cluster == c).unsqueeze(-1).to(q.dtype)  # [B, H, N, 1]
            mean = (q * member).sum(2, keepdim=True) / member.sum(2, keepdim=True).clamp(min=1)
            weights = weights + member * masked_softmax(scaled_scores(mean, k), visible)
        return weights

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Hashing, Lloyd's algorithm, the attention of the means."""
        count, bits = min(self.config.clusters, n), self.config.bits
        clustering = 2.0 * n * bits * dim + 2.0 * (self.config.iterations + 1) * n * count * bits
        return Cost(batch * heads * (clustering + 4.0 * n * count * dim), 8.0 * batch * heads * n * count)

    def clusters_of_queries(self, q: Tensor, scope: Scope) -> Clusters:
        """The clusters of the queries and their means, through which gradients go."""
        n = q.shape[2]
        real = scope.key_is_real
        # Without positions it is the padding of a context: queries of another sequence are all real.
        if real is None or scope.positions is None or real.shape[1] != n:
            real = torch.ones(1, n, dtype=torch.bool, device=q.device)
        cluster = clusters_of(
            bits_of(q.detach(), self.planes), real, self.config.clusters, self.config.iterations
        )
        wide, count = at_least_float32(q), min(self.config.clusters, n)
        index = torch.where(cluster < 0, count, cluster)  # padding into a row of its own
        summed = wide.new_zeros(*q.shape[:2], count + 1, q.shape[3])
        summed = summed.scatter_add(2, index.unsqueeze(-1).expand_as(wide), wide)[:, :, :count]
        size = wide.new_zeros(*q.shape[:2], count + 1).scatter_add(2, index, wide.new_ones(index.shape))
        means = summed / size[:, :, :count, None].clamp(min=1)
        return Clusters(cluster, means)
