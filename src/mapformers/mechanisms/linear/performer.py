"""Performer: random features whose products estimate the softmax kernel, or make a kernel of their own.

Paper    Choromanski et al. 2021, "Rethinking Attention with Performers", arXiv 2009.14794, sections 2.2 to
         2.4; features: random_features.py.
Formula  w[i, j] = phi(q_i) . phi(k_j) / sum_j phi(q_i) . phi(k_j), over j <= i if causal
         positive   phi(x) = exp(W x' - |x'|^2 / 2), x' = x / D^(1/4): estimates softmax
         two_sided  phi(x) = [exp(W x'), exp(-W x')] exp(-|x'|^2 / 2): the same, of lower variance
         relu       phi(x) = max(W x', 0) + 0.001: a kernel of its own, "generalised attention"
Cost     time O(N m E), memory O(N m); decoding keeps m (E + 1) + 1 numbers per head
Differs  No epsilon beside the features: the public codes add one after they subtract the maximum over all
         keys, so that a causal output depends on later keys. Here the level is a running maximum and the
         denominator is exact. Rows are uniform rotations (random_features.py). Estimates are close only where
         scores are small: the variance grows as exp(|q + k|^2 / sqrt(D)).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Features, Plan
from mapformers.core.scope import Scope
from mapformers.kernels.scan_tile import CHUNK
from mapformers.kernels.softmax import at_least_float32, expand_heads
from mapformers.mechanisms.linear.random_features import RandomRows, orthogonal_rows

KERNELS = ("positive", "two_sided", "relu")
LEAST = 1e-3  # added to relu features, so that no denominator is 0


@dataclass(frozen=True)
class PerformerConfig:
    """Options of the performer mechanism."""

    features: int = option(256, "random rows m; two_sided makes two features of each")
    kernel: Literal["positive", "two_sided", "relu"] = option("positive", "the feature map")
    redraw: int = option(1000, "new rows every so many updates in training; 0 = never")

    def __post_init__(self) -> None:
        require(
            self.features >= 1,
            f"performer: features must be 1 or more, got {self.features}; 4 per head channel is usual",
        )
        require_known("performer", "kernel", self.kernel, KERNELS)
        require(self.redraw >= 0, f"performer: redraw must be 0 or more, got {self.redraw}; 0 = never")


class Performer(Mechanism):
    """Fast attention via positive orthogonal random features."""

    Config = PerformerConfig
    config: PerformerConfig
    card = Card(
        name="performer",
        family="linearised",
        paper="Choromanski et al. 2021, arXiv 2009.14794",
        formula="w[i,j] = phi(q_i).phi(k_j) / sum_j, phi(x) = exp(W x' - |x'|^2 / 2), x' = x / D^(1/4)",
        cost="time O(N m D), memory O(N m)",
        summary="positive random features that estimate softmax",
        supports=capabilities(
            *("bidirectional", "causal", "padding", "segments", "cross", "decode", "grouped"),
            "rows_sum_to_one",
        ),
        options=options_of(PerformerConfig),
    )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """Rows [m, D], shared by the heads."""
        size = (self.config.features, shape.head_dim)
        self.random = RandomRows(orthogonal_rows, size, self.config.redraw, generator)

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Exponents in place of features, which the kernel makes from them; the norms of keys as weights."""
        q, k = at_least_float32(q), at_least_float32(k)
        if self.config.kernel == "relu":
            return Features(self._relu(q), self._relu(k))
        rows = self.random.rows
        rows = torch.cat([rows, -rows]) if self.config.kernel == "two_sided" else rows
        q, k = (x * x.shape[-1] ** -0.25 for x in (q, k))
        return Features(
            q, k, log_weight_k=-k.square().sum(-1) / 2, exponents=rows
        )  # a query's own norm cancels

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The N x M matrix of the estimates, one term for each row of W, normalised."""
        k = expand_heads(k, q.shape[1])
        visible = scope.visible(q.shape[2], k.shape[2], q.device)
        signs = (1.0, -1.0) if self.config.kernel == "two_sided" else (1.0,)
        scale = q.shape[-1] ** -0.25
        terms = []
        for row in self.random.rows.to(q.dtype):
            along_q, along_k = (((x * scale) * row).sum(-1) for x in (q, k))  # [B, H, N]
            if self.config.kernel == "relu":
                read, kept = (along.relu() + LEAST for along in (along_q, along_k))
                terms.append((read[..., None] * kept[..., None, :]).log())
            else:
                norms = ((x * scale).square().sum(-1) / 2 for x in (q, k))
                offset = -sum(norm.unsqueeze(dim) for norm, dim in zip(norms, (-1, -2), strict=True))
                terms += [s * (along_q[..., None] + along_k[..., None, :]) + offset for s in signs]
        logarithm = torch.stack(terms).logsumexp(0).masked_fill(~visible, float("-inf"))
        return logarithm.softmax(-1).nan_to_num(0.0)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Features, sums and reads (and pairs inside chunks if causal), denominators included."""
        rows = self.config.features
        count = 2 * rows if self.config.kernel == "two_sided" else rows
        flops = 4.0 * n * dim * rows + 4.0 * n * count * (dim + 1)
        if causal:
            flops += 2.0 * n * CHUNK * (count + dim + 1)
        return Cost(batch * heads * flops, 4.0 * batch * heads * (2 * n * count + n * count * dim / CHUNK))

    def update_centroids(self) -> None:
        """New rows where it is time."""
        self.random.count_update()

    def _relu(self, x: Tensor) -> Tensor:
        """[B, H, N, m]."""
        return (x * x.shape[-1] ** -0.25 @ self.random.rows.to(x.dtype).T).relu() + LEAST
