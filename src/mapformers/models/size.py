"""The size of a model, without making it."""

import torch

from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.config import MapformerConfig


def parameter_count(config: MapformerConfig) -> int:
    """Exact number of parameters of MapformerForCausalLM(config), tied ones once. Allocates no weights."""
    with torch.device("meta"):
        model = MapformerForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())
