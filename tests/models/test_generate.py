"""Decoding with the cache gives, token by token, what the parallel model gives."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from mapformers import MapformersError
from mapformers.models.causal_lm import MapformerForCausalLM

from .tiny import EVERYTHING, MIXED, left_padding, model_of, tokens

NEW = 10
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampled_beams": {"do_sample": True, "num_beams": 3},
}
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-10}


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def model(request: pytest.FixtureRequest) -> MapformerForCausalLM:
    return model_of(MIXED).to(request.param)


@pytest.fixture(scope="module")
def rich() -> MapformerForCausalLM:
    return model_of(EVERYTHING, num_key_value_heads=2, norm="post").double()


def generated(model: MapformerForCausalLM, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Token ids, and the scores of every step (of the sequences, for beams)."""
    torch.manual_seed(0)
    out = model.generate(
        ids,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
        **options,
    )
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left_padded"])
def test_cache_changes_nothing(model: MapformerForCausalLM, way: str, padded: bool) -> None:
    ids = tokens(3, 9, seed=1)
    mask = left_padding([9, 4, 1]) if padded else None
    with_cache, logits = generated(model, ids, attention_mask=mask, use_cache=True, **WAYS[way])
    without, expected = generated(model, ids, attention_mask=mask, use_cache=False, **WAYS[way])
    assert with_cache.shape[1] == 9 + NEW
    assert torch.equal(with_cache, without)
    assert (logits - expected).abs().max() < CLOSE[model.dtype]


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_every_kind_of_state(rich: MapformerForCausalLM, way: str) -> None:
    ids, mask = tokens(2, 11, seed=2), left_padding([11, 6])
    with_cache, logits = generated(rich, ids, attention_mask=mask, **WAYS[way])
    without, expected = generated(rich, ids, attention_mask=mask, use_cache=False, **WAYS[way])
    assert torch.equal(with_cache, without)
    assert (logits - expected).abs().max() < CLOSE[torch.float64]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_prefill_in_chunks_changes_nothing(model: MapformerForCausalLM, size: int) -> None:
    ids, mask = tokens(2, 9, seed=3), left_padding([9, 3])
    whole, _ = generated(model, ids, attention_mask=mask, **WAYS["greedy"])
    chunked, _ = generated(model, ids, attention_mask=mask, prefill_chunk_size=size, **WAYS["greedy"])
    assert torch.equal(whole, chunked)


def test_padding_does_not_change_a_row(model: MapformerForCausalLM) -> None:
    ids, lengths = tokens(3, 9, seed=4), [9, 5, 2]
    batch, _ = generated(model, ids, attention_mask=left_padding(lengths), **WAYS["greedy"])
    for row, length in enumerate(lengths):
        mine = ids[row : row + 1, 9 - length :]
        alone, _ = generated(model, mine, attention_mask=torch.ones_like(mine), **WAYS["greedy"])
        assert torch.equal(batch[row, 9 - length :], alone[0])


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 6], [12]])
def test_steps_by_hand_equal_the_parallel_form(model: MapformerForCausalLM, pieces: list[int]) -> None:
    ids, mask = tokens(2, 12, seed=5), left_padding([12, 7])
    expected = model(ids, attention_mask=mask).logits
    cache, start, parts = None, 0, []
    for piece in pieces:
        out = model(
            ids[:, start : start + piece],
            attention_mask=mask[:, : start + piece],
            past_key_values=cache,
            use_cache=True,
        )
        cache, start = out.past_key_values, start + piece
        parts.append(out.logits)
    assert cache.get_seq_length() == 12
    assert cache.real.tolist() == [12, 7]
    real = mask.bool()
    assert (torch.cat(parts, 1)[real] - expected[real]).abs().max() < CLOSE[model.dtype]


