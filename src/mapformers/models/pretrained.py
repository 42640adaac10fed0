"""What all models of the library share as transformers models: drawing, loading and saving of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mapformers.attention.multi_head import MultiHeadAttention
from mapformers.core.draw import normal
from mapformers.core.errors import require
from mapformers.core.policy import MovingBaseline
from mapformers.models.checkpoint import load_pretrained, staged
from mapformers.models.losses import training_loss

EMBEDDING_SCALE = 0.02  # standard deviation of token embeddings, as in GPT-2
WIDE_BUFFERS = r"kmeans\.(centroids|bias|share|drift)|policy_baseline\.mean"


class PreTrainedBase(PreTrainedModel):
    """Weights come from the config's `initializer_seed`; files are safetensors, whole or not there at all."""

    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer multiplies auxiliary losses by the accumulation steps
    _layer_class: ClassVar[type[nn.Module] | None] = None  # whose telemetry is that of a layer
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False
    _supports_context_parallel = False  # it would drop the pattern of every layer and train full attention
    _can_compile_fullgraph = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.policy_baseline: MovingBaseline | None = None  # of models whose mechanisms draw their choices

    def post_init(self) -> None:
        """Mark all weights as drawn, so that transformers does not draw them again; then its own."""
        for module in self.modules():
            module._is_hf_initialized = True
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights of modules that transformers makes later, such as embeddings resized for more tokens."""
        if isinstance(module, nn.Embedding | nn.Linear):
            generator = torch.Generator().manual_seed(self.config.initializer_seed)
            module.weight.copy_(normal(module.weight.shape, generator, EMBEDDING_SCALE))

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Called on loading: centroids stay float32 or wider, because 0.999 x 1 is 1 in bfloat16."""
        return {**super()._get_dtype_plan(dtype), WIDE_BUFFERS: torch.promote_types(dtype, torch.float32)}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers, from safetensors only.

        Raises MapformersError, naming the file and the remedy, when the checkpoint is missing, damaged, of
        another model, pickled, or does not hold exactly the weights of this one.
        """
        model_type = cls.config_class.model_type
        return load_pretrained(
            super().from_pretrained, model_type, pretrained_model_name_or_path, *model_args, **kwargs
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers, but each file is written elsewhere first and renamed when all are whole.

        Raises MapformersError when the folder cannot be written; what stood there before is then still there.
        """
        with staged(Path(save_directory)) as folder:
            super().save_pretrained(folder, *args, **kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute each block in the backward. Raises MapformersError for the reentrant form."""
        require(
            not (activation_checkpointing_kwargs or {}).get("use_reentrant", False),
            "model: activation checkpointing needs use_reentrant=False, got True; "
            "the reentrant form loses the gradients of auxiliary losses",
        )
        super().activation_checkpointing_enable(
            {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}, **options
        )

    def weighted(self, task: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
        """What is differentiated: the loss of the task [], in training with auxiliary `losses` by weight."""
        if not self.training:
            return task
        return training_loss(task, losses, self.config.auxiliary_weights, self.policy_baseline)

    def update_centroids(self) -> None:
        """Move the centroids of all routing layers. Call it after the optimiser step."""
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                module.update_centroids()

    def telemetry(self) -> list[dict[str, float]]:
        """Numbers about the state of each layer, one dict per layer, empty where there are none."""
        kind = self._layer_class
        layers = [] if kind is None else [module for module in self.modules() if isinstance(module, kind)]
        return [
            {
                name: value
                for attention in layer.modules()
                if isinstance(attention, MultiHeadAttention)
                for name, value in attention.telemetry().items()
            }
            for layer in layers
        ]
