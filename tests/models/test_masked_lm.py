"""Masked language models."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

import mapformers.hub  # noqa: F401  registers the classes
from mapformers import MapformersError
from mapformers.models.masked_lm import MapformerForMaskedLM, mask_tokens
from tests.tolerances import assert_close

from .tiny import VOCABULARY, config_of, tokens

LAYERS = [
    {"attention": "bigbird(block=4, random=1)"},
    {"attention": "routing(clusters=3, window=4)"},
]


def model_of(**fields: object) -> MapformerForMaskedLM:
    return MapformerForMaskedLM(config_of(layers=LAYERS, causal=False, **fields)).double().eval()


def test_hidden_tokens_count_and_the_others_do_not(generator: torch.Generator) -> None:
    model, ids = model_of(), tokens(3, 20)
    inputs, labels = mask_tokens(ids, VOCABULARY - 1, VOCABULARY, generator)
    out = model(inputs, labels=labels)
    picked = labels != -100
    expected = torch.nn.functional.cross_entropy(out.logits[picked], ids[picked])
    assert_close(out.loss, expected, "parity")


def test_the_shares_of_masking(generator: torch.Generator) -> None:
    ids = torch.full((200, 200), 5)
    inputs, labels = mask_tokens(ids, 49, VOCABULARY, generator)
    asked = labels != -100
    assert abs(float(asked.double().mean()) - 0.15) < 0.01
    assert torch.equal(inputs[~asked], ids[~asked])
    assert abs(float((inputs[asked] == 49).double().mean()) - 0.8) < 0.02
    assert abs(float((inputs[asked] == 5).double().mean()) - 0.1) < 0.02
    assert torch.equal(labels[asked], ids[asked])


def test_both_sides_are_seen_and_padding_is_not() -> None:
    model, ids = model_of(), tokens(1, 12)
    changed = ids.clone()
    changed[0, 11] = (changed[0, 11] + 1) % VOCABULARY
    assert not torch.allclose(model(ids).logits[:, :4], model(changed).logits[:, :4])
    mask = torch.ones(1, 15, dtype=torch.long)
    mask[:, 12:] = 0
    padded = torch.cat([ids, tokens(1, 3, seed=2)], 1)
    assert_close(model(padded, mask).logits[:, :12], model(ids).logits, "parity")


def test_every_bit_comes_back(tmp_path: Path) -> None:
    model, ids = model_of().float(), tokens(2, 12)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(again, MapformerForMaskedLM)
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(MapformersError, match="causal must be False"):
        MapformerForMaskedLM(config_of())
    with pytest.raises(MapformersError, match="share must lie"):
        mask_tokens(ids, 1, 2, torch.Generator(), 1.0)
