"""Hugging Face models made of our blocks. Names load on first use: transformers is imported only then."""

from importlib import import_module
from typing import Any

_HOME = {
    "MapformerConfig": "config",
    "MapformerPreTrainedModel": "stack",
    "MapformerModel": "stack",
    "MapformerModelOutput": "stack",
    "MapformerForCausalLM": "causal_lm",
    "MapformerCausalLMOutput": "causal_lm",
    "MapformerForForecasting": "forecasting",
    "MapformerForecastOutput": "forecasting",
    "MapformerForImageGeneration": "image_generation",
    "MapformerForMaskedLM": "masked_lm",
    "mask_tokens": "masked_lm",
    "MapformerForSeq2SeqLM": "seq2seq",
    "MapformerSeq2SeqOutput": "seq2seq",
    "MapformerForSequenceClassification": "classification",
    "MapformerClassificationOutput": "classification",
    "MapformerCache": "cache",
    "PerceiverARConfig": "perceiver_ar.config",
    "PerceiverARForCausalLM": "perceiver_ar.model",
    "PerceiverConfig": "perceiver.config",
    "PerceiverForClassification": "perceiver.model",
    "PerceiverForMaskedLM": "perceiver.model",
    "PerceiverForRegression": "perceiver.model",
    "PerceiverOutput": "perceiver.model",
    "parameter_count": "size",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
