"""The model that a preset asks for: its config, checked, and its size without memory."""

import inspect
import warnings
from typing import Any

from mapformers.core.errors import MapformersError, require_known
from mapformers.train.presets import Preset, coerce


def config_of(preset: Preset) -> Any:
    """MapformerConfig of a preset. The context and the seed of the run are its defaults for length and
    initial weights.

    Raises MapformersError for unknown fields, wrong types, and layers that cannot be built.
    """
    from mapformers.models import MapformerConfig

    hints = inspect.get_annotations(
        MapformerConfig, eval_str=True
    )  # its own fields, not those of transformers
    plain = {"max_position_embeddings": preset.data.context, "initializer_seed": preset.training.seed}
    for key, value in preset.model.items():
        require_known("preset", "key of model", key, hints)
        plain[key] = coerce(f"model.{key}", value, hints[key])
    return MapformerConfig(**plain)


def parameter_count(preset: Preset) -> int:
    """Exact number of trained parameters; nothing is allocated."""
    from mapformers.models import parameter_count as count

    return int(count(config_of(preset)))


def decodes(config: Any) -> bool:
    """Whether every layer of a MapformerConfig decodes token by token; nothing is allocated."""
    import torch

    from mapformers.models.layers import build_block

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, when the model is built
        for layer in config.layers:
            try:
                build_block(config, layer, seed=0).init_state(1)
            except MapformersError:
                return False
    return True
