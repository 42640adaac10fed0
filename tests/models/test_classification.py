"""Sequence classification: the mean of real tokens, adapters, padding, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import mapformers.hub  # noqa: F401  registers the classes
from mapformers import MapformersError
from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.classification import MapformerForSequenceClassification
from tests.tolerances import assert_close

from .tiny import MIXED, config_of, tokens

LAYERS = [
    *MIXED,
    {"attention": "performer(features=16)", "rotary": False},
    {"attention": "longformer(window=4, global_tokens=1)"},
]
GRID = {"kind": "grid", "shape": [4, 3], "channels": 2, "bands": 2}


def model_of(**fields: Any) -> Any:
    fields = {"layers": LAYERS, "causal": False, "num_labels": 3, **fields}
    return MapformerForSequenceClassification(config_of(**fields)).double().eval()


def test_the_logits_are_those_of_the_mean() -> None:
    model, ids = model_of(), tokens(2, 9)
    hidden = model.model(ids).last_hidden_state
    assert_close(model(ids).logits, model.classify(hidden.mean(1)), "rounding")


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_mates_do_not_matter(side: str, pooling: str) -> None:
    model, short, long = model_of(pooling=pooling), tokens(1, 7), tokens(1, 12, seed=1)
    filler = torch.full((1, 5), 3)
    row = torch.cat([filler, short] if side == "left" else [short, filler], 1)
    real = torch.ones(1, 12, dtype=torch.long)
    real[:, :5] = 0 if side == "left" else 1
    real[:, 7:] = 0 if side == "right" else 1
    together = model(torch.cat([row, long]), torch.cat([real, torch.ones(1, 12, dtype=torch.long)])).logits
    assert_close(together[:1], model(short).logits, "parity")
    assert_close(together[1:], model(long).logits, "parity")


def test_the_last_token_may_speak_for_all() -> None:
    model, ids = model_of(pooling="last"), tokens(2, 9)
    hidden = model.model(ids).last_hidden_state
    assert_close(model(ids).logits, model.classify(hidden[:, -1]), "rounding")
    nothing = model(ids, torch.zeros(2, 9, dtype=torch.long)).logits
    assert_close(nothing, model.classify.bias.expand(2, -1), "rounding")


def test_pictures_through_an_adapter(tmp_path: Path) -> None:
    model = model_of(input=GRID, layers=[{"attention": "routing(clusters=2, window=4)"}]).float()
    images = torch.rand(2, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    made = model(inputs=images, labels=torch.tensor([0, 2]))
    assert made.logits.shape == (2, 3)
    made.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again, MapformerForSequenceClassification)
    assert torch.equal(again(inputs=images).logits, model(inputs=images).logits)


def test_the_loss_in_training_adds_the_auxiliary_ones() -> None:
    model, ids = model_of(layers=MIXED, auxiliary_weights={"commitment": 0.5}), tokens(2, 9)
    model.train()
    made = model(ids, labels=torch.tensor([0, 1]))
    assert_close(made.loss, made.losses["task"] + 0.5 * made.losses["commitment"], "rounding")
    model.eval()
    made = model(ids, labels=torch.tensor([0, 1]))
    assert_close(made.loss, torch.nn.functional.cross_entropy(made.logits, torch.tensor([0, 1])), "rounding")


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(MapformersError, match="a language model reads tokens"):
        MapformerForCausalLM(config_of(input=GRID))
    model = model_of(input=GRID)
    with pytest.raises(MapformersError, match="inputs must be given"):
        model()
    with pytest.raises(MapformersError, match="takes what the adapter makes"):
        model.model(tokens(1, 4))
    with pytest.raises(MapformersError, match="one for each"):
        model_of()(tokens(2, 4), labels=torch.tensor([1]))
