"""Importing this module makes Mapformers known to AutoConfig, AutoModel and AutoModelForCausalLM."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.config import MapformerConfig
from mapformers.models.stack import MapformerModel

AutoConfig.register(MapformerConfig.model_type, MapformerConfig, exist_ok=True)
AutoModel.register(MapformerConfig, MapformerModel, exist_ok=True)
AutoModelForCausalLM.register(MapformerConfig, MapformerForCausalLM, exist_ok=True)

__all__ = ["MapformerConfig", "MapformerForCausalLM", "MapformerModel"]
