"""Perceiver AR: the last tokens are latents that read the whole past once, then attend to each other.

Paper    Hawthorne, Jaegle, Cangea, Borgeaud, Nash, Malinowski, Dieleman, Vinyals, Botvinick, Simon, Sheahan,
         Zeghidour, Alayrac, Carreira, Engel 2022, "General-purpose, long-context autoregressive modeling with
         Perceiver AR", ICML, arXiv 2202.07765
Formula  h_i = first layer: x_i reads all x_j, j <= i; then `layers` over the latents h_s .. h_{s+N-1}
Cost     time O(N M + L N^2) for N latents of M tokens
Differs  The first layer is a pre-norm block with one norm for queries and keys; all of a head's channels are
         rotated (the paper: half). Latents of a fixed window decode exactly. When the window is full it moves
         on by `stride`, and what stays in it is computed anew: outputs of all tokens, in evaluation and in
         decoding, are those of these windows, so decode = forward at any length. The official code slides by
         one token and keeps latents that saw older windows, which no forward repeats.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerationMixin  # transformers looks for it among the bases
from transformers.utils.generic import can_return_tuple

from mapformers.blocks.dropout import draw_seed
from mapformers.blocks.transformer import TransformerBlock
from mapformers.core.carry import Carry, added
from mapformers.core.draw import linear, normal
from mapformers.core.errors import require
from mapformers.models.causal_lm import MapformerCausalLMOutput, next_token_loss
from mapformers.models.generation import MapformerGeneration
from mapformers.models.layers import build_block, seeds
from mapformers.models.losses import IGNORED, baseline_for
from mapformers.models.perceiver_ar.cache import PerceiverARCache
from mapformers.models.perceiver_ar.config import PerceiverARConfig
from mapformers.models.pretrained import EMBEDDING_SCALE, PreTrainedBase
from mapformers.models.stack import MapformerLayer


class PerceiverARForCausalLM(PreTrainedBase, MapformerGeneration, GenerationMixin):
    """A causal language model with a long context and a short deep part."""

    config_class = PerceiverARConfig
    config: PerceiverARConfig
    base_model_prefix = "layers"
    main_input_name = "input_ids"
    _layer_class = MapformerLayer
    _no_split_modules = ["MapformerLayer"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__(config)
        first, second, *rest = seeds(config.initializer_seed, 2 + len(config.layers))
        generator = torch.Generator().manual_seed(first)
        width = config.token_size
        weight = normal((config.vocab_size, width), generator, EMBEDDING_SCALE)
        self.embed_tokens = nn.Embedding(config.vocab_size, width, _weight=weight)
        same = width == config.hidden_size
        self.embed_projection = nn.Identity() if same else linear(width, config.hidden_size, generator)
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.first = MapformerLayer(build_block(config, {"attention": "full"}, second))
        self.layers = nn.ModuleList(
            MapformerLayer(build_block(config, layer, seed))
            for layer, seed in zip(config.layers, rest, strict=True)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head_projection = nn.Identity() if same else linear(config.hidden_size, width, generator)
        self.lm_head = linear(width, config.vocab_size, generator)
        self.policy_baseline = baseline_for(self)
        self.post_init()

    def get_decoder(self) -> PerceiverARForCausalLM:
        """Itself: generate() asks it for a cache."""
        return self

    def new_cache(self) -> PerceiverARCache:
        """An empty decode state."""
        return PerceiverARCache(1 + len(self.layers))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: PerceiverARCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> MapformerCausalLMOutput:
        """Logits of the next token after each of [B, M]; in training only after the last `latents` of them.

        attention_mask  [B, M] 1 = real, padding on any side; None with a cache, which takes whole rows alone
        labels          [B, M] the input ids again, -100 does not count
        logits_to_keep  0 = all, n = the last n
        """
        require(
            input_ids is not None and input_ids.dim() == 2 and input_ids.shape[1] > 0,
            "perceiver_ar: input_ids must have shape (batch, tokens) with a token at least, got others; "
            "begin with a prompt",
        )
        assert input_ids is not None
        real = _real(attention_mask)
        x = self.embed_dropout(self.embed_projection(self.embed_tokens(input_ids)))
        if use_cache and past_key_values is None:
            past_key_values = self.new_cache()
        if past_key_values is not None:
            require(
                real is None,
                "perceiver_ar: decoding takes rows without padding, got some; decode rows of one length",
            )
            hidden = self._step(x, past_key_values, logits_to_keep)
            return MapformerCausalLMOutput(logits=self._logits(hidden), past_key_values=past_key_values)
        if self.training:
            return self._train(x, real, labels)
        hidden, carry = self._all_windows(x, real)
        logits = self._logits(hidden)
        loss = None if labels is None else next_token_loss(logits, labels)
        losses = None if loss is None else {"next_token": loss, **carry.losses}
        return MapformerCausalLMOutput(loss=loss, logits=logits[:, -logits_to_keep:], losses=losses)

    def _train(self, x: Tensor, real: Tensor | None, labels: Tensor | None) -> MapformerCausalLMOutput:
        """One window over the last tokens of each row."""
        if real is not None:  # real tokens to the end, so that the last columns are those of every row
            order = real.long().argsort(dim=1, stable=True)
            x, real = _ordered(x, order), real.gather(1, order)
            labels = None if labels is None else labels.gather(1, order).masked_fill(~real, IGNORED)
        start = max(0, x.shape[1] - self.config.latents)
        z, seen = self._read(x, start, real, drop=True)
        hidden, carry = self._deepen(z, seen)
        logits = self._logits(hidden)
        if labels is None:
            return MapformerCausalLMOutput(logits=logits, losses=dict(carry.losses) or None)
        losses = {"next_token": next_token_loss(logits, labels[:, start:]), **carry.losses}
        loss = self.weighted(losses["next_token"], losses)
        return MapformerCausalLMOutput(loss=loss, logits=logits, losses=losses)

    def _all_windows(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Carry]:
        """Hidden states [B, M, dim] of all tokens, window after window."""
        order = None
        if real is not None:  # real tokens to the front: windows count them alone
            order = (~real).long().argsort(dim=1, stable=True)
            x, real = _ordered(x, order), real.gather(1, order)
        z, _ = self._read(x, 0, real)
        parts, losses, done = [], {}, 0
        for start in self.config.window_starts(x.shape[1]):
            end = min(start + self.config.latents, x.shape[1])
            seen = None if real is None else real[:, start:end]
            hidden, carry = self._deepen(z[:, start:end], seen)
            parts.append(hidden[:, done - start :])
            losses, done = added(losses, carry.losses), end
        hidden = torch.cat(parts, 1)
        if order is not None:
            hidden = torch.zeros_like(hidden).scatter(1, order[..., None].expand_as(hidden), hidden)
        return hidden, Carry(losses=losses)

    def _step(self, x: Tensor, cache: PerceiverARCache, keep: int) -> Tensor:
        """Hidden states of the next tokens x [B, n, dim]; with keep > 0 at least of the last `keep`."""
        batch, new, _ = x.shape
        cache.check_batch(batch)
        t, outputs, config = cache.get_seq_length(), [], self.config
        starts = config.window_starts(t + new)
        if keep and t == 0 and starts[-1] + config.latents - new <= config.latents - keep:
            # Nobody asks for what lies before the last window: its keys are enough.
            self._remember(x[:, : starts[-1]], cache)
            x, t = x[:, starts[-1] :], starts[-1]
            cache.open_window(starts[-1])
        while x.shape[1]:
            if t - cache.start == config.latents:
                cache.open_window(cache.start + config.moves_by)
                assert cache.recent is not None
                held = t - cache.start
                if held:
                    self._advance(cache.recent[:, cache.recent.shape[1] - held :], cache)
            take = min(x.shape[1], cache.start + config.latents - t)
            z = self._step_first(x[:, :take], cache)
            cache.keep(z, config.latents)
            outputs.append(self._advance(z, cache))
            x, t = x[:, take:], t + take
        cache.advance(None, batch, new, x.device)
        return torch.cat(outputs, 1)

    def _block(self) -> TransformerBlock:
        block = self.first.block
        assert isinstance(block, TransformerBlock)
        return block

    def _read(
        self, x: Tensor, start: int, real: Tensor | None, drop: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The first layer's outputs for the tokens from `start` on, and which of them are real."""
        block, seen = self._block(), real
        y, positions = block.attention_norm(x), None
        latents_real = None if real is None else real[:, start:]
        share = self.config.prefix_dropout if drop else 0.0
        if share and self.config.prefix_dropout_form == "shorten" and start:
            kept = _some(x.shape[0], start, start - int(share * start), x.device)  # [B, kept] in order
            rows = torch.cat([kept, torch.arange(start, x.shape[1], device=x.device).expand(len(x), -1)], 1)
            positions = rows
            y = _ordered(y, rows)
            seen = None if seen is None else seen.gather(1, rows)
        elif share and self.config.prefix_dropout_form == "mask":
            shown = _uniform(x.shape[:2], x.device) >= share
            seen = shown if seen is None else seen & shown
        carry = Carry(key_is_real=seen, positions=positions)
        result = block.attention.attend_last(y, y.shape[1] - (x.shape[1] - start), carry)
        return block._finish(x[:, start:], result.output), latents_real

    def _deepen(self, z: Tensor, real: Tensor | None) -> tuple[Tensor, Carry]:
        carry = Carry(key_is_real=None if real is None or bool(real.all()) else real)
        for layer in self.layers:
            z, carry = layer(z, carry)
        return z, carry

    def _advance(self, z: Tensor, cache: PerceiverARCache) -> Tensor:
        carry = Carry()
        for layer, slot in zip(self.layers, cache.layers[1:], strict=True):
            state = layer.block.init_state(z.shape[0]) if slot.state is None else slot.state
            z, carry, slot.state = layer.block.step(z, dataclasses.replace(carry, losses={}), state)
        return z

    def _step_first(self, x: Tensor, cache: PerceiverARCache) -> Tensor:
        slot = cache.layers[0]
        state = self._block().init_state(x.shape[0]) if slot.state is None else slot.state
        z, _, slot.state = self._block().step(x, Carry(), state)
        return z

    def _remember(self, x: Tensor, cache: PerceiverARCache) -> None:
        """Keys and values of tokens that are read only."""
        if x.shape[1]:
            block, slot = self._block(), cache.layers[0]
            slot.state = block.attention.remember(block.attention_norm(x), block.init_state(x.shape[0]))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.head_projection(self.norm(hidden)))


def _real(mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    real = mask != 0
    return None if bool(real.all()) else real


def _ordered(x: Tensor, order: Tensor) -> Tensor:
    """Rows [B, n, dim] of x in another order [B, m]."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def _uniform(shape: Any, device: torch.device) -> Tensor:
    """From a seed of the generator that dropout draws from as well."""
    return torch.rand(tuple(shape), generator=torch.Generator(device).manual_seed(draw_seed()), device=device)


def _some(batch: int, total: int, count: int, device: torch.device) -> Tensor:
    """[batch, count] different numbers below `total`, in order."""
    return _uniform((batch, total), device).argsort(1)[:, :count].sort(1).values
