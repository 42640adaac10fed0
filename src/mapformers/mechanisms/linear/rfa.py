"""Random Feature Attention: sines and cosines of unit vectors, with a gate that forgets.

Paper    Peng, Pappas, Yogatama, Schwartz, Smith, Kong 2021, "Random Feature Attention", arXiv 2103.02143,
         sections 3.1 and 3.2.
Formula  phi(x) = [sin(W x), cos(W x)] / sqrt(m), x of length 1, W = rows / sigma: phi(q) . phi(k) estimates
         exp(-|q - k|^2 / (2 sigma^2)), which is exp(q . k / sigma^2) up to a factor.
         w[i, j] = phi(q_i) . phi(k_j) / max(sum_j phi(q_i) . phi(k_j), floor), over j <= i if causal
         gate: key j counts (1 - g_j) g_{j+1} .. g_i as much, g = sigmoid(w_g . k + b)
Cost     time O(N m E), memory O(N m); decoding keeps 2 m (E + 1) + 1 numbers per head
Differs  The gate reads the key where the paper reads the layer's input. Estimates may be negative, so sums
         are raised to `floor`; the published code scales features by 0.1 and raises to 1, which is 100 here.
         Rows are drawn anew every so many updates rather than taken from a bank of 500.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.draw import normal
from mapformers.core.errors import require
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Features, Plan
from mapformers.core.scope import Scope
from mapformers.kernels.scan_tile import CHUNK
from mapformers.kernels.softmax import at_least_float32, expand_heads
from mapformers.mechanisms.linear.random_features import RandomRows, normal_rows

REMEMBERS = 4.0  # bias of the gate at the start: sigmoid of it is 0.98, a memory of some fifty tokens


@dataclass(frozen=True)
class RfaConfig:
    """Options of the rfa mechanism."""

    features: int = option(64, "random rows m; each makes a sine and a cosine")
    sigma: float = option(1.0, "width of the kernel at the start; learned per head and channel")
    gate: bool = option(False, "forget by a gate read from the keys; needs causal=True")
    floor: float = option(0.1, "sums of weights below it are raised to it")
    redraw: int = option(1, "new rows every so many updates in training; 0 = never")

    def __post_init__(self) -> None:
        require(
            self.features >= 1,
            f"rfa: features must be 1 or more, got {self.features}; the head size is usual",
        )
        require(self.sigma > 0, f"rfa: sigma must be above 0, got {self.sigma}; 1 is usual")
        require(self.floor > 0, f"rfa: floor must be above 0, got {self.floor}; sums may vanish without it")
        require(self.redraw >= 0, f"rfa: redraw must be 0 or more, got {self.redraw}; 0 = never")


class Rfa(Mechanism):
    """Random feature attention, with or without a gate."""

    Config = RfaConfig
    config: RfaConfig
    card = Card(
        name="rfa",
        family="linearised",
        paper="Peng et al. 2021, arXiv 2103.02143",
        formula="w[i,j] = phi(q_i).phi(k_j) / max(sum_j, floor), phi(x) = [sin W x, cos W x], |x| = 1",
        cost="time O(N m D), memory O(N m)",
        summary="random sines and cosines, with a gate that forgets",
        supports=capabilities(
            *("bidirectional", "causal", "padding", "segments", "cross", "decode", "grouped")
        ),
        options=options_of(RfaConfig),
    )

    def check_causal(self, causal: bool) -> None:
        """A gate counts what lies between a key and a query, so it needs an order."""
        require(
            causal or not self.config.gate,
            "rfa: gate=true needs causal=True, got causal=False; use gate=false",
        )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """log sigma [G, D]; the gate's weights [G, D] and bias [G]."""
        size = (self.config.features, shape.head_dim)
        self.random = RandomRows(normal_rows, size, self.config.redraw, generator)
        self.log_sigma = nn.Parameter(
            torch.full((shape.kv_heads, shape.head_dim), math.log(self.config.sigma))
        )
        if self.config.gate:
            weight = normal((shape.kv_heads, shape.head_dim), generator, shape.head_dim**-0.5)
            self.gate_weight = nn.Parameter(weight)
            self.gate_bias = nn.Parameter(torch.full((shape.kv_heads,), REMEMBERS))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Sines and cosines of both; the gate as decay, its rest as weight."""
        weight, decay = self._gate(k) if self.config.gate else (None, None)
        return Features(self._map(q), self._map(k), weight, decay, floor=self.config.floor)

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Means of cos(w . (q - k)), times the products of gates between, over their sum or the floor."""
        heads, n, m = q.shape[1], q.shape[2], k.shape[2]
        visible = scope.visible(n, m, q.device)
        unit_q, unit_k = F.normalize(q, dim=-1), F.normalize(expand_heads(k, heads), dim=-1)
        sigma = expand_heads(self.log_sigma[None, :, None], heads).exp()
        kernel = q.new_zeros(*q.shape[:3], m)
        for row in self.random.rows.to(q.dtype):
            along_q, along_k = ((x / sigma * row).sum(-1) for x in (unit_q, unit_k))
            kernel = kernel + (along_q[..., None] - along_k[..., None, :]).cos() / self.config.features
        if self.config.gate:
            weight, decay = (expand_heads(x[..., None], heads)[..., 0] for x in self._gate(k))
            if scope.key_is_real is not None:
                decay = decay * scope.key_is_real[:, None]
            until = decay.cumsum(-1)  # self-attention: query i is key i
            between = (until[..., scope.query_start :, None] - until[..., None, :]).masked_fill(~visible, 0.0)
            kernel = kernel * (between + weight[..., None, :]).exp()
        kernel = kernel * visible
        return kernel / kernel.sum(-1, keepdim=True).clamp(min=self.config.floor)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Features, sums and reads (and pairs inside chunks if causal), denominators included."""
        count = 2 * self.config.features
        flops = 2.0 * n * dim * count + 4.0 * n * count * (dim + 1)
        if causal:
            flops += 2.0 * n * CHUNK * (count + dim + 1)
        return Cost(batch * heads * flops, 4.0 * batch * heads * (2 * n * count + n * count * dim / CHUNK))

    def update_centroids(self) -> None:
        """New rows where it is time."""
        self.random.count_update()

    def _map(self, x: Tensor) -> Tensor:
        """[B, H, N, D] to [B, H, N, 2 m]."""
        x = F.normalize(at_least_float32(x), dim=-1)
        sigma = expand_heads(self.log_sigma[None, :, None].to(x.dtype), x.shape[1]).exp()  # [1, H, 1, D]
        along = (x / sigma) @ self.random.rows.to(x.dtype).T
        return torch.cat([along.sin(), along.cos()], -1) * self.config.features**-0.5

    def _gate(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of 1 - g and of g, [B, G, M]."""
        k = at_least_float32(k)
        score = (k * self.gate_weight.to(k.dtype)[:, None]).sum(-1) + self.gate_bias.to(k.dtype)[:, None]
        return F.logsigmoid(-score), F.logsigmoid(score)
