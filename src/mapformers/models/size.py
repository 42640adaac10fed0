"""The size of a model, without making it."""

from typing import Any

import torch

from mapformers.models.causal_lm import MapformerForCausalLM


def parameter_count(config: Any, kind: Any = MapformerForCausalLM) -> int:
    """Exact number of parameters of kind(config), tied ones once. Allocates no weights."""
    with torch.device("meta"):
        model = kind(config)
    return sum(parameter.numel() for parameter in model.parameters())
