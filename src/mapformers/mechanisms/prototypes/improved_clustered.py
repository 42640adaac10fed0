"""Improved clustered attention: on a cluster's best keys every member scores for itself.

Paper    Vyas, Katharopoulos, Fleuret 2020, "Fast Transformers with Clustered Attention", arXiv 2007.04825,
         section 3.2
Formula  A_c = softmax(mean of cluster c's queries . k / sqrt(D)), T = its `top` largest keys, p = its mass
         on T; w_i[j] = p softmax_T(q_i . k / sqrt(D))[j] on T and A_c[j] elsewhere, for i in c
Cost     time O(N C D + iterations N C bits + N top D), memory O(N (C + top))
Differs  As clustered. What the causal form of the public code sees depends on later queries and keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost
from mapformers.core.plans import Dense, Groups, Plan, Representatives, WeightedSum
from mapformers.core.scope import Scope
from mapformers.kernels.softmax import masked_softmax, scaled_scores
from mapformers.mechanisms.prototypes.clustered import Clustered, ClusteredConfig
from mapformers.mechanisms.prototypes.hamming import tiles_of

TILE = 32  # members of a cluster that see its best keys together, at most


@dataclass(frozen=True)
class ImprovedClusteredConfig(ClusteredConfig):
    """Options of improved clustered attention."""

    top: int = option(32, "keys of each cluster that its queries score themselves")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.top >= 1,
            f"improved_clustered: top must be 1 or more, got {self.top}; use clustered for none",
        )


class ImprovedClustered(Clustered):
    """Clustered attention that is exact among the best keys of each cluster."""

    Config = ImprovedClusteredConfig
    one_softmax = False
    config: ImprovedClusteredConfig
    card = Card(
        name="improved_clustered",
        family="prototype",
        paper="Vyas et al. 2020, arXiv 2007.04825",
        formula="w_i = p softmax_T(q_i . k) on the top keys T of i's cluster, its weights elsewhere",
        cost="time O(N (C + top) D), memory O(N (C + top))",
        summary="clustered attention, exact among the best keys of each cluster",
        causal="refuses",
        supports=capabilities("bidirectional", "padding", "cross", "grouped", "rows_sum_to_one"),
        options=options_of(ImprovedClusteredConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """The means over the keys that are not their best, and tiles of members over those that are."""
        n, m = q.shape[2], k.shape[2]
        groups = self.clusters_of_queries(q, scope)
        count = groups.means.shape[2]
        mass, best = self._best(groups.means, k, scope)
        others = _mask(best, m).logical_not_()
        rows, owner = tiles_of(groups.cluster, count, min(TILE, -(-n // count)))
        keys = best.gather(2, owner.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, best.shape[-1]))
        keys = keys.masked_fill(owner.unsqueeze(-1) < 0, -1)
        on_best = mass.sum(-1).gather(2, groups.cluster.clamp(min=0))  # [B, H, N]
        parts = (
            Representatives(groups.means.to(q.dtype), groups.cluster, Dense(allowed=others)),
            Groups(rows, keys),
        )
        return WeightedSum(parts, torch.stack([1 - on_best, on_best], -1))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The formula, with T as a mask."""
        shared = super().dense_weights(q, k, scope)
        groups = self.clusters_of_queries(q, scope)
        chosen = _mask(self._best(groups.means, k, scope)[1], k.shape[2])  # [B, H, C, M]
        cluster = groups.cluster.unsqueeze(-1)
        chosen = chosen.gather(2, cluster.clamp(min=0).expand(*shared.shape)) & (cluster >= 0)
        own = masked_softmax(scaled_scores(q, k), chosen)
        return torch.where(chosen, (shared * chosen).sum(-1, keepdim=True) * own, shared)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """As clustered, with the scores of the means once more and the best keys of every query."""
        plain = super().cost(batch, heads, n, dim, causal)
        top = min(self.config.top, n)
        more = 2.0 * n * min(self.config.clusters, n) * dim + 4.0 * n * top * dim
        return Cost(plain.flops + batch * heads * more, plain.bytes + 8.0 * batch * heads * n * top)

    def _best(self, means: Tensor, k: Tensor, scope: Scope) -> tuple[Tensor, Tensor]:
        """[B, H, C, top] the largest weights of each mean, the first of equal ones, and their keys."""
        visible = scope.visible(1, k.shape[2], k.device)
        weights = masked_softmax(scaled_scores(means, k.to(means.dtype)), visible)  # [B, H, C, M]
        mass, best = (x[..., : self.config.top] for x in weights.sort(dim=-1, descending=True, stable=True))
        return mass, best.masked_fill(mass == 0, -1)  # hidden, or too far to matter


def _mask(best: Tensor, m: int) -> Tensor:
    """[.., M] bool from indices [.., top], -1 = none."""
    room = torch.zeros(*best.shape[:-1], m + 1, dtype=torch.bool, device=best.device)
    return room.scatter(-1, torch.where(best < 0, m, best), True)[..., :-1]
