"""Small Perceivers that the tests share."""

from typing import Any

import torch
from torch import Tensor

from mapformers.models.perceiver.config import PerceiverConfig

GRID = {"kind": "grid", "shape": [5, 4], "channels": 3, "bands": 4}
TEXT = {"kind": "text", "vocab_size": 30, "length": 24, "channels": 16}
POINTS = {"kind": "points", "coordinates": 3, "channels": 1, "bands": 4, "resolution": 20.0}
MASKED = {"kind": "array", "rows": 24, "width": 16, "heads": 2, "qk": 8, "v": 16}


def config_of(**fields: Any) -> PerceiverConfig:
    """The small configuration of these tests."""
    sizes = {"input": GRID, "latents": 6, "latent_size": 16, "latent_heads": 4, "blocks": 3, "depth": 2}
    return PerceiverConfig(**{**sizes, "num_labels": 5, **fields})


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids below 30."""
    return torch.randint(30, (batch, length), generator=torch.Generator().manual_seed(seed))
