"""The masked language model: hidden tokens from all the others (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from mapformers.core.draw import linear
from mapformers.core.errors import require
from mapformers.models.config import MapformerConfig
from mapformers.models.layers import seeds
from mapformers.models.losses import IGNORED, baseline_for, token_loss
from mapformers.models.stack import MapformerModel, MapformerPreTrainedModel


class MapformerForMaskedLM(MapformerPreTrainedModel):
    """A stack that sees everything, and logits by the embedding of the tokens."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MapformerConfig) -> None:
        super().__init__(config)
        require(
            not config.causal and config.input is None,
            "MapformerForMaskedLM: causal must be False and input None, got others; use MapformerForCausalLM",
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
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits [B, N, vocab_size] of tokens [B, N]; labels [B, N], -100 where nothing is asked."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            return_dict=True,
        )
        logits = self.lm_head(self.head_projection(out.last_hidden_state))
        losses, loss = dict(out.losses or {}), None
        if labels is not None:
            losses = {"task": token_loss(logits, labels), **losses}
            loss = self.weighted(losses["task"], losses)
        output = MaskedLMOutput(loss=loss, logits=logits)
        output["losses"] = losses or None
        return output


def mask_tokens(
    tokens: Tensor, mask_id: int, vocabulary: int, generator: torch.Generator, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """(inputs, labels) [B, N]: of `share` of the tokens 80 % become the mask, 10 % a random token, 10 % stay.

    labels are -100 where nothing is asked.
    """
    require(0 < share < 1, f"mask_tokens: share must lie in (0, 1), got {share}; use 0.15")
    device = generator.device
    draw = torch.rand(tokens.shape, generator=generator, device=device)
    other = torch.randint(vocabulary, tokens.shape, generator=generator, device=device)
    labels = tokens.masked_fill(draw >= share, IGNORED)
    inputs = torch.where(draw < 0.8 * share, torch.full_like(tokens, mask_id), tokens)
    return torch.where((draw >= 0.8 * share) & (draw < 0.9 * share), other, inputs), labels
