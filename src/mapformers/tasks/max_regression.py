"""Maximum regression: say the largest number of a set.

Paper    Lee, Lee, Kim, Kosiorek, Choi, Teh 2019, "Set Transformer", ICML, arXiv 1810.00825, section 5.1
Formula  L numbers, each uniform in [0, high), L uniform in fewest .. most; the target is their maximum, the
         loss the mean absolute difference. Sets stand in rows of `most` places, the real ones first.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mapformers.core.errors import require


class MaxBatch(NamedTuple):
    """numbers [B, most], 0 where is_real [B, most] is False; target [B]."""

    numbers: Tensor
    is_real: Tensor
    target: Tensor


@dataclass(frozen=True)
class MaxRegression:
    """Sizes of the task."""

    fewest: int = 1
    most: int = 10
    high: float = 100.0

    def __post_init__(self) -> None:
        require(
            self.fewest >= 1,
            f"max_regression: fewest must be 1 or more, got {self.fewest}; an empty set has no maximum",
        )
        require(
            self.most >= self.fewest,
            f"max_regression: most must be fewest={self.fewest} or more, got {self.most}; raise it",
        )
        require(self.high > 0, f"max_regression: high must be above 0, got {self.high}; use 100")

    def batch(self, size: int, generator: torch.Generator) -> MaxBatch:
        """`size` fresh sets out of the generator; the global random state is not touched."""
        device = generator.device
        count = torch.randint(self.fewest, self.most + 1, (size, 1), generator=generator, device=device)
        numbers = torch.rand(size, self.most, generator=generator, device=device) * self.high
        is_real = torch.arange(self.most, device=device) < count
        numbers = numbers * is_real
        return MaxBatch(numbers, is_real, numbers.amax(1))
