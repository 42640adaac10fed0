"""Configs that refuse what they do not know, in one line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError

from mapformers.core.errors import MapformersError, require, require_known

# What transformers itself hands to a config besides its fields: found in config.json, or passed on loading.
FROM_TRANSFORMERS = frozenset(
    (
        *("model_type", "name_or_path", "_name_or_path", "_commit_hash", "torch_dtype", "num_labels"),
        *("attn_implementation", "experts_implementation", "output_attentions"),
        *("auto_map", "quantization_config", "use_cache"),
    )
)

Class = TypeVar("Class", bound=type)


def with_one_error_type(cls: Class) -> Class:
    """Turn the multi-line errors of strict dataclasses into MapformersError."""
    original: Callable[..., None] = cls.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except StrictDataclassError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise MapformersError(f"config: {reason}; see the fields of {cls.__name__}") from error

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def refuse_unknown(config: Any, given: dict[str, Any]) -> None:
    """Raise MapformersError for fields that a config does not have, and for those of another model."""
    model_type = given.get("model_type", config.model_type)
    require(
        model_type == config.model_type,
        f"config: model_type must be {config.model_type!r}, got {model_type!r}; "
        "this is the config of another model, load it with AutoConfig",
    )
    known = [one.name for one in fields(config)]
    for name in given:
        if name not in FROM_TRANSFORMERS:
            require_known("config", "field", name, known)


def require_positive(config: Any, *names: str) -> None:
    """Raise MapformersError unless these fields are above 0 (or None)."""
    for name in names:
        value = getattr(config, name)
        require(
            value is None or value > 0,
            f"config: {name} must be above 0, got {value}; see the defaults of {type(config).__name__}",
        )


def require_shares(config: Any, *names: str) -> None:
    """Raise MapformersError unless these fields lie in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value < 1, f"config: {name} must lie in [0, 1), got {value}; use 0.0 for none")


def field_types(config: type) -> dict[str, Any]:
    """The fields of a config class with their types: its own, and those it inherits inside the library."""
    kinds = [kind for kind in reversed(config.__mro__) if kind.__module__.startswith("mapformers.")]
    return {
        name: hint for kind in kinds for name, hint in inspect.get_annotations(kind, eval_str=True).items()
    }
