"""The inputs of an audit: vectors or token ids, and the same with other tokens behind a cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Inputs of the right kind: vectors [B, N, dim], or token ids [B, N]."""

    dim: int
    vocab: int | None
    length: int
    batch: int
    generator: torch.Generator

    def __call__(self, dtype: torch.dtype, kind: str = "random") -> Tensor:
        """Fresh inputs: random, clustered around 4 centres, or 4 vectors (or ids) again and again."""
        shape = (self.batch, self.length)
        if self.vocab is not None:
            known = self.vocab if kind == "random" else min(4, self.vocab)
            return torch.randint(0, known, shape, generator=self.generator)
        noise = torch.randn((*shape, self.dim), generator=self.generator, dtype=torch.float64)
        if kind != "random":
            centres = torch.randn((4, self.dim), generator=self.generator, dtype=torch.float64)
            rows = centres[torch.randint(0, 4, shape, generator=self.generator)]
            noise = rows + (0.05 * noise if kind == "clustered" else 0)
        return noise.to(dtype)

    def others(self, x: Tensor, cut: int) -> Iterator[Tensor]:
        """x with other tokens from `cut` on: fresh ones, and louder copies of the past."""
        if self.vocab is not None:
            for _ in range(2):
                shift = torch.randint(1, max(2, self.vocab), x[:, cut:].shape, generator=self.generator)
                yield torch.cat([x[:, :cut], (x[:, cut:] + shift) % self.vocab], 1)
            return
        order = torch.randint(0, cut, (x.shape[1] - cut,), generator=self.generator)
        fresh = torch.randn(x[:, cut:].shape, generator=self.generator, dtype=torch.float64).to(x.dtype)
        for later in (fresh, 10 * x[:, order], -3 * x[:, cut:]):
            yield torch.cat([x[:, :cut], later], 1)
