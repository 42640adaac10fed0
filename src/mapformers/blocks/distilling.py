"""Distilling between the layers of Informer's encoder: a convolution and a maximum halve the sequence.

Paper    Zhou, Zhang, Peng, Zhang, Li, Xiong, Zhang 2021, "Informer", AAAI, arXiv 2012.07436, section 3.2
Formula  x'_p = max_{i in 2p-1 .. 2p+1} ELU(LN(b + sum_t W_t x_{i+t})), t = -1, 0, 1, beyond the ends x = 0
Cost     time O(N dim^2)
Differs  The official code convolves circularly and normalises over the batch, which mixes the two ends and
         the rows of a batch: here zeros stand beyond the ends, and each token is normalised alone. Padding
         is not there: real tokens are moved together first, so its side and amount do not matter.

It changes the length, so it is not a block: it stands between blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapformers.core.draw import normal
from mapformers.core.errors import require

TAPS = 3


class Distilling(nn.Module):
    """A sequence to one of half its length, rounded up."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        require(dim >= 1, f"distilling: dim must be 1 or more, got {dim}; use that of the blocks")
        self.weight = nn.Parameter(normal((dim, dim, TAPS), generator, (TAPS * dim) ** -0.5))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, key_is_real: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x [B, N, dim], key_is_real [B, N] bool, to [B, ceil(N / 2), dim] and which of these are real.

        A row of r real tokens has ceil(r / 2) real places, and they come first; the others are 0. None for no
        padding at all.
        """
        dim = self.weight.shape[0]
        require(
            x.dim() == 3 and x.shape[-1] == dim and x.shape[1] >= 1,
            f"distilling: x must have shape [batch, tokens, {dim}], got {tuple(x.shape)}; check dim",
        )
        if key_is_real is None:
            return F.max_pool1d(self._convolved(x), TAPS, stride=2, padding=1).mT, None
        require(
            key_is_real.shape == x.shape[:2] and key_is_real.dtype == torch.bool,
            f"distilling: key_is_real must be bool of shape {tuple(x.shape[:2])}, got {key_is_real.dtype} "
            f"{tuple(key_is_real.shape)}; use mask.bool() (True = keep)",
        )
        order = (~key_is_real).long().argsort(dim=1, stable=True)  # real tokens first
        real = key_is_real.gather(1, order)
        together = x.gather(1, order.unsqueeze(-1).expand_as(x)).masked_fill(~real.unsqueeze(-1), 0.0)
        y = self._convolved(together).masked_fill(~real.unsqueeze(1), float("-inf"))
        y = F.max_pool1d(y, TAPS, stride=2, padding=1).mT
        # A place counts where its middle token does: as many as the row has without its padding.
        real = real[:, ::2]
        return y.masked_fill(~real.unsqueeze(-1), 0.0), real

    def _convolved(self, x: Tensor) -> Tensor:
        """[B, dim, N]"""
        y = F.conv1d(x.mT, self.weight, self.bias, padding=TAPS // 2).mT
        return F.elu(self.norm(y)).mT
