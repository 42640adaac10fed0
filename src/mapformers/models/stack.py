"""The stack of blocks between token ids and hidden states, as a transformers model."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.blocks.base import Block
from mapformers.blocks.reversible import ReversibleBlock
from mapformers.blocks.reversible_stack import run_reversible
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal
from mapformers.core.errors import MapformersError, require
from mapformers.models.cache import MapformerCache
from mapformers.models.checkpoint import load_pretrained, staged
from mapformers.models.config import MapformerConfig
from mapformers.models.inputs import carry_of, new_columns
from mapformers.models.layers import build_block, seeds
from mapformers.models.sharing import share_over_layers

EMBEDDING_SCALE = 0.02  # standard deviation of token embeddings, as in GPT-2
WIDE_BUFFERS = r"kmeans\.(centroids|bias|share|drift)|policy_baseline\.mean"


@dataclass
class MapformerModelOutput(BaseModelOutputWithPast):
    """Hidden states [B, N, hidden_size], the cache, and the auxiliary losses of all layers summed by name."""

    losses: dict[str, Tensor] | None = None


class MapformerLayer(GradientCheckpointingLayer):
    """One block, recomputed in the backward when activation checkpointing is on."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [B, N, hidden_size] through the block."""
        return self.block(x, carry)

    def attentions(self) -> list[MultiHeadAttention]:
        """The attention modules of the block."""
        return [module for module in self.modules() if isinstance(module, MultiHeadAttention)]


