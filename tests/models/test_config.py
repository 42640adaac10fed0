"""The configuration says no at once, in one line, to whatever no model could be made of."""

import json
from typing import Any

import pytest
from transformers import PreTrainedConfig

from mapformers import MapformersError
from mapformers.models.config import MapformerConfig

from .tiny import config_of


def test_defaults_make_a_config() -> None:
    config = MapformerConfig()
    assert config.num_hidden_layers == len(config.layers)
    assert config.feed_forward_size == 4 * config.hidden_size
    assert config.token_size == config.hidden_size
    assert isinstance(config, PreTrainedConfig)


def test_defaults_are_not_shared() -> None:
    one, two = MapformerConfig(), MapformerConfig()
    one.layers[0]["attention"] = "full"
    one.auxiliary_weights["commitment"] = 1.0
    assert two.layers[0]["attention"] != "full"
    assert two.auxiliary_weights["commitment"] == 1e-4


def test_round_trip_through_json(tmp_path: Any) -> None:
    config = config_of(
        num_key_value_heads=2, embedding_size=16, auxiliary_weights={"commitment": 0.5}, rotary_base=500
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mapformer"
    again = MapformerConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hiden_size": 64}, "hidden_size"),
        ({"num_hidden_layers": 3}, "layers"),
        ({"model_type": "llama"}, "llama"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"hidden_size": 33}, "multiple of num_attention_heads=4"),
        ({"hidden_size": 0}, "above 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"hidden_size": 36}, "even head size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"activation": "gelo"}, "gelu"),
        ({"norm": "pro"}, "pre"),
        ({"residual_dropout": 1.0}, "residual_dropout"),
        ({"initializer_seed": -1}, "initializer_seed"),
        ({"auxiliary_weights": {"comitment": 1.0}}, "commitment"),
        ({"auxiliary_weights": {"commitment": -1.0}}, "0 or more"),
        ({"auxiliary_weights": {"commitment": float("nan")}}, "finite"),
        ({"layers": []}, "at least one layer"),
        ({"layers": [{}]}, "name its attention"),
        ({"layers": [{"attention": "full", "block": "luna"}]}, "attention or its block"),
        ({"layers": [{"block": "transformer", "score": "alibi"}]}, "go with an attention"),
        ({"layers": [{"block": "lunar"}]}, "luna"),
        ({"layers": [{"block": "star", "rotary": False}]}, "causal"),
        ({"layers": [{"atention": "full"}]}, "attention"),
        ({"layers": ["full"]}, "layers"),
        ({"layers": [{"attention": "bund(window=3)"}]}, "band"),
        ({"layers": [{"attention": "band(windoww=3)"}]}, "window"),
        ({"layers": [{"attention": "band(window=-3)"}]}, "window"),
        ({"layers": [{"attention": "routing(clusters=0)"}]}, "clusters"),
        ({"layers": [{"attention": "band:3 + full:3"}]}, "4"),
        ({"layers": [{"attention": "band("}]}, "bracket"),
        ({"layers": [{"attention": "linear"}]}, "rotary"),
        ({"layers": [{"attention": "full", "rotary": 1}]}, "rotary"),
        ({"layers": [{"attention": "linformer", "rotary": False}]}, "causal"),
        ({"layers": [{"attention": "full", "score": "alibo"}]}, "alibi"),
    ],
)
def test_bad_fields_are_named_in_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(MapformersError) as caught:
        config_of(**fields)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_transformers_adds_is_taken(tmp_path: Any) -> None:
    config = config_of(
        architectures=["MapformerForCausalLM"], dtype="float32", torch_dtype="float32", num_labels=3
    )
    config.use_cache = False
    config.pad_token_id = 0
    config.save_pretrained(tmp_path)
    again = MapformerConfig.from_pretrained(tmp_path)
    assert again.pad_token_id == 0
    assert not again.use_cache
