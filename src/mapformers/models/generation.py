"""generate() of transformers with the decode state of our blocks as its cache."""

from __future__ import annotations

from typing import Any

from transformers.generation import GenerationMixin, GenerationMode

from mapformers.core.errors import require
from mapformers.models.cache import MapformerCache


class MapformerGeneration(GenerationMixin):
    """For models whose `get_decoder()` is a MapformerModel."""

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Called by generate(): puts our cache where transformers would put its own."""
        require(
            generation_mode != GenerationMode.ASSISTED_GENERATION,
            "generate: assisted decoding must take tokens back, which decode states cannot, got an assistant "
            "or prompt lookup; use greedy search, sampling or beam search",
        )
        kind = generation_config.cache_implementation
        require(
            kind in (None, "dynamic"),
            f"generate: cache_implementation must be left out, got {kind!r}; the model makes its own cache",
        )
        given = model_kwargs.get("past_key_values")
        if given is not None:
            require(
                isinstance(given, MapformerCache),
                f"generate: past_key_values must be a MapformerCache, got {type(given).__name__}; drop it",
            )
            given._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.get_decoder().new_cache()
