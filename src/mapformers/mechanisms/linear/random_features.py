"""Random rows for features of kernels: uniformly random rotations or plain, drawn anew as training goes on.

Paper    Choromanski et al. 2021, "Rethinking Attention with Performers", arXiv 2009.14794, section 2.4 and
         4.2 (drawing anew)
Differs  The columns of Q are multiplied by the signs of the diagonal of R: as LAPACK leaves them, Q is
         not uniform (Haar) over the rotations, and the error stops falling as features are added.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mapformers.core import draw
from mapformers.mechanisms.sparse.draws import draw_seed, hashed

DrawRows = Callable[[int, int, torch.Generator], Tensor]


def orthogonal_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """[count, dim] rows, each Gaussian by itself, orthogonal to the others of its block of `dim` rows."""
    blocks = -(-count // dim)
    normals = draw.normal((blocks, dim, dim), generator)
    lengths = draw.normal((count, dim), generator).norm(dim=-1, keepdim=True)  # chi(dim)
    if normals.is_meta:
        return torch.empty(count, dim, device="meta")
    q, r = torch.linalg.qr(normals.double())
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    # Columns of a Haar matrix are as uniform as its rows.
    return q.transpose(-1, -2).flatten(0, 1)[:count].float() * lengths


def normal_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """[count, dim] independent Gaussian rows."""
    return draw.normal((count, dim), generator)


class RandomRows(nn.Module):
    """Rows [count, dim] that are drawn anew every so many updates of training, 0 = never.

    They depend on a seed and on the number of updates alone; all three are in the checkpoint.
    """

    rows: Tensor
    seed: Tensor
    updates: Tensor

    def __init__(
        self, draw_rows: DrawRows, size: tuple[int, int], every: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.draw_rows: DrawRows = draw_rows
        self.every = every
        self.register_buffer("rows", draw_rows(*size, generator))
        self.register_buffer("seed", draw_seed(generator))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def count_update(self) -> None:
        """After an optimiser step: draw anew where it is time. Does nothing outside training."""
        if not self.training:
            return
        self.updates += 1
        if self.every and int(self.updates) % self.every == 0:
            generator = torch.Generator().manual_seed(int(hashed(self.seed, self.updates)))
            count, dim = self.rows.shape
            self.rows.copy_(self.draw_rows(count, dim, generator))
