"""Which cluster a token belongs to: every rule looks at the token alone, so the future cannot decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mapformers.core.mechanism import Shape
from mapformers.core.scope import Scope
from mapformers.mechanisms.content.kmeans import KMeans, unit_rows
from mapformers.mechanisms.content.lsh import antipodal

if TYPE_CHECKING:
    from mapformers.mechanisms.content.routing import RoutingConfig

MEMBERSHIPS = ("argmax", "threshold", "paper", "random", "lsh")
Role = Literal["query", "key"]
SHARPNESS = 10.0  # of the softmax over cosines that the gate uses


class Member:
    """The rules of one configuration. Negative cluster = none."""

    def __init__(self, config: RoutingConfig, kmeans: KMeans) -> None:
        self.config = config
        self.kmeans = kmeans

    def of_queries(self, q: Tensor, scope: Scope) -> Tensor:
        """[B, H, N, r] the best clusters of each query, best first."""
        return self._best(q, scope, "query", self.config.query_clusters)

    def of_keys(self, k: Tensor, scope: Scope) -> Tensor:
        """[B, G, M, 1] the cluster of each key; several under the threshold rule."""
        copies = self.config.query_clusters if self.config.membership == "threshold" else 1
        return self._best(k, scope, "key", copies)

    def log_weight(self, q: Tensor, scope: Scope) -> Tensor:
        """[B, H, N, r] log-probability of each cluster that a query names, differentiable in q."""
        return self.log_probability(q).gather(-1, self.of_queries(q, scope).clamp(min=0))

    def log_probability(self, q: Tensor) -> Tensor:
        """[B, H, N, C] log-softmax over the centroids."""
        return (self.kmeans.similarity(q) * SHARPNESS).log_softmax(-1)

    def matrix(self, x: Tensor, scope: Scope, role: Role) -> Tensor:
        """[B, H, N, C] bool, memberships as a matrix, for the definition: by rank where similarity
        decides, ties to the lowest index.
        """
        if self.config.membership in ("argmax", "lsh"):
            similarity = self.kmeans.biased(self.kmeans.similarity(x))
            own, other = similarity.unsqueeze(-1), similarity.unsqueeze(-2)
            index = torch.arange(similarity.shape[-1], device=x.device)
            better = (other > own) | ((other == own) & (index < index[:, None]))  # [B, H, N, C, C]
            return better.sum(-1) < (self.config.query_clusters if role == "query" else 1)
        chosen = self.of_queries(x, scope) if role == "query" else self.of_keys(x, scope)
        clusters = torch.arange(self.config.clusters, device=x.device)
        return (chosen.unsqueeze(-1) == clusters).any(-2)

    @torch.no_grad()
    def _best(self, x: Tensor, scope: Scope, role: Role, count: int) -> Tensor:
        if self.config.membership == "random":
            positions = (
                scope.query_positions(x.shape[2], x.device)
                if role == "query"
                else scope.positions_of_keys(x.shape[2], x.device)
            )
            return self._hashed(positions, x, count)
        chosen = self.kmeans.best(x, count)  # [B, H, N, count]
        if self.config.membership == "threshold":
            above = self.kmeans.biased(self.kmeans.similarity(x)) > self._threshold()
            chosen = chosen.masked_fill(~above.gather(-1, chosen), -1)
        return chosen

    def _threshold(self) -> float:
        """A cosine that a random direction exceeds with probability about 1 / clusters; the bias moves
        each cluster.
        """
        dim = self.kmeans.centroids.shape[-1]
        upper = torch.tensor(
            1.0 - min(0.5, self.config.query_clusters / self.config.clusters), dtype=torch.float64
        )
        return float(torch.special.ndtri(upper)) * dim**-0.5

    def _hashed(self, positions: Tensor, x: Tensor, count: int) -> Tensor:
        """Pseudo-random clusters out of position and head: [B, H, N, count]."""
        groups = self.kmeans.centroids.shape[0]
        group = (torch.arange(x.shape[1], device=x.device) * groups // x.shape[1])[None, :, None]
        mixed = (positions[:, None] + 1) * 2654435761 + (group + 1) * 40503  # Knuth's multiplicative hash
        mixed = (mixed ^ (mixed >> 15)) * 2246822519 % 4294967296
        mixed = (mixed ^ (mixed >> 13)) * 3266489917 % 4294967296
        first = (mixed >> 7) % self.config.clusters
        chosen = (first.unsqueeze(-1) + torch.arange(count, device=x.device)) % self.config.clusters
        return chosen.expand(x.shape[0], -1, -1, -1)


def first_centroids(config: RoutingConfig, shape: Shape, generator: torch.Generator) -> Tensor:
    """[G, C, D] random directions until the first update; antipodal pairs for lsh (Andoni et al. 2015)."""
    mu = unit_rows((shape.kv_heads, config.clusters, shape.head_dim), generator)
    if config.membership == "lsh":
        mu = antipodal(mu[:, : (config.clusters + 1) // 2])[:, : config.clusters]
    return mu
