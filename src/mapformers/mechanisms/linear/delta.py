"""Delta rule: a matrix of fast weights in which every key corrects the value that is stored for it.

Paper    Schlag, Irie, Schmidhuber 2021, "Linear Transformers Are Secretly Fast Weight Programmers", arXiv
         2102.11174: the delta rule, and DPFP (deterministic parameter-free projection).
Formula  W_i = W_{i-1} + beta_i phi(k_i) (v_i - W_{i-1}^T phi(k_i))^T, y_i = W_i^T phi(q_i); phi is divided by
         its sum; beta_i = sigmoid(w_h . k_i + b_h). As a matrix of weights, for Q = phi(q) and K = phi(k):
         tril(Q K^T) (I + tril(diag(beta) K K^T, -1))^-1 diag(beta)
         elu   phi(x) = elu(x) + 1, of D features
         dpfp  phi(x) = r * roll(r, j), j = 1 .. nu, side by side, r = relu([x, -x]), of 2 nu D features
Cost     time O(N F E), F features, memory O(N F); decoding keeps F E numbers per head
Differs  beta comes from the key, not from the layer's input, which a mechanism never sees. x is divided by
         its largest channel before dpfp, which the division by the sum undoes, so that nothing overflows; a
         key without any feature writes nothing. Sums run in float32 or wider.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import DeltaRule, Plan
from mapformers.core.scope import Scope
from mapformers.kernels.scan import STRETCH
from mapformers.kernels.scan_tile import CHUNK
from mapformers.kernels.softmax import at_least_float32, expand_heads
from mapformers.mechanisms.linear.linear import phi as elu_plus_one

MAPS = ("elu", "dpfp")


@dataclass(frozen=True)
class DeltaConfig:
    """Options of the delta rule."""

    map: Literal["elu", "dpfp"] = option("dpfp", "the feature map")
    nu: int = option(1, "products of neighbours in dpfp, which makes 2 nu D features")

    def __post_init__(self) -> None:
        require_known("delta", "map", self.map, MAPS)
        require(self.nu >= 1, f"delta: nu must be 1 or more, got {self.nu}; 1, 2 and 3 are usual")


class Delta(Mechanism):
    """Fast weights under the delta rule."""

    Config = DeltaConfig
    config: DeltaConfig
    card = Card(
        name="delta",
        family="linearised",
        paper="Schlag et al. 2021, arXiv 2102.11174",
        formula="W += beta_i phi(k_i) (v_i - W^T phi(k_i))^T, y_i = W^T phi(q_i), phi divided by its sum",
        cost="time O(N F D), memory O(N F): F = 2 nu D features (dpfp) or D (elu)",
        summary="fast weights that every key corrects; causal only",
        supports=capabilities("causal", "padding", "segments", "decode", "grouped"),
        options=options_of(DeltaConfig),
    )

    def check_causal(self, causal: bool) -> None:
        """Refuse a rule without an order."""
        require(
            causal,
            "delta: bidirectional is not supported, since each key corrects what those before it stored; "
            "use causal=True, or linear",
        )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """w and b of beta for each key/value head: half of every error is corrected on average at first."""
        # Products repeat from 2 D on; one channel has no neighbour.
        most = 2 * shape.head_dim - 1 if shape.head_dim > 1 else 0
        require(
            self.config.map != "dpfp" or self.config.nu <= most,
            f"delta: nu must be at most {most} for head size {shape.head_dim}, got {self.config.nu}; "
            "take larger heads or map=elu",
        )
        size = (shape.kv_heads, shape.head_dim)
        self.beta_weight = nn.Parameter(normal(size, generator, shape.head_dim**-0.5))
        self.beta_bias = nn.Parameter(torch.zeros(shape.kv_heads))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Features of both and the strengths; the kernel does the rest."""
        return DeltaRule(self._features(q), self._features(k), self._beta(k))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The matrix of the formula, by one inverse."""
        n, heads = q.shape[2], q.shape[1]
        visible = scope.visible(n, n, q.device)
        beta = self._beta(k)
        if scope.key_is_real is not None:
            beta = beta * scope.key_is_real[:, None]
        keys, beta = expand_heads(self._features(k), heads), expand_heads(beta.unsqueeze(-1), heads)
        one = torch.eye(n, dtype=keys.dtype, device=q.device)
        corrected = torch.linalg.inv(one + beta * (keys @ keys.mT * visible).tril(-1))
        return (self._features(q) @ keys.mT * visible) @ corrected * beta.mT

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """The products, without the triangular inverse of each chunk (CHUNK^2 for a token)."""
        features = 2 * self.config.nu * dim if self.config.map == "dpfp" else dim
        flops = n * (6.0 * features * dim + 6.0 * CHUNK * features + 4.0 * CHUNK * dim)
        kept = n * (2.0 * features + dim) + n * features * dim / STRETCH
        return Cost(flops=batch * heads * flops, bytes=4.0 * batch * heads * kept)

    def _features(self, x: Tensor) -> Tensor:
        """[B, H, N, F], each token's summing to 1, or all 0."""
        x = at_least_float32(x)
        found = elu_plus_one(x) if self.config.map == "elu" else dpfp(x, self.config.nu)
        total = found.sum(-1, keepdim=True)
        return found / total.masked_fill(total < torch.finfo(total.dtype).tiny, 1.0)

    def _beta(self, k: Tensor) -> Tensor:
        """[B, G, N] how much of its error each key corrects."""
        k = at_least_float32(k)
        weight, bias = (x.to(k.dtype) for x in (self.beta_weight, self.beta_bias))
        return torch.sigmoid((k * weight[:, None]).sum(-1) + bias[:, None])


def dpfp(x: Tensor, nu: int) -> Tensor:
    """[.., D] to [.., 2 nu D], up to a factor for each token: products of positive and negative parts."""
    x = x / x.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    parts = torch.cat([x, -x], -1).relu()
    return torch.cat([parts * parts.roll(j, -1) for j in range(1, nu + 1)], -1)