@torch.no_grad()
def test_a_cache_is_continued_by_a_second_generate(model: MapformerForCausalLM) -> None:
    ids = tokens(2, 8, seed=6)
    first = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    more = torch.cat([first.sequences, tokens(2, 3, seed=8)], 1)
    continued = model.generate(more, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(continued, model.generate(more, max_new_tokens=4, do_sample=False, use_cache=False))


@torch.no_grad()
def test_rows_of_a_cache_are_selected_repeated_and_forgotten(model: MapformerForCausalLM) -> None:
    ids = tokens(3, 7, seed=9)
    cache = model(ids, use_cache=True).past_key_values
    assert cache.batch_size == 3
    assert cache.is_initialized
    cache.batch_select_indices(torch.tensor([True, False, True]))
    cache.batch_repeat_interleave(2)
    ids = ids[[0, 0, 2, 2]]
    new = tokens(4, 1, seed=10)
    logits = model(new, past_key_values=cache).logits[:, -1]
    assert (logits - model(torch.cat([ids, new], 1)).logits[:, -1]).abs().max() < CLOSE[model.dtype]
    cache.reset()
    assert cache.get_seq_length() == 0
    assert (model(ids, past_key_values=cache).logits - model(ids).logits).abs().max() < CLOSE[model.dtype]


@torch.no_grad()
def test_a_copied_cache_answers_several_questions(model: MapformerForCausalLM) -> None:
    prefix = tokens(1, 8, seed=12)
    cache = model(prefix, use_cache=True).past_key_values
    for seed in (13, 14):
        whole = torch.cat([prefix, tokens(1, 3, seed=seed)], 1)
        out = model.generate(whole, past_key_values=copy.deepcopy(cache), max_new_tokens=4, do_sample=False)
        assert torch.equal(out, model.generate(whole, max_new_tokens=4, do_sample=False, use_cache=False))
    assert cache.get_seq_length() == 8


@torch.no_grad()
def test_embeddings_in_place_of_ids(model: MapformerForCausalLM) -> None:
    ids = tokens(2, 6, seed=11)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(ids).logits)
    out = model.generate(inputs_embeds=embedded, max_new_tokens=5, do_sample=False)
    assert torch.equal(out, model.generate(ids, max_new_tokens=5, do_sample=False)[:, 6:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"cache_implementation": "quantized"}, "cache_implementation"),
        ({"past_key_values": DynamicCache()}, "MapformerCache"),
    ],
)
def test_what_decoding_cannot_do_is_refused(
    model: MapformerForCausalLM, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(MapformersError, match=says):
        model.generate(tokens(1, 6), max_new_tokens=3, do_sample=False, **options)


def test_an_assistant_is_refused(model: MapformerForCausalLM) -> None:
    with pytest.raises(MapformersError, match="assisted decoding"):
        model.generate(
            tokens(1, 6), max_new_tokens=3, do_sample=False, assistant_model=model_of().to(model.dtype)
        )


@torch.no_grad()
def test_bad_inputs_of_a_cached_step_are_named(model: MapformerForCausalLM) -> None:
    ids = tokens(2, 6)
    cache = model(ids, use_cache=True).past_key_values
    for options, says in (
        ({"attention_mask": torch.ones(2, 1)}, r"shape \(2, 7\)"),
        ({"position_ids": torch.tensor([[0]])}, "position_ids"),
        ({"segments": torch.zeros(2, 1, dtype=torch.long)}, "segments"),
    ):
        with pytest.raises(MapformersError, match=says):
            model(ids[:, :1], past_key_values=cache, **options)
    with pytest.raises(MapformersError, match="batch"):
        model(ids[:1, :1], past_key_values=cache)
    with pytest.raises(MapformersError, match="MapformerCache"):
        model(ids, past_key_values=DynamicCache())
    for refused in (
        lambda: cache.crop(-1),
        cache.activate_past_recording,
        lambda: cache.layers[0].update(None, None),
    ):
        with pytest.raises(MapformersError, match="do not support"):
            refused()
    assert cache.get_seq_length() == 6
