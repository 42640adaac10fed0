"""The configuration of Perceiver and Perceiver IO."""

from dataclasses import field
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from mapformers.blocks.read import ReadSizes
from mapformers.core.errors import require, require_known
from mapformers.models.adapters.options import input_options, output_options
from mapformers.models.strict import refuse_unknown, require_positive, require_shares, with_one_error_type

READS = ("each", "first")
SHARED_READS = ("none", "later", "all")


@with_one_error_type
@strict
class PerceiverConfig(PreTrainedConfig):
    """Sizes of a Perceiver.

    input             adapter, such as {kind: grid, shape: [28, 28], channels: 1, bands: 32}
    output            adapter, such as {kind: classes}; the number of classes is num_labels
    latents           number of latents, latent_size their width
    blocks            blocks of `depth` self-attention layers over the latents
    reads             each = the input is read before each block, first = before the first one only
    share_reads       none, later = all but the first are one, all
    share_blocks      all blocks are one
    read_heads, read_qk, read_v      of the reads; widths of all heads together, None = width of the input
    latent_heads, latent_qk, latent_v  of the latent layers; None = latent_size
    latent_attention  spec of the latent layers instead, such as "routing(clusters=8)"
    widening          units of each feed-forward, as a multiple of its width
    initializer_seed  all weights are drawn from a generator with this seed

    Raises MapformersError for unknown fields and for sizes that do not fit each other.
    """

    model_type = "mapformer_perceiver"

    input: dict[str, Any] = field(default_factory=lambda: {"kind": "grid"})
    output: dict[str, Any] = field(default_factory=lambda: {"kind": "classes"})
    latents: int = 64
    latent_size: int = 128
    blocks: int = 2
    depth: int = 3
    reads: str = "each"
    share_reads: str = "later"
    share_blocks: bool = True
    read_heads: int = 1
    read_qk: int | None = None
    read_v: int | None = None
    latent_heads: int = 8
    latent_qk: int | None = None
    latent_v: int | None = None
    latent_attention: str | None = None
    widening: int = 1
    dropout: float | int = 0.0
    norm_eps: float = 1e-5
    initializer_seed: int = 0
    auxiliary_weights: dict[str, float | int] = field(default_factory=lambda: {"commitment": 1e-4})

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_unknown(self, kwargs)
        super().__post_init__(**kwargs)
        require_positive(self, "latents", "latent_size", "blocks", "depth", "widening", "norm_eps")
        require_positive(self, "read_heads", "read_qk", "read_v", "latent_heads", "latent_qk", "latent_v")
        require_shares(self, "dropout")
        require_known("config", "reads", self.reads, READS)
        require_known("config", "share_reads", self.share_reads, SHARED_READS)
        require(
            self.initializer_seed >= 0,
            f"config: initializer_seed must be 0 or more, got {self.initializer_seed}; use 0",
        )
        input_options(self.input)
        output_options(self.output)
        self.latent_sizes()
        if self.latent_attention is not None:
            from mapformers.build import attention

            with torch.device("meta"):
                attention(self.latent_attention, self.latent_size, self.latent_heads)

    @property
    def hidden_size(self) -> int:
        """Width of the latents, under the name transformers asks for."""
        return self.latent_size

    def read_sizes(self, channels: int) -> ReadSizes:
        """The widths of a read of an array [B, M, channels]."""
        return ReadSizes(
            self.latent_size,
            channels,
            self.read_heads,
            self.read_qk or channels,
            self.read_v or self.read_qk or channels,
            self.widening * self.latent_size,
            self.dropout,
            self.norm_eps,
        )

    def latent_sizes(self) -> ReadSizes:
        """The widths of a latent layer."""
        return ReadSizes(
            self.latent_size,
            0,
            self.latent_heads,
            self.latent_qk or self.latent_size,
            self.latent_v or self.latent_qk or self.latent_size,
            self.widening * self.latent_size,
            self.dropout,
            self.norm_eps,
        )
