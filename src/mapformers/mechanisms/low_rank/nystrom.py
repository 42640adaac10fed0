"""Nystrom attention: all pairs through a few landmarks, and a convolution of the values beside it.

Paper    Xiong, Zeng, Chakraborty, Tan, Fung, Li, Singh 2021, "Nystromformer", AAAI, arXiv 2102.03902.
Formula  w = F A^+ B + C with F = softmax(q Kl^T / sqrt(D)), A = softmax(Ql Kl^T / sqrt(D)),
         B = softmax(Ql k^T / sqrt(D)); Ql, Kl = means of L stretches of the tokens;
         C[i, j] = c[j - i] for |i - j| <= kernel // 2, learned, one per head
Cost     time O(N L (D + L) + L^3), extra memory O(N L)
Differs  Stretches are counted among real tokens and differ by one token at most, so any length and any
         padding works; the public codes average padding in, or want lengths that L divides. A short input
         has one landmark for each token. The pseudo-inverse starts from the norms of its own matrix: the
         published start takes a maximum over the whole batch, so that rows depend on each other. The exact
         inverse enlarges rounding without bound where landmarks are alike: it is for studies in wide types.
         Causal use is refused: each weight goes through means over all tokens, later ones among them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapformers.core.card import Card, capabilities, option, options_of
from mapformers.core.draw import uniform
from mapformers.core.errors import require, require_known
from mapformers.core.mechanism import Cost, Mechanism, Shape
from mapformers.core.plans import Dense, Plan, Taps, WeightedSum
from mapformers.core.scope import Scope
from mapformers.mechanisms.low_rank.landmarks import SHORT, Short, check_length, factors_of, written_out


@dataclass(frozen=True)
class NystromConfig:
    """Options of nystrom."""

    landmarks: int = option(64, "means of tokens that all attention goes through")
    iterations: int = option(6, "steps of the pseudo-inverse; 0 = the exact one")
    kernel: int = option(33, "taps of the convolution of the values; 0 = none")
    short: Short = option("refuse", "fewer keys than landmarks: refuse, or take_all as landmarks")

    def __post_init__(self) -> None:
        require(
            self.landmarks >= 1,
            f"nystrom: landmarks must be 1 or more, got {self.landmarks}; use landmarks=64",
        )
        require_known("nystrom", "short", self.short, SHORT)
        require(
            self.iterations >= 0,
            f"nystrom: iterations must be 0 or more, got {self.iterations}; use iterations=6",
        )
        require(
            self.kernel == 0 or (self.kernel > 0 and self.kernel % 2 == 1),
            f"nystrom: kernel must be odd, or 0 for none, got {self.kernel}; use kernel=33",
        )


class Nystrom(Mechanism):
    """Attention through landmarks of queries and keys."""

    Config = NystromConfig
    one_softmax = False
    config: NystromConfig
    taps: nn.Parameter
    card = Card(
        name="nystrom",
        family="low rank",
        paper="Xiong et al. 2021, arXiv 2102.03902",
        formula="w = softmax(q Kl^T) softmax(Ql Kl^T)^+ softmax(Ql k^T) + convolution",
        cost="time O(N L (D + L) + L^3), memory O(N L)",
        summary="attention through the means of a few stretches of tokens",
        causal="refuses",
        supports=capabilities("bidirectional", "padding", "grouped"),
        options=options_of(NystromConfig),
    )

    def check_causal(self, causal: bool) -> None:
        """Say why not."""
        require(
            not causal,
            "nystrom: causal is not supported, since landmarks are means over later tokens too, got "
            "causal=True; use causal=False or another mechanism",
        )

    def build(self, shape: Shape, generator: torch.Generator) -> None:
        """The taps of the convolution, uniform in +-1/sqrt(kernel)."""
        if self.config.kernel:
            size = (shape.heads, self.config.kernel)
            self.taps = nn.Parameter(uniform(size, generator, self.config.kernel**-0.5))

    def plan(self, q: Tensor, k: Tensor, scope: Scope) -> Plan:
        """Softmax over the landmarks of the keys, whose values are the mixtures A^+ B."""
        check_length("nystrom", self.config.landmarks, k.shape[2], self.config.short)
        parts = factors_of(q, k, scope, self.config.landmarks)
        inverse = pseudo_inverse(parts.between, self.config.iterations).to(parts.to_keys.dtype)
        allowed = None if scope.key_is_real is None else parts.exist.expand(-1, -1, q.shape[2], -1)
        through = Dense(keys=parts.keys, value_mix=inverse @ parts.to_keys, allowed=allowed)
        if not self.config.kernel:
            return through
        return WeightedSum((through, Taps(self.taps)), q.new_ones(1, 1, 1, 2))

    def dense_weights(self, q: Tensor, k: Tensor, scope: Scope) -> Tensor:
        """Through the landmarks of the real tokens, and the taps on their diagonals."""
        through = written_out(q, k, scope, self.config.landmarks, self._written_out)
        return through + self._convolution(scope, q.shape[2], q)

    def cost(self, batch: int, heads: int, n: int, dim: int, causal: bool) -> Cost:
        """Three products with the landmarks, the mixtures and what they mix, the inverse, the convolution."""
        marks = min(self.config.landmarks, n)
        through = 8.0 * n * marks * dim + 2.0 * n * marks**2 + 2.0 * marks**2 * dim
        # The exact inverse by singular values costs about as much as three steps.
        steps = self.config.iterations or 3
        flops = through + 8.0 * steps * marks**3 + 2.0 * n * self.config.kernel * dim
        return Cost(batch * heads * flops, 16.0 * batch * heads * n * marks)

    def _written_out(self, a: Tensor) -> Tensor:
        """The step multiplied out: (13 Z - 15 Z A Z + 7 Z (A Z)^2 - Z (A Z)^3) / 4."""
        if self.config.iterations == 0:
            return torch.linalg.pinv(a)
        norms = [torch.linalg.matrix_norm(a, ord, keepdim=True) for ord in (1, float("inf"))]
        z = a.mT / (norms[0] * norms[1])
        for _ in range(self.config.iterations):
            z = (13 * z - 15 * z @ a @ z + 7 * z @ (a @ z) @ (a @ z) - z @ (a @ z) @ (a @ z) @ (a @ z)) / 4
        return z

    def _convolution(self, scope: Scope, n: int, q: Tensor) -> Tensor:
        """[B or 1, H, N, N] the taps on their diagonals, counted by rank."""
        size = self.config.kernel
        if size == 0:
            return q.new_zeros(1, 1, 1, 1)
        ranks = scope.ranks_of_keys(n, q.device)
        step = ranks[:, None, :] - ranks[:, :, None] + size // 2  # [B or 1, N, N]
        shown = scope.visible(n, n, q.device) & ((step >= 0) & (step < size))[:, None]
        return self.taps[:, step.clamp(0, size - 1)].transpose(0, 1) * shown


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """[.., L, L] of non-negative a: `iterations` steps from a start scaled for each matrix alone; 0 = exact.

    Rows and columns of zeros stay zero.
    """
    if iterations == 0:
        return torch.linalg.pinv(a)
    norm = a.sum(-1).amax(-1) * a.sum(-2).amax(-1)  # largest row sum times largest column sum
    z = a.mT / norm.clamp(min=torch.finfo(a.dtype).tiny)[..., None, None]
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    return z
