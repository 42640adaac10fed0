"""The language model: next-token loss, auxiliary losses weighted in one place, generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.generation import GenerationMixin  # transformers looks for it among the bases
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from mapformers.core.draw import linear
from mapformers.core.errors import require
from mapformers.models.cache import MapformerCache
from mapformers.models.config import MapformerConfig
from mapformers.models.generation import MapformerGeneration
from mapformers.models.layers import seeds
from mapformers.models.losses import IGNORED, baseline_for, token_loss
from mapformers.models.stack import MapformerModel, MapformerPreTrainedModel


@dataclass
class MapformerCausalLMOutput(CausalLMOutputWithPast):
    """Logits [B, N, vocab_size], the cache, the loss (in training with the weighted auxiliary losses).

    `losses` holds every loss by name, unweighted: `next_token` when labels were given, and auxiliary ones.
    """

    losses: dict[str, Tensor] | None = None


class MapformerForCausalLM(MapformerPreTrainedModel, MapformerGeneration, GenerationMixin):
    """A causal language model over a stack of blocks."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MapformerConfig) -> None:
        super().__init__(config)
        require(
            config.causal,
            "MapformerForCausalLM: causal must be True, got False; use MapformerModel for an encoder",
        )
        require(
            config.input is None,
            f"MapformerForCausalLM: input must be None, got {config.input}; a language model reads tokens",
        )
        self.model = MapformerModel(config)
        generator = torch.Generator().manual_seed(seeds(config.initializer_seed, len(config.layers) + 2)[-1])
        same = config.token_size == config.hidden_size
        self.head_projection = (
            nn.Identity() if same else linear(config.hidden_size, config.token_size, generator)
        )
        self.lm_head = linear(config.token_size, config.vocab_size, generator)
        self.policy_baseline = baseline_for(self)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MapformerCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        segments: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MapformerCausalLMOutput:
        """Logits of the next token after each of [B, N], and the loss where labels are given.

        labels          [B, N] the input ids again; -100 does not count, nor does the first token of a segment
        logits_to_keep  0 = all, n = the last n, or indices of positions. Not together with labels
        Everything else is as in MapformerModel.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            segments=segments,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.lm_head(self.head_projection(_kept(out.last_hidden_state, logits_to_keep)))
        losses = dict(out.losses or {})
        loss = None
        if labels is not None:
            require(
                isinstance(logits_to_keep, int) and logits_to_keep == 0,
                "model: a loss needs all logits, got labels with logits_to_keep; leave one of them out",
            )
            losses = {"next_token": next_token_loss(logits, labels, segments), **losses}
            loss = self.weighted(losses["next_token"], losses)
        return MapformerCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            losses=losses or None,
        )


def next_token_loss(logits: Tensor, labels: Tensor, segments: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits [B, N, V] at i against labels [B, N] at i + 1, in float32 or wider.

    Targets of -100 do not count, nor do those that open another segment. 0 when nothing counts.
    """
    require(
        labels.shape == logits.shape[:2],
        f"model: labels must have shape {tuple(logits.shape[:2])}, got {tuple(labels.shape)}; "
        "pass the input ids again",
    )
    target = labels[:, 1:].to(logits.device)
    if segments is not None:
        opens = segments[:, 1:] != segments[:, :-1]
        target = target.masked_fill(opens, IGNORED)
    return token_loss(logits[:, :-1], target)


def _kept(x: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The positions of x [B, N, dim] whose logits are wanted."""
    if isinstance(logits_to_keep, int):
        return x[:, -logits_to_keep:] if logits_to_keep else x
    return x[:, logits_to_keep]
