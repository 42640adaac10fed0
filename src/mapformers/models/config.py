"""The configuration of all Mapformers models: the sizes, and one entry per layer."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import field
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from mapformers.blocks.feed_forward import ACTIVATIONS
from mapformers.blocks.transformer import NORMS
from mapformers.catalog import head_loss_weights, loss_names, policy_names
from mapformers.core.errors import require, require_known
from mapformers.models.adapters.options import input_options
from mapformers.models.layers import LAYER_KEYS, PORTS, build_block
from mapformers.models.strict import refuse_unknown, require_positive, require_shares, with_one_error_type

POOLINGS = ("mean", "last")
POSITIONS = ("none", "sinusoidal", "axial")


@with_one_error_type
@strict
class MapformerConfig(PreTrainedConfig):
    """Sizes of a model and its layers.

    layers                   one dict per layer: `attention`, a spec such as "routing(clusters=8):4 + band:4",
                             and if wanted the other ports `score`, `project`, `merge`; or a whole `block`,
                             such as "luna(length=16)"; and `rotary` where a layer differs from the rest
    encoder_layers           of an encoder-decoder, whose `layers` then name their `cross` attention as well
    intermediate_size        of the feed-forward network; None = 4 hidden_size
    embedding_size           of the token embeddings, projected to hidden_size; None = hidden_size
    max_position_embeddings  the length the model is trained at; not a limit
    input                    adapter of pictures, sound or points for classes, such as
                             {kind: grid, shape: [8, 8]}; None = tokens
    pooling                  of a classifier: the mean of the real tokens, or the last of them
    positions                added to the embeddings: none; sinusoidal, for layers without rotary ones; axial,
                             learned rows, columns and channels of image_shape = [height, width, channels]
    initializer_seed         all weights are drawn from a generator with this seed
    auxiliary_weights        weight of each auxiliary loss in the loss of training

    Raises MapformersError for unknown fields (with the nearest names), for sizes that do not fit each other,
    and for any layer that cannot be built.
    """

    model_type = "mapformer"
    keys_to_ignore_at_inference = ["past_key_values", "losses"]  # noqa: RUF012  Trainer adds a list to it

    vocab_size: int = 256
    hidden_size: int = 512
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    activation: str = "gelu"
    norm: str = "pre"
    layers: list[dict[str, Any]] = field(
        default_factory=lambda: [{"attention": "band(window=128)"} for _ in range(4)]
    )
    encoder_layers: list[dict[str, Any]] | None = None
    causal: bool = True
    rotary: bool = True
    pooling: str = "mean"
    positions: str = "none"
    image_shape: list[int] | None = None
    rotary_base: float | int = 10000.0
    residual_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    embedding_size: int | None = None
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 2048
    input: dict[str, Any] | None = None
    initializer_seed: int = 0
    auxiliary_weights: dict[str, float | int] = field(
        default_factory=lambda: {"commitment": 1e-4, "edges": 1.0, "span": 2e-6, **head_loss_weights()}
    )
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_unknown(kwargs)
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_choices()
        self._check_layers("layers", self.layers)
        if self.encoder_layers is not None:
            self.is_encoder_decoder = True
            self._check_layers("encoder_layers", self.encoder_layers)

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers, under the name transformers asks for."""
        return len(self.layers)

    @property
    def feed_forward_size(self) -> int:
        """Width of the feed-forward network."""
        return 4 * self.hidden_size if self.intermediate_size is None else self.intermediate_size

    @property
    def token_size(self) -> int:
        """Width of the token embeddings."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    def _check_unknown(self, given: dict[str, Any]) -> None:
        require(
            "num_hidden_layers" not in given,
            f"config: num_hidden_layers follows from layers, got {given.get('num_hidden_layers')!r}; "
            "give one entry of layers per layer",
        )
        refuse_unknown(self, given)

    def _check_sizes(self) -> None:
        require_positive(self, "vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings")
        require_positive(self, "rotary_base", "num_key_value_heads", "head_dim", "intermediate_size")
        require_positive(self, "embedding_size")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        require(
            self.head_dim is not None or self.hidden_size % heads == 0,
            f"config: hidden_size must be a multiple of num_attention_heads={heads}, got {self.hidden_size}; "
            "change one of them or give head_dim",
        )
        require(
            heads % kv_heads == 0,
            f"config: num_attention_heads must be a multiple of num_key_value_heads={kv_heads}, got {heads}; "
            "change one of them",
        )
        head_dim = self.head_dim or self.hidden_size // heads
        require(
            not self.rotary or head_dim % 2 == 0,
            f"config: rotary positions need an even head size, got {head_dim}; give head_dim or rotary=False",
        )
        require(
            self.initializer_seed >= 0,
            f"config: initializer_seed must be 0 or more, got {self.initializer_seed}; use 0",
        )

    def _check_choices(self) -> None:
        if self.input is not None:
            input_options(self.input)
        require_known("config", "activation", self.activation, ACTIVATIONS)
        require_known("config", "norm", self.norm, NORMS)
        require_known("config", "pooling", self.pooling, POOLINGS)
        require_known("config", "positions", self.positions, POSITIONS)
        shape = self.image_shape
        require(
            (self.positions == "axial") == (shape is not None),
            f"config: image_shape goes with positions=axial, got {shape} and {self.positions}; give both",
        )
        require(
            shape is None or (len(shape) == 3 and min(shape) >= 1),
            f"config: image_shape must be [height, width, channels], got {shape}; give three sizes",
        )
        require_shares(self, "residual_dropout", "attention_dropout", "embedding_dropout")
        for name, weight in self.auxiliary_weights.items():
            require_known("config", "auxiliary loss", name, (*loss_names(), *policy_names()))
            require(
                math.isfinite(weight) and weight >= 0,
                f"config: auxiliary_weights[{name!r}] must be finite and 0 or more, got {weight}; use 0.0",
            )

    def stack(self, **changes: Any) -> "MapformerConfig":
        """The config of one stack of an encoder-decoder: without encoder layers, and with these changes."""
        own = {name: getattr(self, name) for name in MapformerConfig.__annotations__}
        return MapformerConfig(**{**own, "encoder_layers": None, **changes})

    def _check_layers(self, name: str, layers: list[dict[str, Any]]) -> None:
        """Each layer must be one that can be built: it is, without memory."""
        require(
            len(layers) > 0,
            f"config: {name} must hold at least one layer, got none; add {{'attention': 'full'}}",
        )
        for index, layer in enumerate(layers):
            for key in layer:
                require_known(f"config: {name}[{index}]", "key", key, LAYER_KEYS)
            named = [key for key in ("attention", "block") if isinstance(layer.get(key), str)]
            require(
                len(named) == 1,
                f"config: {name}[{index}] must name its attention or its block, got {layer!r}; "
                "add 'attention': 'full'",
            )
            ports = [key for key in PORTS if key in layer]
            require(
                "block" not in layer or not ports,
                f"config: {name}[{index}]: {ports} go with an attention, got a block; say it in its options",
            )
            rotary = layer.get("rotary", True)
            require(
                isinstance(rotary, bool),
                f"config: {name}[{index}]: rotary must be true or false, got {rotary!r}; leave it out",
            )
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when the model is built
            causal = self.causal and name == "layers"
            for layer in _distinct(layers):
                build_block(self, layer, seed=0, causal=causal)


def _distinct(layers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers without repetitions."""
    result: list[dict[str, Any]] = []
    for layer in layers:
        if layer not in result:
            result.append(layer)
    return result
