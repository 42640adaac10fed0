"""Images as sequences of values in raster order, channels innermost, drawn one after the other.

Paper    Parmar et al. 2018, "Image Transformer", ICML, arXiv 1802.05751; axial positions: Kitaev et al. 2020,
         "Reformer", arXiv 2001.04451, section 6
Formula  tokens START, v_0 .. v_{n-1} with n = height width channels; place i predicts v_i and has the learned
         position row(i) + column(i) + channel(i)
"""

from __future__ import annotations

import torch
from torch import Tensor

from mapformers.core.errors import require
from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.config import MapformerConfig

LEVELS = 256  # values of a channel; the token behind them begins an image
START = LEVELS


class MapformerForImageGeneration(MapformerForCausalLM):
    """A language model over the values of images of one shape, with any causal mechanism."""

    def __init__(self, config: MapformerConfig) -> None:
        require(
            config.positions == "axial" and config.vocab_size == LEVELS + 1,
            f"MapformerForImageGeneration: positions must be axial and vocab_size {LEVELS + 1}, got "
            f"{config.positions} and {config.vocab_size}; set them, and image_shape",
        )
        super().__init__(config)

    def tokens_of(self, images: Tensor) -> Tensor:
        """Images [B, height, width, channels] of whole numbers 0 .. 255 to tokens [B, 1 + n]."""
        shape = self.config.image_shape
        require(
            list(images.shape[1:]) == shape,
            f"model: images must have shape [batch, {', '.join(map(str, shape or []))}], got "
            f"{tuple(images.shape)}; resize them",
        )
        values = images.long().flatten(1)
        return torch.cat([torch.full_like(values[:, :1], START), values], 1)

    @torch.no_grad()
    def draw(
        self, count: int, generator: torch.Generator, temperature: float = 1.0, given: Tensor | None = None
    ) -> Tensor:
        """[count, height, width, channels] images, value after value; temperature 0 = the likeliest.

        given  [m] int, the first values of every image; the rest is drawn
        """
        require(count >= 1, f"model: count must be 1 or more, got {count}; raise it")
        require(temperature >= 0, f"model: temperature must be 0 or more, got {temperature}; use 1")
        shape = self.config.image_shape or []
        total = int(torch.tensor(shape).prod())
        device = self.lm_head.weight.device
        values = torch.zeros(count, total, dtype=torch.long, device=device)
        known = 0 if given is None else len(given)
        if given is not None:
            values[:, :known] = given.to(device)
        tokens, cache = torch.full((count, 1), START, device=device), None
        for i in range(total):
            out = self(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[:, -1, :LEVELS].float()
            if i >= known and temperature == 0:
                values[:, i] = logits.argmax(-1)
            elif i >= known:
                share = (logits / temperature).softmax(-1).cpu()
                values[:, i] = torch.multinomial(share, 1, generator=generator)[:, 0].to(device)
            tokens = values[:, i : i + 1]
        return values.view(count, *shape)
