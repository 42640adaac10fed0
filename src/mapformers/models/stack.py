"""The stack of blocks between token ids and hidden states, as a transformers model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from mapformers.blocks.base import Block
from mapformers.blocks.fourier import sinusoid
from mapformers.blocks.reversible import ReversibleBlock
from mapformers.blocks.reversible_stack import run_reversible
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal
from mapformers.core.errors import MapformersError, require
from mapformers.core.scope import Scope
from mapformers.models.adapters.inputs import make_input
from mapformers.models.cache import MapformerCache
from mapformers.models.config import MapformerConfig
from mapformers.models.inputs import carry_of, new_columns
from mapformers.models.layers import build_block, seeds
from mapformers.models.pretrained import EMBEDDING_SCALE, PreTrainedBase
from mapformers.models.sharing import share_over_layers

SINUSOID_SCALE = EMBEDDING_SCALE * 2**0.5  # as large as token embeddings


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


class MapformerPreTrainedModel(PreTrainedBase):
    """What the models made of a MapformerConfig share."""

    config_class = MapformerConfig
    config: MapformerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _layer_class = MapformerLayer
    _no_split_modules = ["MapformerLayer"]  # noqa: RUF012  transformers turns these into sets per instance


class MapformerModel(MapformerPreTrainedModel):
    """Embeddings, blocks and the final norm (pre-norm only)."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^head_projection\.", r"^classify\."]  # noqa: RUF012  heads of other models

    def __init__(self, config: MapformerConfig) -> None:
        super().__init__(config)
        first, *rest = seeds(config.initializer_seed, 1 + len(config.layers))
        generator = torch.Generator().manual_seed(first)
        self.input = None if config.input is None else make_input(config.input, generator)
        if self.input is None:
            weight = normal((config.vocab_size, config.token_size), generator, EMBEDDING_SCALE)
            self.embed_tokens = nn.Embedding(config.vocab_size, config.token_size, _weight=weight)
        width = config.token_size if self.input is None else self.input.channels
        same = width == config.hidden_size
        self.embed_projection = nn.Identity() if same else linear(width, config.hidden_size, generator)
        shape = config.image_shape
        self.axes = (
            None
            if shape is None
            else nn.ParameterList(
                nn.Parameter(normal((size, config.hidden_size), generator, EMBEDDING_SCALE)) for size in shape
            )
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
        context: Tensor | None = None,
        context_is_real: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MapformerModelOutput:
        """Hidden states of tokens [B, N].

        attention_mask  [B, N] 1 = real, or [B, past + N] when a cache is continued
        position_ids    [B or 1, N] true positions; None = ranks among the real tokens of the row
        segments        [B, N] documents packed into one row, which do not see each other. Not with a cache
        context         [B, M, hidden_size] what layers with `cross` read; context_is_real [B, M] bool
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
            carry = dataclasses.replace(carry, context=context, context_is_real=context_is_real)
            x, carry = self._through(self._placed(x, _positions(x, carry)), carry, kept)
        else:
            require(
                segments is None,
                "model: packed segments cannot be decoded, got segments with a cache; pass use_cache=False",
            )
            carry = new_columns(x, attention_mask, position_ids, past_key_values)
            carry = dataclasses.replace(carry, context=context, context_is_real=context_is_real)
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
        require(
            self.input is None or inputs_embeds is not None,
            "model: a model with an input adapter takes what the adapter makes, got input_ids; pass "
            "inputs_embeds=model.input(..)[0], or use MapformerForSequenceClassification",
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

    def _placed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, N, dim] with its positions [B or 1, N], where these do not come by rotation."""
        if self.config.positions == "none":
            return x
        if self.axes is not None:
            return x + self._axial(positions)
        return x + (SINUSOID_SCALE * sinusoid(positions, x.shape[-1])).to(x.dtype)

    def _axial(self, positions: Tensor) -> Tensor:
        """[B or 1, N, dim] of places in raster order, channels innermost; beyond the image its end."""
        assert self.axes is not None
        height, width, channels = self.config.image_shape or (1, 1, 1)
        place = positions.clamp(max=height * width * channels - 1)
        index = (place // (width * channels), place // channels % width, place % channels)
        return sum(table[i] for table, i in zip(self.axes, index, strict=True))  # type: ignore[return-value]

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
        x = self._placed(x, cache.positions(key_is_real, batch, new, x.device))
        for layer, slot in zip(self.layers, cache.layers, strict=True):
            state = layer.block.init_state(batch) if slot.state is None else slot.state
            x, carry, slot.state = layer.block.step(x, dataclasses.replace(carry, losses={}), state)
            if kept is not None:
                kept.append(x)
        cache.advance(key_is_real, batch, new, x.device)
        return x


def _positions(x: Tensor, carry: Carry) -> Tensor:
    """[B or 1, N] true positions of a whole sequence."""
    scope = Scope.of(False, carry.key_is_real, carry.segments, carry.positions)
    return scope.query_positions(x.shape[1], x.device)
