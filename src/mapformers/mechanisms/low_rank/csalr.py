"""CSALR: all pairs through a few landmarks, their matrix made invertible by an identity.

Paper    Chen, Gong, Ge, Du 2020, "Compressed Self-Attention via Low-Rank Approximation", IJCAI.
Formula  w = softmax(q Kl^T / sqrt(D)) (softmax(Ql Kl^T / sqrt(D)) + scale I)^-1 softmax(Ql k^T / sqrt(D));
         Ql, Kl = means of L stretches of the tokens
Cost     time O(N L (D + L) + L^3), extra memory O(N L)
Differs  Where the softmaxes stand follows the survey's description. The paper pools feature maps of images
         in two dimensions, this file tokens in one. Rows sum to 1 / (1 + scale), so outputs at scale=1 are
         about half of an average of values, and never become those of full attention. Scores so large that
         two landmarks swap places (A = a permutation) make A + I singular: there the pseudo-inverse stands
         in; below scale=1 other matrices may come close to that. Stretches are counted among real tokens; a
         short input has one landmark for each token. Causal use is refused: landmarks are means over later
         tokens too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism
from mapformers.core.plans import Dense, Plan
from mapformers.core.scope import Scope
from mapformers.mechanisms.low_rank.landmarks import SHORT, Short, check_length, factors_of, written_out


@dataclass(frozen=True)
class CsalrConfig:
    """Options of csalr."""

    landmarks: int = option(64, "means of tokens that all attention goes through")
    scale: float = option(1.0, "times the identity that is added before the inversion")
    short: Short = option("refuse", "fewer keys than landmarks: refuse, or take_all as landmarks")

    def __post_init__(self) -> None:
        require(
            self.landmarks >= 1,
            f"csalr: landmarks must be 1 or more, got {self.landmarks}; use landmarks=64",
        )
        require_known("csalr", "short", self.short, SHORT)
        require(
            0 < self.scale < float("inf"),
            f"csalr: scale must be above 0 and finite, got {self.scale}; use scale=1.0",
        )


class Csalr(Mechanism):
    """Attention through landmarks, regularised by an identity."""

    Config = CsalrConfig
    config: CsalrConfig
    card = Card(
        name="csalr",
        family="low rank",
        paper="Chen et al. 2020, IJCAI",
        formula="w = softmax(q Kl^T) (softmax(Ql Kl^T) + scale I)^-1 softmax(Ql k^T)",
        cost="time O(N L (D + L) + L^3), memory O(N L)",
        summary="attention through landmarks with a regularised inverse",
        causal="refuses",
        supports=capabilities("bidirectional", "padding", "grouped"),
        options=options_of(CsalrConfig),
    )

    def check_causal(self, causal: bool) -> None:
        """Say why not."""
        require(
            not causal,
            "csalr: causal is not supported, since landmarks are means over later tokens too, got "
            "causal=True; use causal=False or another mechanism",
        )

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Softmax over the landmarks of the keys, whose values solve the small system."""
        check_length("csalr", self.config.landmarks, k.shape[2], self.config.short)
        parts = factors_of(q, k, scope, self.config.landmarks)
        one = torch.eye(parts.between.shape[-1], dtype=torch.float64, device=q.device)
        inverse = torch.linalg.pinv(parts.between + self.config.scale * one).to(parts.to_keys.dtype)
        allowed = None if scope.key_is_real is None else parts.exist.expand(-1, -1, q.shape[2], -1)
        return Dense(keys=parts.keys, value_mix=inverse @ parts.to_keys, allowed=allowed)

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """On the real tokens alone; the inverse by solving for one unit vector after another."""

        def inverse(a: Tensor) -> Tensor:
            one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
            columns = [
                torch.linalg.solve(a + self.config.scale * one, unit.expand(a.shape[:-1])) for unit in one
            ]
            return torch.stack(columns, -1)

        return written_out(q, k, scope, self.config.landmarks, inverse)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Three products with the landmarks, the mixtures and what they mix, the inverse."""
        marks = min(self.config.landmarks, n)
        flops = 8.0 * n * marks * dim + 2.0 * n * marks**2 + 2.0 * marks**2 * dim
        return Cost(batch * heads * flops, 16.0 * batch * heads * n * marks)
