"""Dropout that can be repeated: a pass remembers one number instead of the state of the generators."""

import torch
from torch import Tensor


def draw_seed() -> int:
    """A seed from the global generator, from which torch's own dropout draws as well."""
    return int(torch.empty((), dtype=torch.int64).random_())


def seeded_dropout(x: Tensor, share: float, seed: int | None) -> Tensor:
    """x with each entry 0 in `share` of all cases and divided by 1 - share else; x itself without a seed."""
    if seed is None:
        return x
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return x * kept.to(x.dtype) / (1 - share)
