"""Routing attention: tokens are clustered by content; a query sees the latest members of its clusters.

Paper    Roy, Saffar, Vaswani, Grangier 2021, "Efficient Content-Based Sparse Attention with Routing
         Transformers", TACL 9, arXiv 2003.05997, section 4.
Formula  c(x) = argmax_c x^ . mu_c with x^ the layer-normed vector; softmax over the last `window` keys j <=
         i with c(k_j) among the query's best `query_clusters`, and over a null key of value zero
Cost     time O(N C D + N log N + N r W D) with r = query_clusters, W = window; memory O(N r W)
Differs  The paper lets every cluster take its top-w tokens of the whole sequence, so the future decides
         which past keys are seen. Here (membership="argmax") tokens choose their cluster, which is strictly
         causal and decodes exactly; membership="paper" is the published form. Queries and keys are routed
         by their own vectors against one set of centroids per key/value head. Centroids are kept at unit
         length and move in `update_centroids`, by the keys alone (the paper: by queries and keys).
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mapformers.core.card import RANGES, Card, capabilities, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Dense, Plan, Union, Windows
from mapformers.core.scope import Scope, keep_first, keep_last
from mapformers.kernels.softmax import scaled_scores
from mapformers.mechanisms.content.kmeans import KMeans
from mapformers.mechanisms.content.membership import MEMBERSHIPS, Member, first_centroids
from mapformers.mechanisms.content.top_members import top_member_groups, top_member_weights

FIXED = ("random", "lsh")  # memberships whose clusters never move
Membership = Literal["argmax", "threshold", "paper", "random", "lsh"]


@dataclass(frozen=True)
class RoutingConfig:
    """Options of routing."""

    clusters: int = option(16, "centroids per key/value head")
    window: int = option(
        128, "members of its cluster that a query sees (on each side, when not causal; of a context all)"
    )
    query_clusters: int = option(2, "best clusters into which a query looks; keys lie in one")
    share_qk: bool = option(False, "queries serve as keys, as the paper's decoder does")
    membership: Membership = option("argmax", "how tokens join clusters; paper = the published form")
    gate: bool = option(False, "add the log-probability of a cluster under its query to the scores inside it")
    decay: float = option(0.99, "of the moving average of the centroids")
    allow_selection_leak: bool = option(False, 'let membership="paper" run under causal=True, where it leaks')

    def __post_init__(self) -> None:
        for name in ("clusters", "window", "query_clusters"):
            value = getattr(self, name)
            require(
                value >= 1,
                f"routing: {name} must be 1 or more, got {value}; the default is {getattr(type(self), name)}",
            )
        require(
            self.query_clusters <= self.clusters,
            f"routing: query_clusters must be at most clusters={self.clusters}, got "
            f"{self.query_clusters}; lower it",
        )
        require(0 <= self.decay < 1, f"routing: decay must lie in [0, 1), got {self.decay}; use 0.99")
        require_known("routing", "membership", self.membership, MEMBERSHIPS)


class Routing(Mechanism):
    """Content-based sparse attention by k-means."""

    Config = RoutingConfig
    config: RoutingConfig
    loss_names = ("commitment",)
    card = Card(
        name="routing",
        family="sparse, content-based",
        paper="Roy et al. 2021, TACL 9, arXiv 2003.05997",
        formula="softmax over the last `window` keys j <= i with c(k_j) in best_r(q_i); c(x) = argmax x^.mu",
        cost="time O(N C D + N r W D), memory O(N r W)",
        summary="tokens clustered by content; a query sees the latest members of its clusters",
        supports=(RANGES | capabilities("cross")) - {"rows_sum_to_one"},
        options=options_of(RoutingConfig),
    )

    def __init__(self, config: RoutingConfig | None = None) -> None:
        super().__init__(config)
        if self.config.allow_selection_leak:
            warnings.warn(
                'routing: allow_selection_leak=True lets membership="paper" choose past keys by future '
                "tokens; "
                "teacher-forced losses come out too good, and generation does not reach them",
                stacklevel=2,
            )

    @property
    def shares_qk(self) -> bool:
        """Whether the layer must use queries as keys."""
        return self.config.share_qk

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """Centroids per key/value head, and a null key per head."""
        self.kmeans = KMeans(first_centroids(self.config, shape, generator), self.config.decay)
        self.null_key = nn.Parameter(torch.zeros(shape.heads, shape.head_dim))
        self.length_seen = 0

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Windows whose segments are clusters, and the null key; the paper's form as groups."""
        self.check(q, k, scope)
        if self.config.membership == "paper":
            return top_member_groups(q, k, scope, self.kmeans, self.config.window)
        member = Member(self.config, self.kmeans)
        window = None if scope.cross else self.config.window  # queries from elsewhere see the whole cluster
        windows = Windows(
            before=window,
            after=0 if scope.causal else window,
            query_segment=member.of_queries(q, scope),
            key_segment=member.of_keys(k, scope),
            segment_count=self.config.clusters,
            log_weight=member.log_weight(q, scope) if self.config.gate else None,
        )
        return Union((windows, Dense(keys=self.null_key[None, :, None])))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Cluster by cluster over all pairs, written from the formula."""
        self.check(q, k, scope)
        n, m = q.shape[2], k.shape[2]
        visible = scope.visible(n, m, q.device)
        scores = scaled_scores(q, k).masked_fill(~visible, float("-inf"))
        if self.config.membership == "paper":
            return top_member_weights(q, k, scores, scope, self.kmeans, self.config.window)
        member = Member(self.config, self.kmeans)
        q_in = member.matrix(q, scope, "query")  # [B, H, N, C]
        k_in = member.matrix(k, scope, "key")  # [B, G, M, C]
        k_in = k_in.repeat_interleave(q.shape[1] // k_in.shape[1], 1)
        up_to = visible & Scope(causal=True, query_start=scope.query_start).visible(n, m, q.device)
        log_p = member.log_probability(q) if self.config.gate else torch.zeros_like(q_in, dtype=q.dtype)
        null = (q * self.null_key[None, :, None]).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
        top = torch.maximum(scores.amax(-1, keepdim=True), null).detach()
        mass, total = torch.zeros_like(scores), (null - top).exp()
        for c in range(self.config.clusters):
            same = q_in[..., c, None] & k_in[..., None, :, c]  # [B, H, N, M]
            before = keep_last(same & up_to, self.config.window)
            after = keep_first(same & visible & ~up_to, self.config.window)
            inside = same & visible if scope.cross else before | after
            mass = mass + torch.where(inside, (scores - top + log_p[..., c, None]).exp(), 0.0)
        return mass / (total + mass.sum(-1, keepdim=True))

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Assignment of queries and keys, and the pairs inside the windows at most."""
        config = self.config
        pairs = n * config.query_clusters * min(config.window * (1 if causal else 2), n)
        return Cost(
            flops=batch * heads * (4.0 * n * config.clusters * dim + 4.0 * pairs * dim + 2.0 * n * dim),
            bytes=8.0 * batch * heads * pairs,
        )

    def losses(self, q: Tensor, k: Tensor, scope: Scope) -> dict[str, Tensor]:
        """commitment: mean squared distance of layer-normed queries and keys to their centroid, over D."""
        if self.config.membership in FIXED:
            return {}
        # [B, H, N] and [B, G, M]
        of_queries, of_keys = (2 - 2 * self.kmeans.similarity(x).amax(-1) for x in (q, k))
        real_queries = None if scope.cross else scope.key_is_real
        return {"commitment": _mean(of_keys, scope.key_is_real) + _mean(of_queries, real_queries)}

    def observe(self, q: Tensor, k: Tensor, scope: Scope) -> None:
        """Sums for the centroids; random and lsh segments never move.

        Keys alone move them, so that a query's best cluster is one that holds keys. Moved by both, as in the
        paper, queries and keys part into clusters of their own and a query sees nothing.
        """
        if self.config.membership in FIXED:
            return
        self.kmeans.observe(k, scope.key_is_real)
        if self.config.membership == "paper" and not self.config.share_qk:
            real = scope.key_is_real
            self.kmeans.observe(q, real if real is not None and real.shape[1] == q.shape[2] else None)
        self.length_seen = k.shape[2]

    def update_centroids(self) -> None:
        """Move the centroids; after the optimiser step."""
        self.kmeans.update()

    def telemetry(self) -> dict[str, float]:
        """Those of the clusters, and mean_horizon: tokens back to the oldest member seen, at this share
        and window.
        """
        share = self.kmeans.share.double()
        length = float(self.length_seen or torch.inf)
        horizon = (share * (self.config.window / share.clamp(min=1e-9)).clamp(max=length)).sum(1).mean()
        return {**self.kmeans.telemetry(), "mean_horizon": float(horizon)}

    def check_causal(self, causal: bool) -> None:
        """The paper's form is causal only for those who ask for its leak."""
        require(
            not (self.config.membership == "paper" and causal) or self.config.allow_selection_leak,
            'routing: membership="paper" leaks the future under causal=True, got causal=True; '
            'use membership="argmax", or pass allow_selection_leak=True to study the leak',
        )

    def check_cross(self) -> None:
        """Positions of another sequence mean nothing, and its tokens cannot serve as keys and queries."""
        config = self.config
        require(
            config.membership not in ("paper", "random") and not config.share_qk,
            "routing: cross-attention needs membership argmax, threshold or lsh and share_qk=False, got "
            f"membership={config.membership} and share_qk={config.share_qk}; change them",
        )

    def can_decode(self) -> bool:
        """The paper's form has no exact decoding: later tokens change earlier outputs."""
        return self.config.membership != "paper"

    def check(self, q: Tensor, k: Tensor, scope: Scope) -> None:
        """Refuse inputs that this configuration cannot honour."""
        paper = self.config.membership == "paper"
        require(
            not (paper and scope.segments is not None),
            'routing: membership="paper" lets packed documents compete, got segments; '
            'use membership="argmax"',
        )
        require(
            not self.config.share_qk or q.shape == k.shape,
            f"routing: share_qk=True needs as many keys as queries and heads, got {tuple(q.shape)} "
            f"and {tuple(k.shape)}; use share_qk=False",
        )


def _mean(x: Tensor, is_real: Tensor | None) -> Tensor:
    """Mean of [B, H, N] over the real tokens, is_real [B, N]."""
    if is_real is None:
        return x.mean()
    return (x * is_real[:, None]).sum() / (is_real.sum() * x.shape[1]).clamp(min=1)
