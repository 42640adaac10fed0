"""One of a few classes for each sequence: tokens, or pictures, sound and points through an input adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from mapformers.core.draw import linear
from mapformers.core.errors import require
from mapformers.models.config import MapformerConfig
from mapformers.models.layers import seeds
from mapformers.models.losses import baseline_for, token_loss
from mapformers.models.stack import MapformerModel, MapformerPreTrainedModel


@dataclass
class MapformerClassificationOutput(SequenceClassifierOutput):
    """Loss [], logits [B, num_labels], and every part of the loss by name."""

    losses: dict[str, Tensor] | None = None


class MapformerForSequenceClassification(MapformerPreTrainedModel):
    """The mean of the real tokens' hidden states, or the last of them, and a linear map to the classes."""

    def __init__(self, config: MapformerConfig) -> None:
        super().__init__(config)
        self.model = MapformerModel(config)
        self.main_input_name = "input_ids" if self.model.input is None else self.model.input.takes
        generator = torch.Generator().manual_seed(seeds(config.initializer_seed, len(config.layers) + 2)[-1])
        self.classify = linear(config.hidden_size, config.num_labels, generator, bias=True)
        self.policy_baseline = baseline_for(self)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs: Any = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> MapformerClassificationOutput:
        """Logits [B, num_labels].

        input_ids  [B, N] tokens, or `inputs` as the adapter of config.input takes them
        labels     [B] classes
        A row without a real token has the logits of a hidden state of zeros.
        """
        if self.model.input is not None:
            given = inputs if inputs is not None else input_ids
            require(
                given is not None and inputs_embeds is None,
                "model: inputs must be given for the adapter of config.input, got none; pass inputs=",
            )
            real = None if attention_mask is None else attention_mask != 0
            inputs_embeds, real = self.model.input(given, real)
            input_ids, attention_mask = None, None if real is None else real.long()
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            return_dict=True,
        )
        pooled = POOLED[self.config.pooling](out.last_hidden_state, attention_mask)
        logits = self.classify(pooled)
        losses, loss = dict(out.losses or {}), None
        if labels is not None:
            loss = token_loss(logits, labels)
            losses = {"task": loss, **losses}
            loss = self.weighted(loss, losses)
        return MapformerClassificationOutput(loss=loss, logits=logits, losses=losses or None)


def mean_of_real(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[B, dim] mean of x [B, N, dim] over the tokens where the mask is not 0; zeros where there are none."""
    if attention_mask is None:
        return x.mean(1)
    real = (attention_mask != 0).to(x.dtype).unsqueeze(-1)  # [B, N, 1]
    return (x * real).sum(1) / real.sum(1).clamp(min=1)


def last_of_real(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[B, dim] the last of x [B, N, dim] where the mask is not 0; zeros where there is none."""
    if attention_mask is None:
        return x[:, -1]
    real = attention_mask != 0
    index = torch.arange(x.shape[1], device=x.device)
    last = torch.where(real, index, 0).amax(1)[:, None, None]  # [B, 1, 1]
    return x.gather(1, last.expand(-1, 1, x.shape[-1])).squeeze(1) * real.any(1, keepdim=True)


POOLED = {"mean": mean_of_real, "last": last_of_real}
