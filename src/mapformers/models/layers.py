"""From one entry of a config's `layers` to its block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.blocks.base import Block
from mapformers.blocks.decoder import DecoderBlock
from mapformers.blocks.transformer import TransformerBlock, TransformerConfig
from mapformers.build import attention, block

if TYPE_CHECKING:
    from mapformers.models.config import MapformerConfig

PORTS = ("score", "project", "merge", "loss")
LAYER_KEYS = ("attention", *PORTS, "rotary", "block", "cross")


def build_block(
    config: MapformerConfig, layer: dict[str, Any], seed: int, causal: bool | None = None
) -> Block:
    """The block of one entry of `config.layers`, its weights drawn from a generator with this seed.

    An entry names its `attention`, and is a transformer block then, with `cross` a decoder block that reads a
    context; or it names a whole `block` of the catalogue.
    causal   None = as the config says

    Raises MapformersError where the entry names something unknown or does not fit the sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    causal = config.causal if causal is None else causal
    rotary = layer.get("rotary", config.rotary)
    if "block" in layer:
        return block(
            layer["block"],
            config.hidden_size,
            config.num_attention_heads,
            causal=causal,
            rotary=rotary,
            head_dim=config.head_dim,
            seed=generator,
        )
    attended = attention(
        layer["attention"],
        config.hidden_size,
        config.num_attention_heads,
        causal=causal,
        rotary=rotary,
        rotary_base=config.rotary_base,
        head_dim=config.head_dim,
        kv_heads=config.num_key_value_heads,
        dropout=config.attention_dropout,
        seed=generator,
        **{port: layer.get(port) for port in PORTS},
    )
    options = TransformerConfig(
        attention=layer["attention"],
        norm=config.norm,  # type: ignore[arg-type]
        activation=config.activation,  # type: ignore[arg-type]
        hidden=config.feed_forward_size,
        dropout=config.residual_dropout,
    )
    if "cross" not in layer:
        return TransformerBlock(options, attended, generator)
    return DecoderBlock(options, attended, _cross(config, layer["cross"], generator), generator)


def _cross(config: MapformerConfig, text: str, generator: torch.Generator) -> MultiHeadAttention:
    """The attention to a context."""
    return attention(
        text,
        config.hidden_size,
        config.num_attention_heads,
        head_dim=config.head_dim,
        dropout=config.attention_dropout,
        seed=generator,
    )


def seeds(seed: int, count: int) -> list[int]:
    """Independent seeds derived from one."""
    generator = torch.Generator().manual_seed(seed)
    numbers: list[int] = torch.randint(2**31, (count,), generator=generator, device="cpu").tolist()
    return numbers
