"""Perceivers as transformers models: classes, arrays read by queries, masked bytes.

Paper    Jaegle et al. 2021, arXiv 2103.03206; Jaegle et al. 2022, "Perceiver IO", arXiv 2107.14795
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple

from mapformers.core.carry import Carry
from mapformers.core.errors import require
from mapformers.models.adapters.inputs import Text, make_input
from mapformers.models.adapters.options import (
    ArrayOutput,
    ClassesOutput,
    output_options,
)
from mapformers.models.adapters.outputs import OutputSite, make_output
from mapformers.models.losses import baseline_for, token_loss
from mapformers.models.perceiver.config import PerceiverConfig
from mapformers.models.perceiver.encoder import PerceiverEncoder, PerceiverLayer
from mapformers.models.pretrained import PreTrainedBase


@dataclass
class PerceiverOutput(ModelOutput):
    """Loss [], logits, the latents [B, latents, latent_size], and every part of the loss by name."""

    loss: Tensor | None = None
    logits: Any = None
    last_hidden_state: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class PerceiverPreTrainedModel(PreTrainedBase):
    """What all Perceivers share: the encoder, and how the input comes in."""

    config_class = PerceiverConfig
    config: PerceiverConfig
    base_model_prefix = "encoder"
    _layer_class = PerceiverLayer
    _no_split_modules = ["PerceiverLayer"]  # noqa: RUF012

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__(config)
        self.generator = torch.Generator().manual_seed(config.initializer_seed)
        self.input = make_input(config.input, self.generator)
        self.main_input_name = self.input.takes
        self.encoder = PerceiverEncoder(config, self.input.channels, self.generator)

    def _finish(self) -> None:
        """At the end of a constructor: everything was drawn."""
        self.policy_baseline = baseline_for(self)
        del self.generator
        self.post_init()

    def encode(
        self, given: Any, attention_mask: Any = None, portion: int | None = None
    ) -> tuple[Tensor, Tensor, Carry]:
        """The array of the input [B, M, channels], the latents that have read it, and their carry.

        attention_mask  [B, n] 1 = real; of a multimodal input a dict by part
        portion         places of the array read at once; None = as many as fit a fixed number of scores
        """
        array, is_real = self.input(given, _real(attention_mask))
        return array, *self.encoder(array, is_real, portion)

    def _output(self, task: Tensor | None, logits: Any, latents: Tensor, carry: Carry) -> PerceiverOutput:
        """With the loss, where there are labels: in training with the auxiliary losses by weight."""
        losses, loss = dict(carry.losses), task
        if task is not None:
            losses = {"task": task, **losses}
            loss = self.weighted(task, losses)
        return PerceiverOutput(loss=loss, logits=logits, last_hidden_state=latents, losses=losses or None)

    def _site(self, labels: int) -> OutputSite:
        config = self.config
        return OutputSite(config.latent_size, self.input.channels, config.norm_eps, labels)


class PerceiverForClassification(PerceiverPreTrainedModel):
    """One of num_labels classes for each input."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__(config)
        require(
            isinstance(output_options(config.output), ClassesOutput),
            f"PerceiverForClassification: output must be of kind classes, got {config.output}; use "
            "PerceiverForRegression for arrays",
        )
        self.decoder = make_output(config.output, self._site(config.num_labels), self.generator)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        inputs: Any = None,
        attention_mask: Any = None,
        labels: Tensor | None = None,
        input_ids: Tensor | None = None,
        portion: int | None = None,
    ) -> PerceiverOutput:
        """Logits [B, num_labels]. inputs (or input_ids) as the input adapter takes them; labels [B]."""
        array, latents, carry = self.encode(_given(inputs, input_ids), attention_mask, portion)
        logits = self.decoder(latents, array)
        loss = None if labels is None else token_loss(logits, labels)
        return self._output(loss, logits, latents, carry)


