"""The encoder of all Perceivers: latents that read an array again and again.

Paper    Jaegle et al. 2021, "Perceiver", arXiv 2103.03206, section 3 and appendix
Formula  z <- read(z, x), then `depth` self-attention layers over z, `blocks` times; reads and blocks may be
         one and the same module each time
Differs  Reads are computed in portions of the array (see blocks/read.py), so memory does not grow as M x N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mapformers.blocks.read import Read
from mapformers.blocks.transformer import TransformerBlock, TransformerConfig
from mapformers.build import attention
from mapformers.core.carry import Carry
from mapformers.core.draw import normal
from mapformers.models.perceiver.config import PerceiverConfig

SCALE = 0.02  # standard deviation of the first latents


class PerceiverLayer(GradientCheckpointingLayer):
    """A latent layer: recomputed in the backward when activation checkpointing is on."""

    def __init__(self, config: PerceiverConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.layer: Read | TransformerBlock
        if config.latent_attention is None:
            self.layer = Read(config.latent_sizes(), generator)
            return
        attended = attention(config.latent_attention, config.latent_size, config.latent_heads, seed=generator)
        options = TransformerConfig(
            attention=config.latent_attention,
            hidden=config.widening * config.latent_size,
            dropout=config.dropout,
        )
        self.layer = TransformerBlock(options, attended, generator)

    def forward(self, z: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Latents z [B, N, latent_size] through the layer."""
        return (self.layer(z), carry) if isinstance(self.layer, Read) else self.layer(z, carry)


class PerceiverEncoder(nn.Module):
    """An array [B, M, channels] to latents [B, latents, latent_size]."""

    def __init__(self, config: PerceiverConfig, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(normal((config.latents, config.latent_size), generator, SCALE))
        count = config.blocks if config.reads == "each" else 1
        own = {"none": count, "later": min(count, 2), "all": 1}[config.share_reads]
        sizes = config.read_sizes(channels)
        self.reads = nn.ModuleList(Read(sizes, generator) for _ in range(own))
        self.blocks = nn.ModuleList(
            nn.ModuleList(PerceiverLayer(config, generator) for _ in range(config.depth))
            for _ in range(1 if config.share_blocks else config.blocks)
        )

    def forward(
        self, array: Tensor, is_real: Tensor | None = None, portion: int | None = None
    ) -> tuple[Tensor, Carry]:
        """Latents and the carry with their auxiliary losses. is_real [B, M] bool; portion as in Read."""
        z = self.latents.to(array.dtype).expand(array.shape[0], -1, -1)
        carry = Carry()
        for number in range(self.config.blocks):
            if number == 0 or self.config.reads == "each":
                read = self.reads[min(number, len(self.reads) - 1)]
                z = read(z, array, is_real, portion)
            for layer in self.blocks[min(number, len(self.blocks) - 1)]:
                z, carry = layer(z, carry)
        return z, carry
