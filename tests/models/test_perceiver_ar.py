"""Perceiver AR: strictly causal, decode = forward with fixed and moving windows, padding, prefix dropout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import mapformers.hub  # noqa: F401  registers the classes
from mapformers import MapformersError
from mapformers.core.carry import Carry
from mapformers.models.causal_lm import next_token_loss
from mapformers.models.perceiver_ar.config import PerceiverARConfig
from mapformers.models.perceiver_ar.model import PerceiverARForCausalLM
from tests.tolerances import assert_close

from .tiny import VOCABULARY, tokens

LAYERS = [{"attention": "full"}, {"attention": "routing(clusters=2, window=3):2 + band(window=3):2"}]


def model_of(**fields: Any) -> Any:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "latents": 6}
    return PerceiverARForCausalLM(PerceiverARConfig(**{**sizes, "layers": LAYERS, **fields})).double().eval()


@pytest.mark.parametrize("length", [1, 5, 6, 7, 20])
@pytest.mark.parametrize("stride", [None, 1, 6])
def test_later_tokens_do_not_matter(length: int, stride: int | None) -> None:
    model, ids = model_of(stride=stride), tokens(2, length)
    logits = model(ids).logits
    assert logits.shape == (2, length, VOCABULARY)
    for cut in range(1, length, 4):
        other = torch.cat([ids[:, :cut], tokens(2, length - cut, seed=1)], 1)
        assert_close(model(other).logits[:, :cut], logits[:, :cut], "rounding")


def test_the_whole_past_matters() -> None:
    model, ids = model_of(), tokens(1, 25)
    other = ids.clone()
    other[0, 0] = (other[0, 0] + 1) % VOCABULARY
    assert not torch.allclose(model(ids).logits[:, -1], model(other).logits[:, -1])


def test_as_many_latents_as_tokens_are_an_ordinary_stack() -> None:
    model, ids = model_of(latents=20), tokens(2, 20)
    x = model.embed_tokens(ids)
    x, _ = model.first(x, Carry())
    for layer in model.layers:
        x, _ = layer(x, Carry())
    assert_close(model(ids).logits, model.lm_head(model.norm(x)), "parity")


@pytest.mark.parametrize("stride", [None, 1, 2, 6])
@pytest.mark.parametrize("portions", [[1] * 19, [19], [4, 1, 9, 5]])
def test_decode_equals_forward(stride: int | None, portions: list[int]) -> None:
    model, ids = model_of(stride=stride), tokens(2, 19)
    wanted, cache, made = model(ids).logits, None, []
    for part in ids.split(portions, 1):
        out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        made.append(out.logits)
    assert_close(torch.cat(made, 1), wanted, "decode")


@pytest.mark.parametrize("length", [3, 6, 7, 16, 19])
def test_a_prompt_of_which_the_end_is_asked(length: int) -> None:
    """Keys of the far past are kept without outputs; what is decoded behind it is the same."""
    model, ids = model_of(), tokens(2, length + 8)
    wanted = model(ids).logits
    out = model(ids[:, :length], use_cache=True, logits_to_keep=1)
    assert_close(out.logits[:, -1], wanted[:, length - 1], "decode")
    cache = out.past_key_values
    for i in range(length, length + 8):
        out = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
        assert_close(out.logits[:, -1], wanted[:, i], "decode")


def test_generate_is_greedy_search() -> None:
    model, ids = model_of(), tokens(2, 9)
    made = model.generate(ids, max_new_tokens=8, do_sample=False)
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(made, ids)
    beams = model.generate(tokens(2, 9), max_new_tokens=8, do_sample=False, num_beams=3)
    assert beams.shape == (2, 17)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_and_batch_mates_do_not_matter(side: str, training: bool) -> None:
    model, short, long = model_of().train(training), tokens(1, 11), tokens(1, 17, seed=1)
    fill, away = torch.full((1, 6), 3), torch.zeros(1, 6, dtype=torch.long)
    parts, masks = [fill, short], [away, torch.ones_like(short)]
    if side == "right":
        parts, masks = parts[::-1], masks[::-1]
    mask = torch.cat([torch.cat(masks, 1), torch.ones_like(long)])
    out = model(torch.cat([torch.cat(parts, 1), long]), mask).logits
    wanted = model(short).logits
    got = out[:1] if training else out[:1][mask[:1] == 1][None]
    assert_close(got, wanted, "parity")
    assert_close(out[1:], model(long).logits, "parity")


def test_training_predicts_the_last_tokens() -> None:
    model, ids = model_of(auxiliary_weights={}).train(), tokens(2, 15)
    out = model(ids, labels=ids)
    assert out.logits.shape == (2, 6, VOCABULARY)
    assert_close(out.loss, next_token_loss(out.logits, ids[:, -6:]), "rounding")
    model.eval()
    whole = model(ids, labels=ids)
    assert_close(whole.loss, next_token_loss(whole.logits, ids), "rounding")


@pytest.mark.parametrize("form", ["mask", "shorten"])
def test_dropped_prefixes(form: str) -> None:
    """In training some of the past is hidden: other outputs each time, gradients of the rest only."""
    model, ids = model_of(prefix_dropout=0.5, prefix_dropout_form=form).train(), tokens(2, 26)
    seen: list[torch.Tensor] = []
    model.embed_dropout.register_forward_hook(lambda module, given, made: seen.append(made))
    torch_state = torch.random.get_rng_state()
    try:
        first, second = model(ids).logits, model(ids).logits
    finally:
        torch.random.set_rng_state(torch_state)
    assert first.isfinite().all()
    assert not torch.allclose(first, second)
    (gradient,) = torch.autograd.grad(first.sum(), seen[0])
    hidden = (gradient[:, :20] == 0).all(-1).sum(1)
    assert hidden.tolist() == [10, 10] if form == "shorten" else bool((hidden > 2).all())
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    model, ids = model_of(embedding_size=12).float(), tokens(2, 12)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, PerceiverARForCausalLM)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"latents": 0}, "latents must be 1"),
        ({"stride": 7}, "stride must lie in 1..latents=6"),
        ({"prefix_dropout": 1.0}, "prefix_dropout must lie"),
        ({"prefix_dropout_form": "cut"}, "nearest: "),
        ({"causal": False}, "must be causal"),
        ({"latnets": 3}, "nearest: latents"),
        ({"layers": [{"attention": "bnd"}]}, "nearest: band"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(MapformersError, match=rule):
        model_of(**fields)


def test_padded_rows_are_not_decoded() -> None:
    with pytest.raises(MapformersError, match="rows without padding"):
        model_of()(tokens(1, 3), torch.tensor([[0, 1, 1]]), use_cache=True)
