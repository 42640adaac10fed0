"""The configuration of Perceiver AR."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict

from mapformers.core.errors import require, require_known
from mapformers.models.config import MapformerConfig
from mapformers.models.strict import with_one_error_type

DROPOUT_FORMS = ("mask", "shorten")


@with_one_error_type
@strict
class PerceiverARConfig(MapformerConfig):
    """Fields of MapformerConfig, whose `layers` run over the latents, and:

    latents              tokens at the end that are computed in depth; all earlier ones are read once
    stride               how far the latents move on when they are full; None = half of them
    prefix_dropout       share of the earlier tokens that are hidden in training
    prefix_dropout_form  mask = each key with this probability, latents' own too, as in the official code;
                         shorten = exactly this share of the prefix, whose keys are then not computed at all

    Raises MapformersError as MapformerConfig does.
    """

    model_type = "mapformer_perceiver_ar"

    layers: list[dict[str, Any]] = field(default_factory=lambda: [{"attention": "full"} for _ in range(4)])
    latents: int = 256
    stride: int | None = None
    prefix_dropout: float | int = 0.0
    prefix_dropout_form: str = "mask"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        require(self.latents >= 1, f"config: latents must be 1 or more, got {self.latents}; use 256")
        require(
            self.stride is None or 1 <= self.stride <= self.latents,
            f"config: stride must lie in 1..latents={self.latents}, got {self.stride}; leave it out",
        )
        require(
            0 <= self.prefix_dropout < 1,
            f"config: prefix_dropout must lie in [0, 1), got {self.prefix_dropout}; use 0.0 for none",
        )
        require_known("config", "prefix_dropout_form", self.prefix_dropout_form, DROPOUT_FORMS)
        require(
            self.causal and self.norm == "pre" and self.input is None and self.encoder_layers is None,
            "config: Perceiver AR must be causal, pre-norm and one stack over tokens, got others; drop them",
        )

    @property
    def moves_by(self) -> int:
        """How far the latents move on when they are full."""
        return max(1, self.latents // 2) if self.stride is None else self.stride

    def window_starts(self, length: int) -> list[int]:
        """The first latent of each window over `length` tokens. Of all but the first, only what no earlier
        window holds is used.
        """
        starts = [0]
        while starts[-1] + self.latents < length:
            starts.append(starts[-1] + self.moves_by)
        return starts
