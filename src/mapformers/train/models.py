"""The model that a preset asks for: its config, checked, and its size without memory."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from mapformers.core.errors import MapformersError, require, require_known
from mapformers.train.presets import Preset, coerce
from mapformers.train.tasks import task_of

CONFIGS = {
    "mapformer": "MapformerConfig",
    "perceiver": "PerceiverConfig",
    "perceiver-ar": "PerceiverARConfig",
}
CLASSES = {
    ("mapformer", "language-model"): "MapformerForCausalLM",
    ("mapformer", "answers"): "MapformerForCausalLM",
    ("mapformer", "classification"): "MapformerForSequenceClassification",
    ("mapformer", "forecasting"): "MapformerForForecasting",
    ("mapformer", "image-generation"): "MapformerForImageGeneration",
    ("mapformer", "masked-language-model"): "MapformerForMaskedLM",
    ("perceiver", "masked-language-model"): "PerceiverForMaskedLM",
    ("mapformer", "translation"): "MapformerForSeq2SeqLM",
    ("perceiver-ar", "language-model"): "PerceiverARForCausalLM",
    ("perceiver-ar", "answers"): "PerceiverARForCausalLM",
    ("perceiver", "classification"): "PerceiverForClassification",
}


def model_class(preset: Preset) -> Any:
    """The class of a preset's model. Raises MapformersError where an architecture cannot do the task."""
    known = [architecture for architecture, task in CLASSES if task == preset.task]
    require(
        preset.architecture in known,
        f"preset: architecture must be {' or '.join(known)} for the task {preset.task}, got "
        f"{preset.architecture}; change it",
    )
    return getattr(import_module("mapformers.models"), CLASSES[preset.architecture, preset.task])


def config_of(preset: Preset, data: Path | None = None) -> Any:
    """The config of a preset's model. What follows from the data and from the seed of the run is its default.

    data   the folder with the data of the run; None = before there is one
    Raises MapformersError for unknown fields, wrong types, and layers that cannot be built.
    """
    from mapformers.models.strict import field_types

    model_class(preset)
    config = getattr(import_module("mapformers.models"), CONFIGS[preset.architecture])
    hints = field_types(config)  # not those of transformers
    fields = task_of(preset).model_fields(preset, data)
    plain = {"initializer_seed": preset.training.seed, **fields}
    for key, value in preset.model.items():
        require_known("preset", "key of model", key, hints)
        value = fields["input"] if key == "input" and "input" in fields else value
        plain[key] = coerce(f"model.{key}", value, hints[key])
    return config(**plain)


def parameter_count(preset: Preset) -> int:
    """Exact number of trained parameters; nothing is allocated."""
    from mapformers.models import parameter_count as count

    return int(count(config_of(preset), model_class(preset)))


def decodes(config: Any) -> bool:
    """Whether every layer of a causal MapformerConfig decodes token by token; nothing is allocated."""
    import torch

    from mapformers.models.layers import build_block

    if not getattr(config, "causal", False):
        return False
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, when the model is built
        for layer in config.layers:
            try:
                build_block(config, layer, seed=0).init_state(1)
            except MapformersError:
                return False
    return True
