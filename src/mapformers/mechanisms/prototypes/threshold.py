"""A threshold for each head that follows a quantile of what training observes, and stands still else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Threshold(nn.Module):
    """value [H], in float32 or wider whatever the model's type. A forward reads it and never moves it."""

    value: Tensor
    updates: Tensor

    def __init__(self, heads: int, start: float, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.full((heads,), start, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._sum: Tensor | None = None  # [H + 1] quantiles seen since the last update, and their number

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Threshold:
        """Moves and widens like any module, but never narrows: small steps would be lost."""
        before = self.value
        super()._apply(fn, recurse)
        if self.value.dtype in (torch.float16, torch.bfloat16):
            self.value = before.to(self.value.device)
        return self

    @torch.no_grad()
    def observe(self, x: Tensor, share: Tensor) -> None:
        """x [H, S] of one forward; the mean of share [S] is what the threshold is to leave above it."""
        new = x.new_zeros(len(x) + 1, dtype=torch.float64)  # stays 0 for a forward of padding alone
        if x.shape[1]:
            new[:-1] = x.double().quantile(1 - share.double().mean(), dim=1)
            new[-1] = 1
        self._sum = new if self._sum is None else self._sum + new

    @torch.no_grad()
    def update(self) -> None:
        """Move by what was observed since the last update, on all ranks: all the way at first, then less and
        less, down to 1 - decay.
        """
        if self._sum is None:
            return
        total, self._sum = self._sum, None
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        if total[-1] == 0:
            return
        mean = (total[:-1] / total[-1]).to(self.value.dtype)
        self.updates.add_(1)
        rate = max(1 - self.decay, 1 / float(self.updates))
        self.value.lerp_(mean, rate)

    def __getstate__(self) -> dict[str, Any]:
        """Without what an unfinished step observed: copies start clean."""
        return {**self.__dict__, "_sum": None}
