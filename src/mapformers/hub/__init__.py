"""Importing this module makes the models of the library known to the Auto classes of transformers."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.classification import MapformerForSequenceClassification
from mapformers.models.config import MapformerConfig
from mapformers.models.masked_lm import MapformerForMaskedLM
from mapformers.models.perceiver.config import PerceiverConfig
from mapformers.models.perceiver.model import PerceiverForClassification, PerceiverForMaskedLM
from mapformers.models.perceiver_ar.config import PerceiverARConfig
from mapformers.models.perceiver_ar.model import PerceiverARForCausalLM
from mapformers.models.seq2seq import MapformerForSeq2SeqLM
from mapformers.models.stack import MapformerModel

AutoConfig.register(MapformerConfig.model_type, MapformerConfig, exist_ok=True)
AutoModel.register(MapformerConfig, MapformerModel, exist_ok=True)
AutoModelForCausalLM.register(MapformerConfig, MapformerForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    MapformerConfig, MapformerForSequenceClassification, exist_ok=True
)
AutoModelForMaskedLM.register(MapformerConfig, MapformerForMaskedLM, exist_ok=True)
AutoModelForSeq2SeqLM.register(MapformerConfig, MapformerForSeq2SeqLM, exist_ok=True)
AutoConfig.register(PerceiverARConfig.model_type, PerceiverARConfig, exist_ok=True)
AutoModelForCausalLM.register(PerceiverARConfig, PerceiverARForCausalLM, exist_ok=True)
AutoConfig.register(PerceiverConfig.model_type, PerceiverConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PerceiverConfig, PerceiverForClassification, exist_ok=True)
AutoModelForMaskedLM.register(PerceiverConfig, PerceiverForMaskedLM, exist_ok=True)

__all__ = ["MapformerConfig", "MapformerForCausalLM", "MapformerModel", "PerceiverConfig"]
