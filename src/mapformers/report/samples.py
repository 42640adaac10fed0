"""The pattern of a mechanism on few random tokens, with options small enough for it to show."""

from typing import Any

import torch
from torch import Tensor

import mapformers as mf
from mapformers.core.card import Card

HEAD_DIM = 16
LARGEST = 8  # of sizes that are not named below
SMALL: dict[str, dict[str, Any]] = {
    "axial": {"axis": "column", "width": 8},
    "bigbird": {"block": 4, "random": 1},
    "csalr": {"landmarks": 8},
    "dilated": {"window": 3, "dilation": 3},
    "global_tokens": {"count": 3},
    "image_local": {
        "width": 8,
        "query_height": 2,
        "query_width": 4,
        "memory_height": 2,
        "memory_width": 2,
    },
    "informer": {"factor": 1, "threshold": 0.5},
    "linformer": {"rank": 8},
    "longformer": {"window": 4, "global_tokens": 2},
    "moba": {"block": 4, "top": 2},
    "nystrom": {"landmarks": 8, "kernel": 5},
    "random": {"block": 4, "count": 2},
    "reformer": {"buckets": 4, "window": 8},
    "routing": {"clusters": 4, "window": 8},
    "sparse_transformer": {"stride": 6},
    "strided": {"stride": 6},
}
KEEP = ("length",)  # a size that tokens must fit into


def small_options(card: Card) -> dict[str, Any]:
    """Options of a mechanism for a few tokens: those named above, and sizes cut to LARGEST."""
    cut = {
        one.name: LARGEST
        for one in card.options
        if type(one.default) is int and one.default > LARGEST and one.name not in KEEP
    }
    return SMALL.get(card.name, cut)


def sample_weights(card: Card, options: dict[str, Any], tokens: int) -> Tensor:
    """[tokens, tokens] the weights of one head on random tokens, causal where the card allows it."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, tokens, HEAD_DIM, generator=draw) for _ in range(2))
    made = mf.mechanism(card.name, **options)
    return mf.dense_weights(made, q, k, causal="causal" in card.supports)[0, 0].detach()