class PerceiverForRegression(PerceiverPreTrainedModel):
    """An array of numbers for each input: optical flow, reconstructions, several modalities at once."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__(config)
        require(
            not isinstance(output_options(config.output), ClassesOutput),
            "PerceiverForRegression: output must be an array or multimodal, got classes; use "
            "PerceiverForClassification",
        )
        self.decoder = make_output(config.output, self._site(0), self.generator)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        inputs: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        rows: Any = None,
        portion: int | None = None,
    ) -> PerceiverOutput:
        """Arrays [B, n, channels], by name for a multimodal output; the loss is the mean squared error.

        rows    [n] which outputs, None = all; by name for a multimodal output. labels belong to these rows
        """
        array, latents, carry = self.encode(inputs, attention_mask, portion)
        logits = self.decoder(latents, array, rows)
        loss = None
        if labels is not None:
            loss = (
                torch.stack([F.mse_loss(logits[name], labels[name]) for name in sorted(labels)]).mean()
                if isinstance(labels, dict)
                else F.mse_loss(logits, labels)
            )
        return self._output(loss, logits, latents, carry)

    @torch.no_grad()
    def decode_in_portions(self, latents: Tensor, array: Tensor, size: int) -> Tensor:
        """All outputs of an array output, `size` at a time: the same numbers in less memory."""
        options = output_options(self.config.output)
        require(
            isinstance(options, ArrayOutput), "PerceiverForRegression: portions need one array; pass rows"
        )
        count = array.shape[1] if self.decoder.queries.kind == "input" else self.decoder.queries.count
        rows = torch.arange(count, device=latents.device).split(size)
        return torch.cat([self.decoder(latents, array, part) for part in rows], 1)


class PerceiverForMaskedLM(PerceiverPreTrainedModel):
    """Masked bytes or tokens: the logits of every place, by the embedding of the input."""

    _tied_weights_keys: Any = None

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__(config)
        options = output_options(config.output)
        require(
            isinstance(self.input, Text) and isinstance(options, ArrayOutput),
            f"PerceiverForMaskedLM: input must be text and output an array, got {config.input} and "
            f"{config.output}; see the preset of bytes",
        )
        width = self.input.channels
        require(
            options.queries == "trained" and options.width == width,
            f"PerceiverForMaskedLM: output needs trained queries of width={width}, got {options.queries} of "
            f"{options.width}; they meet the embedding",
        )
        self.decoder = make_output({**config.output, "channels": 1}, self._site(0), self.generator)
        self.decoder.project = nn.Identity()
        self.bias = nn.Parameter(torch.zeros(self.input.embed.num_embeddings))
        self._finish()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        portion: int | None = None,
    ) -> PerceiverOutput:
        """Logits [B, n, vocab_size] of tokens [B, n]; labels [B, n], -100 where nothing is asked."""
        array, latents, carry = self.encode(input_ids, attention_mask, portion)
        rows = torch.arange(array.shape[1], device=array.device)
        logits = F.linear(self.decoder(latents, array, rows), self.input.embed.weight, self.bias)
        loss = None if labels is None else token_loss(logits, labels)
        return self._output(loss, logits, latents, carry)


def _given(inputs: Any, input_ids: Tensor | None) -> Any:
    require(
        (inputs is None) != (input_ids is None),
        f"model: exactly one of inputs and input_ids must be given, got "
        f"{'neither' if inputs is None else 'both'}; input_ids is for text",
    )
    return input_ids if inputs is None else inputs


def _real(mask: Any) -> Any:
    """A mask of 1 = real as bool; None where all are real."""
    if isinstance(mask, dict):
        return {name: None if one is None else one != 0 for name, one in mask.items()}
    if mask is None:
        return None
    real = mask != 0
    return None if not torch.compiler.is_compiling() and bool(real.all()) else real


__all__ = [
    "PerceiverForClassification",
    "PerceiverForMaskedLM",
    "PerceiverForRegression",
    "PerceiverOutput",
    "PerceiverPreTrainedModel",
]
