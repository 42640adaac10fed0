"""Small models that the tests share."""

import copy
import functools
import json
from typing import Any

import torch
from torch import Tensor

from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.config import MapformerConfig

VOCABULARY = 50
MIXED = [
    {"attention": "band(window=5)"},
    {"attention": "routing(clusters=4, window=4):2 + band(window=4):2"},
]
EVERYTHING = [
    {"attention": "full", "score": "alibi", "rotary": False},
    {"attention": "routing(clusters=4, window=4, query_clusters=2):2 + block_local(block=4):2"},
    {"attention": "linear", "rotary": False},
    {"block": "transformer(attention='band(window=3)', norm=post)"},
]


def config_of(layers: list[dict[str, Any]] | None = None, **fields: Any) -> MapformerConfig:
    """The small configuration of these tests."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    }
    return MapformerConfig(**{**sizes, "layers": MIXED if layers is None else layers, **fields})


def model_of(layers: list[dict[str, Any]] | None = None, **fields: Any) -> MapformerForCausalLM:
    """A small model of its own for the caller, in evaluation; its centroids have moved once."""
    return copy.deepcopy(_warm(json.dumps({**fields, "layers": MIXED if layers is None else layers})))


@functools.cache
def _warm(fields: str) -> MapformerForCausalLM:
    model = MapformerForCausalLM(config_of(**json.loads(fields))).train()
    model(tokens(4, 24, seed=7))
    model.update_centroids()
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padding(lengths: list[int]) -> Tensor:
    """A mask [len(lengths), max(lengths)] of 1 = real, the real tokens at the right."""
    widest = max(lengths)
    return torch.tensor([[0] * (widest - length) + [1] * length for length in lengths])
