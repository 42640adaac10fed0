"""Encoder-decoder: an encoder that sees everything, a strictly causal decoder that reads what it has made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerationMixin  # transformers looks for it among the bases
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from mapformers.core.carry import added
from mapformers.core.draw import linear
from mapformers.core.errors import require
from mapformers.models.cache import MapformerCache
from mapformers.models.config import MapformerConfig
from mapformers.models.generation import MapformerGeneration
from mapformers.models.layers import seeds
from mapformers.models.losses import IGNORED, baseline_for, token_loss
from mapformers.models.stack import MapformerModel, MapformerPreTrainedModel


@dataclass
class MapformerSeq2SeqOutput(Seq2SeqLMOutput):
    """Loss [], logits [B, N, vocab_size], the cache, and every part of the loss by name."""

    losses: dict[str, Tensor] | None = None


class Encoder(MapformerModel):
    """The stack of encoder layers, under the names that generate() of transformers asks for."""

    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any:
        """Hidden states of tokens [B, M]; the losses of its layers stand in `losses`."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )


class MapformerForSeq2SeqLM(MapformerPreTrainedModel, MapformerGeneration, GenerationMixin):
    """`encoder_layers` of the config read the source, `layers` with `cross` write the target."""

    base_model_prefix = "decoder"
    _tied_weights_keys = {  # noqa: RUF012
        "encoder.embed_tokens.weight": "decoder.embed_tokens.weight",
        "lm_head.weight": "decoder.embed_tokens.weight",
    }

    def __init__(self, config: MapformerConfig) -> None:
        super().__init__(config)
        require(
            config.encoder_layers is not None and config.causal,
            "MapformerForSeq2SeqLM: encoder_layers must be given and causal be True, got neither or one; "
            "for one stack use MapformerForCausalLM or MapformerForMaskedLM",
        )
        require(
            any("cross" in layer for layer in config.layers),
            "MapformerForSeq2SeqLM: layers must name their cross attention, got none; add cross: full",
        )
        assert config.encoder_layers is not None
        first, second, last = seeds(config.initializer_seed, 3)
        self.encoder = Encoder(
            config.stack(layers=config.encoder_layers, causal=False, initializer_seed=first)
        )
        self.decoder = MapformerModel(config.stack(initializer_seed=second))
        generator = torch.Generator().manual_seed(last)
        same = config.token_size == config.hidden_size
        self.head_projection = (
            nn.Identity() if same else linear(config.hidden_size, config.token_size, generator)
        )
        self.lm_head = linear(config.token_size, config.vocab_size, generator)
        self.policy_baseline = baseline_for(self)
        self.post_init()

    def get_encoder(self, modality: str | None = None) -> Encoder:
        """The stack that reads the source."""
        return self.encoder

    def get_decoder(self) -> MapformerModel:
        """The stack that writes the target."""
        return self.decoder

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: MapformerCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MapformerSeq2SeqOutput:
        """Logits of the next target token after each of decoder_input_ids [B, N], given a source [B, M].

        labels             [B, N] the target; -100 does not count. Without decoder_input_ids these are the
                           labels behind the start token
        encoder_outputs    hidden states of the source where they are known already
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, output_attentions=output_attentions, return_dict=True
            )
        hidden = encoder_outputs[0]
        if decoder_input_ids is None:
            decoder_input_ids = self.behind_start(labels)
        out = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            context=hidden,
            context_is_real=_real(attention_mask),
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(self.head_projection(out.last_hidden_state))
        losses = added(getattr(encoder_outputs, "losses", None) or {}, out.losses or {})
        loss = None
        if labels is not None:
            losses = {"task": token_loss(logits, labels), **losses}
            loss = self.weighted(losses["task"], losses)
        return MapformerSeq2SeqOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            decoder_hidden_states=out.hidden_states,
            encoder_last_hidden_state=hidden,
            losses=losses or None,
        )

    def behind_start(self, labels: Tensor | None) -> Tensor:
        """[B, N] the start token and the labels but the last; -100 becomes padding."""
        config = self.config
        require(
            labels is not None,
            "model: decoder_input_ids or labels must be given, got neither; pass the target",
        )
        assert labels is not None
        require(
            config.decoder_start_token_id is not None and config.pad_token_id is not None,
            "model: decoder_start_token_id and pad_token_id must be set to make decoder inputs of labels, "
            "got None; set them in the config",
        )
        start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], 1)
        return shifted.masked_fill(shifted == IGNORED, config.pad_token_id)


def _real(mask: Tensor | None) -> Tensor | None:
    """The padding of a context; None where there is none."""
    if mask is None:
        return None
    real = mask != 0
    return None if not torch.compiler.is_compiling() and bool(real.all()) else real
