"""Linear attention: a positive feature map in place of softmax, so that keys and values are summed once.

Paper    Katharopoulos, Vyas, Pappas, Fleuret 2020, "Transformers are RNNs", arXiv 2006.16236, sections 3.2
         to 3.4.
Formula  w[i, j] = phi(q_i) . phi(k_j) / sum_j phi(q_i) . phi(k_j), phi(x) = elu(x) + 1, over j <= i if
         causal
Cost     time O(N D E), memory O(N D) and D E per chunk; decoding keeps D (E + 1) numbers per head
Differs  Sums run in float32 or wider. No epsilon in the denominator: phi is positive, and an empty row
         gives 0.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mapformers.core.card import Card, capabilities, options_of
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Features, Plan
from mapformers.core.scope import Scope
from mapformers.kernels.scan_tile import CHUNK
from mapformers.kernels.softmax import expand_heads


@dataclass(frozen=True)
class LinearConfig:
    """Linear attention has no options."""


class Linear(Mechanism):
    """Linear Transformer."""

    Config = LinearConfig
    card = Card(
        name="linear",
        family="linearised",
        paper="Katharopoulos et al. 2020, arXiv 2006.16236",
        formula="w[i,j] = phi(q_i).phi(k_j) / sum_j, phi = elu + 1, j <= i if causal",
        cost="time O(N D^2), memory O(N D)",
        summary="positive feature map, keys and values summed once",
        supports=capabilities(
            "bidirectional", "causal", "padding", "segments", "cross", "decode", "grouped", "rows_sum_to_one"
        ),
        options=options_of(LinearConfig),
    )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """elu + 1 of both."""
        return Features(phi_q=phi(q), phi_k=phi(k))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """The N x M kernel matrix, normalised."""
        kernel = phi(q) @ expand_heads(phi(k), q.shape[1]).transpose(-1, -2)
        kernel = kernel * scope.visible(q.shape[2], k.shape[2], q.device)
        total = kernel.sum(-1, keepdim=True)
        return kernel / total.masked_fill(total == 0, 1.0)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Sums and reads (and pairs inside chunks if causal), with the column of the denominator."""
        flops = 4.0 * n * dim * (dim + 1)
        if causal:
            flops += 2.0 * n * CHUNK * (2 * dim + 1)
        return Cost(
            flops=batch * heads * flops, bytes=4.0 * batch * heads * (2 * n * dim + n * dim * dim / CHUNK)
        )


class _EluPlusOne(torch.autograd.Function):
    """exp(x) for x <= 0 and x + 1 above: positive where elu(x) + 1 would round to 0.

    Its slope is min(phi, 1), so that only the result, which the products keep anyway, stays in memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.clamp(max=0).exp_().add_(x.relu())
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return result.clamp(max=1).mul_(grad)


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1, as Katharopoulos et al. 2020, section 3.2.1 and equation (7)."""
    return _EluPlusOne.apply(x)
