"""Forecasting: an encoder that halves the history between layers, a decoder that writes the future at once.

Paper    Zhou, Zhang, Peng, Zhang, Li, Xiong, Zhang 2021, "Informer", AAAI, arXiv 2012.07436
Formula  x = conv_3(values) + sinusoid(rank) + W features; encoder layers with distilling between them; the
         decoder gets the last `known` steps and zeros for the `horizon`, attends causally and to the encoder,
         and its last `horizon` outputs are the forecast
Differs  The official code convolves circularly, which joins the oldest step to the newest; here zeros stand
         beyond the ends. Histories may be shorter: their steps are moved to the end, so that padding of any
         side does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple

from mapformers.blocks.distilling import Distilling
from mapformers.blocks.fourier import sinusoid
from mapformers.core.carry import Carry
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require
from mapformers.models.adapters.options import SeriesInput, input_options
from mapformers.models.config import MapformerConfig
from mapformers.models.layers import build_block, seeds
from mapformers.models.losses import baseline_for
from mapformers.models.stack import MapformerLayer, MapformerPreTrainedModel

TAPS = 3


@dataclass
class MapformerForecastOutput(ModelOutput):
    """Loss [], the forecast [B, horizon, outputs] as `logits`, and every part of the loss by name."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class SeriesEmbedding(nn.Module):
    """Values and features of steps [B, n, ..] to [B, n, dim]."""

    def __init__(self, options: SeriesInput, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        width = options.channels
        self.weight = nn.Parameter(normal((dim, width, TAPS), generator, (TAPS * width) ** -0.5))
        self.features = linear(options.features, dim, generator) if options.features else None

    def forward(self, values: Tensor, features: Tensor | None, is_real: Tensor | None) -> Tensor:
        """Padding [B, n] counts as the zeros beyond the ends; the others are counted from 0."""
        if is_real is not None:
            values = values * is_real.unsqueeze(-1)
        x = F.conv1d(values.mT, self.weight, padding=TAPS // 2).mT
        if self.features is not None:
            assert features is not None
            x = x + self.features(features)
        rank = torch.arange(x.shape[1], device=x.device)[None]
        if is_real is not None:
            rank = (is_real.long().cumsum(1) - 1).clamp(min=0)
        return x + sinusoid(rank, x.shape[-1]).to(x.dtype)


class MapformerForForecasting(MapformerPreTrainedModel):
    """Informer with any mechanism: `encoder_layers`, and `layers` with `cross`; sizes: config.input."""

    main_input_name = "values"

    def __init__(self, config: MapformerConfig) -> None:
        super().__init__(config)
        options = input_options(config.input or {"kind": "text"})
        require(
            isinstance(options, SeriesInput) and config.encoder_layers is not None and config.causal,
            f"MapformerForForecasting: input must be of kind series, encoder_layers given and causal True, "
            f"got input={config.input}; see the preset forecast",
        )
        assert isinstance(options, SeriesInput)
        assert config.encoder_layers is not None
        require(
            all("cross" in layer for layer in config.layers),
            "MapformerForForecasting: layers must name their cross attention, got one that does not; add "
            "cross: full",
        )
        self.options = options
        dim, count = config.hidden_size, len(config.encoder_layers)
        drawn = seeds(config.initializer_seed, 1 + count + len(config.layers))
        generator = torch.Generator().manual_seed(drawn[0])
        self.embed_history = SeriesEmbedding(options, dim, generator)
        self.embed_future = SeriesEmbedding(options, dim, generator)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.encoder = nn.ModuleList(
            MapformerLayer(build_block(config, layer, seed, causal=False))
            for layer, seed in zip(config.encoder_layers, drawn[1:], strict=False)
        )
        self.distilling = nn.ModuleList(
            Distilling(dim, generator) for _ in range(count - 1 if options.distil else 0)
        )
        self.decoder = nn.ModuleList(
            MapformerLayer(build_block(config, layer, seed, causal=True))
            for layer, seed in zip(config.layers, drawn[1 + count :], strict=True)
        )
        self.encoder_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project = linear(dim, options.outputs, generator, bias=True)
        self.policy_baseline = baseline_for(self)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        values: Tensor,
        features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MapformerForecastOutput:
        """The forecast [B, horizon, outputs].

        values          [B, n, channels] the history, n at most `context`
        features        [B, n + horizon, features] of its steps and of those to come
        attention_mask  [B, n] 1 = known; unknown steps may stand on either side
        labels          [B, horizon, outputs]; the loss is the mean squared error
        """
        horizon = self.options.horizon
        self._check(values, features)
        past = None if features is None else features[:, :-horizon]
        values, past, real = _to_the_end(values, past, attention_mask)
        if features is not None and past is not None:
            features = torch.cat([past, features[:, -horizon:]], 1)
        context, context_real, carry = self._encode(values, past, real)
        carry = Carry(context=context, context_is_real=context_real, losses=carry.losses)
        known = min(self.options.known, values.shape[1])
        x = F.pad(values[:, values.shape[1] - known :], (0, 0, 0, horizon))
        later = None if features is None else features[:, -(known + horizon) :]
        if real is not None:
            real = F.pad(real[:, values.shape[1] - known :], (0, horizon), value=True)
        carry = replace(carry, key_is_real=real)
        x = self.dropout(self.embed_future(x, later, real))
        for layer in self.decoder:
            x, carry = layer(x, carry)
        forecast = self.project(self.norm(x[:, -horizon:]))
        losses, loss = dict(carry.losses), None
        if labels is not None:
            losses = {"task": F.mse_loss(forecast, labels), **losses}
            loss = self.weighted(losses["task"], losses)
        return MapformerForecastOutput(loss=loss, logits=forecast, losses=losses or None)

    def _encode(
        self, values: Tensor, features: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Carry]:
        """What the decoder reads: half as long after each layer but the last, where layers distil."""
        x = self.dropout(self.embed_history(values, features, real))
        carry = Carry(key_is_real=real)
        for number, layer in enumerate(self.encoder):
            x, carry = layer(x, carry)
            if number < len(self.distilling):
                x, real = self.distilling[number](x, real)
                carry = Carry(key_is_real=real, losses=carry.losses)
        return self.encoder_norm(x), real, carry

    def _check(self, values: Tensor, features: Tensor | None) -> None:
        options = self.options
        require(
            values.dim() == 3 and values.shape[2] == options.channels and values.shape[1] <= options.context,
            f"model: values must have shape [batch, at most {options.context}, {options.channels}], got "
            f"{tuple(values.shape)}; cut the history to the context",
        )
        wanted = (*values.shape[:1], values.shape[1] + options.horizon, options.features)
        got = None if features is None else tuple(features.shape)
        require(
            got == (wanted if options.features else None),
            f"model: features must have shape {wanted}, those of history and horizon, got {got}; pass them "
            "(or set features=0 in config.input)",
        )


def _to_the_end(
    values: Tensor, features: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The known steps in their order at the end, the unknown ones before them as zeros."""
    if mask is None or bool((mask != 0).all()):
        return values, features, None
    require(
        tuple(mask.shape) == tuple(values.shape[:2]),
        f"model: attention_mask must have shape {tuple(values.shape[:2])}, got {tuple(mask.shape)}; one "
        "entry for each step",
    )
    order = (mask != 0).long().argsort(dim=1, stable=True)[..., None]  # unknown steps first
    real = (mask != 0).gather(1, order[..., 0])
    values = values.gather(1, order.expand_as(values)).masked_fill(~real.unsqueeze(-1), 0.0)
    if features is not None:
        features = features.gather(1, order.expand_as(features))
    return values, features, real