class MapformerPreTrainedModel(PreTrainedModel):
    """What all Mapformers models share: drawing, loading and saving of weights, checkpointing, centroids."""

    config_class = MapformerConfig
    config: MapformerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer multiplies auxiliary losses by the accumulation steps
    _no_split_modules = ["MapformerLayer"]  # noqa: RUF012  transformers turns these into sets per instance
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False
    _supports_context_parallel = False  # it would drop the pattern of every layer and train full attention
    _can_compile_fullgraph = False

    def post_init(self) -> None:
        """Mark all weights as drawn, so that transformers does not draw them again; then its own."""
        for module in self.modules():
            module._is_hf_initialized = True
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights of modules that transformers makes later, such as embeddings resized for more tokens."""
        if isinstance(module, nn.Embedding | nn.Linear):
            generator = torch.Generator().manual_seed(self.config.initializer_seed)
            module.weight.copy_(normal(module.weight.shape, generator, EMBEDDING_SCALE))

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Called on loading: centroids stay float32 or wider, because 0.999 x 1 is 1 in bfloat16."""
        return {**super()._get_dtype_plan(dtype), WIDE_BUFFERS: torch.promote_types(dtype, torch.float32)}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers, from safetensors only.

        Raises MapformersError, naming the file and the remedy, when the checkpoint is missing, damaged, of
        another model, pickled, or does not hold exactly the weights of this one.
        """
        return load_pretrained(super().from_pretrained, pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers, but each file is written elsewhere first and renamed when all are whole.

        Raises MapformersError when the folder cannot be written; what stood there before is then still there.
        """
        with staged(Path(save_directory)) as folder:
            super().save_pretrained(folder, *args, **kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute each block in the backward. Raises MapformersError for the reentrant form."""
        require(
            not (activation_checkpointing_kwargs or {}).get("use_reentrant", False),
            "model: activation checkpointing needs use_reentrant=False, got True; "
            "the reentrant form loses the gradients of auxiliary losses",
        )
        super().activation_checkpointing_enable(
            {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}, **options
        )

    def update_centroids(self) -> None:
        """Move the centroids of all routing layers. Call it after the optimiser step."""
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                module.update_centroids()

    def telemetry(self) -> list[dict[str, float]]:
        """Numbers about the state of each layer, one dict per layer, empty where there are none."""
        layers = [module for module in self.modules() if isinstance(module, MapformerLayer)]
        return [
            {name: value for attention in layer.attentions() for name, value in attention.telemetry().items()}
            for layer in layers
        ]


class MapformerModel(MapformerPreTrainedModel):
    """Embeddings, blocks and the final norm (pre-norm only)."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^head_projection\."]  # noqa: RUF012  heads of other models

    def __init__(self, config: MapformerConfig) -> None:
        super().__init__(config)
        first, *rest = seeds(config.initializer_seed, 1 + len(config.layers))
        generator = torch.Generator().manual_seed(first)
        weight = normal((config.vocab_size, config.token_size), generator, EMBEDDING_SCALE)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.token_size, _weight=weight)
        same = config.token_size == config.hidden_size
        self.embed_projection = (
            nn.Identity() if same else linear(config.token_size, config.hidden_size, generator)
        )
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            MapformerLayer(build_block(config, layer, seed))
            for layer, seed in zip(config.layers, rest, strict=True)
        )
        self._tied_weights_keys = {
            f"layers.{name}": f"layers.{source}" for name, source in share_over_layers(self.layers).items()
        }
        self.norm = nn.LayerNorm(config.hidden_size) if config.norm == "pre" else nn.Identity()
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As in transformers, with what the layers share, whatever the config says of embeddings."""
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        return {**tied, **self._tied_weights_keys}

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MapformerCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        segments: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MapformerModelOutput:
        """Hidden states of tokens [B, N].

        attention_mask  [B, N] 1 = real, or [B, past + N] when a cache is continued
        position_ids    [B or 1, N] true positions; None = ranks among the real tokens of the row
        segments        [B, N] documents packed into one row, which do not see each other. Not with a cache
        use_cache       return the decode state in `past_key_values`. None = only if one is passed in

        Raises MapformersError for shapes and combinations that cannot be honoured.
        """
        require(
            not output_attentions,
            "model: attention weights are never made, got output_attentions=True; use dense_weights",
        )
        x = self._embed(input_ids, inputs_embeds)
        if use_cache and past_key_values is None:
            past_key_values = self.new_cache()
        kept: list[Tensor] | None = [x] if output_hidden_states else None
        if past_key_values is None:
            carry = carry_of(x, attention_mask, position_ids, segments)
            x, carry = self._through(x, carry, kept)
        else:
            require(
                segments is None,
                "model: packed segments cannot be decoded, got segments with a cache; pass use_cache=False",
            )
            carry = new_columns(x, attention_mask, position_ids, past_key_values)
            x = self._step(x, carry, past_key_values, kept)
        return MapformerModelOutput(
            last_hidden_state=self.norm(x),
            past_key_values=past_key_values,
            hidden_states=None if kept is None else tuple(kept),
            losses=dict(carry.losses) or None,
        )

    def new_cache(self) -> MapformerCache:
        """An empty decode state. Raises MapformersError for models that are not causal."""
        require(
            self.config.causal, "model: only causal models decode, got causal=False; pass use_cache=False"
        )
        return MapformerCache(len(self.layers))

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        require(
            (input_ids is None) != (inputs_embeds is None),
            "model: exactly one of input_ids and inputs_embeds must be given, got "
            f"{'neither' if input_ids is None else 'both'}",
        )
        given = inputs_embeds if input_ids is None else input_ids
        require(
            given is not None and given.dim() >= 2 and given.shape[1] > 0,
            f"model: inputs must have shape (batch, tokens), with at least one token, "
            f"got {tuple(given.shape)}; begin with a prompt",
        )
        return self.embed_dropout(
            self.embed_projection(self._look_up(given) if inputs_embeds is None else given)
        )

    def _look_up(self, input_ids: Tensor) -> Tensor:
        try:
            return self.embed_tokens(input_ids)
        except IndexError as error:  # the CPU says so; on a GPU torch aborts the kernel itself
            raise MapformersError(
                f"model: input_ids must lie in [0, {self.config.vocab_size}), got {int(input_ids.min())} to "
                f"{int(input_ids.max())}; use the tokenizer the model was made for"
            ) from error

    def _through(self, x: Tensor, carry: Carry, kept: list[Tensor] | None) -> tuple[Tensor, Carry]:
        """x through all blocks; reversible ones in a row keep no activations, unless all are asked for."""
        for reversible, layers in groupby(
            self.layers, lambda layer: isinstance(layer.block, ReversibleBlock)
        ):
            if reversible and kept is None:
                x, carry = run_reversible([layer.block for layer in layers], x, carry)
                continue
            for layer in layers:
                x, carry = layer(x, carry)
                if kept is not None:
                    kept.append(x)
        return x, carry

    def _step(self, x: Tensor, carry: Carry, cache: MapformerCache, kept: list[Tensor] | None) -> Tensor:
        """The next tokens through all blocks, each with its own state."""
        batch, new, _ = x.shape
        key_is_real = carry.key_is_real
        for layer, slot in zip(self.layers, cache.layers, strict=True):
            state = layer.block.init_state(batch) if slot.state is None else slot.state
            x, carry, slot.state = layer.block.step(x, dataclasses.replace(carry, losses={}), state)
            if kept is not None:
                kept.append(x)
        cache.advance(key_is_real, batch, new, x.device)
        return x
