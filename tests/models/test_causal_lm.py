"""The language model as a module: drawing, shapes, masks, refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mapformers import MapformersError
from mapformers.models.causal_lm import MapformerForCausalLM
from mapformers.models.size import parameter_count
from mapformers.models.stack import MapformerModel

from .tiny import EVERYTHING, MIXED, VOCABULARY, config_of, left_padding, model_of, tokens

VARIANTS = [
    {},
    {"layers": EVERYTHING, "norm": "post", "num_key_value_heads": 2},
    {"embedding_size": 12, "activation": "geglu", "intermediate_size": 40},
    {"embedding_size": 12, "tie_word_embeddings": False},
    {"tie_word_embeddings": False, "head_dim": 6, "activation": "relu"},
]


# --- drawing ---


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    for fields in VARIANTS:
        MapformerForCausalLM(config_of(**fields))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_seed_decides_all_weights() -> None:
    one, same, other = (
        MapformerForCausalLM(config_of(initializer_seed=seed)).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if one[name].dim() > 1 and "null_key" not in name]
    assert len(drawn) > 10
    assert not any(torch.equal(one[name], other[name]) for name in drawn if "kmeans" not in name)


def test_layers_are_drawn_independently() -> None:
    model = MapformerForCausalLM(config_of([{"attention": "full"}, {"attention": "full"}]))
    first, second = model.model.layers
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.dim() > 1)


@pytest.mark.parametrize("fields", VARIANTS)
def test_parameter_count_is_exact_and_allocates_nothing(fields: dict[str, Any]) -> None:
    config = config_of(**fields)
    model = MapformerForCausalLM(config)
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        empty = MapformerForCausalLM(config)
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])


def test_parameter_count_of_a_model_that_would_not_fit() -> None:
    wide = config_of([{"attention": "band(window=128)"}] * 3, hidden_size=65536, num_attention_heads=64)
    assert parameter_count(wide) > 1.5e11


def test_nothing_lives_outside_the_state_dict() -> None:
    model = MapformerForCausalLM(config_of(EVERYTHING))
    held = model.state_dict()
    assert all(name in held for name, _ in model.named_buffers())
    for module in model.modules():
        assert not [name for name, value in vars(module).items() if isinstance(value, Tensor)]


def test_the_head_is_tied_unless_told_otherwise() -> None:
    tied, untied = model_of(), model_of(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_embeddings_can_be_resized() -> None:
    model = model_of()
    before = model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(VOCABULARY + 7, mean_resizing=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight[:VOCABULARY], before)
    assert model.lm_head.weight[VOCABULARY:].std() < 0.05
    assert model(tokens(1, 4)).logits.shape == (1, 4, VOCABULARY + 7)


# --- outputs ---


@pytest.mark.parametrize("fields", VARIANTS)
def test_shapes(fields: dict[str, Any]) -> None:
    model = model_of(**fields)
    ids = tokens(2, 9)
    out = model(ids, labels=ids, output_hidden_states=True)
    layers = model.config.num_hidden_layers
    assert out.logits.shape == (2, 9, VOCABULARY)
    assert len(out.hidden_states) == layers + 1
    assert out.past_key_values is None
    assert isinstance(model(ids, return_dict=False), tuple)
    assert isinstance(model.model.norm, nn.LayerNorm) == (model.config.norm == "pre")
    assert torch.equal(model(ids, logits_to_keep=2).logits, out.logits[:, -2:])
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, out.logits[:, [0, 5]])


@torch.no_grad()
def test_the_future_does_not_matter() -> None:
    model, ids = model_of(EVERYTHING).double(), tokens(2, 20)
    changed = ids.clone()
    changed[:, 13:] = tokens(2, 7, seed=99)
    assert (model(ids).logits - model(changed).logits)[:, :13].abs().max() < 1e-12


@torch.no_grad()
def test_padding_and_its_content_do_not_matter() -> None:
    model, ids, mask = model_of(EVERYTHING).double(), tokens(2, 12), left_padding([12, 7])
    changed = torch.where(mask.bool(), ids, tokens(2, 12, seed=5))
    logits = model(ids, attention_mask=mask).logits
    assert (model(changed, attention_mask=mask).logits - logits)[mask.bool()].abs().max() < 1e-12
    assert (model(ids[1:, 5:]).logits - logits[1:, 5:]).abs().max() < 1e-12


@torch.no_grad()
def test_packed_segments_are_as_if_alone() -> None:
    model = model_of(EVERYTHING).double()
    ids, segments = tokens(1, 15), torch.tensor([[0] * 6 + [1] * 9])
    packed = model(ids, segments=segments, labels=ids)
    alone = [model(ids[:, :6], labels=ids[:, :6]), model(ids[:, 6:], labels=ids[:, 6:])]
    assert (packed.logits - torch.cat([out.logits for out in alone], 1)).abs().max() < 1e-12
    assert math.isclose(float(packed.loss), float(5 * alone[0].loss + 8 * alone[1].loss) / 13, rel_tol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 2},
        {"head_dim": 4},
        {"intermediate_size": 40},
        {"activation": "relu"},
        {"activation": "geglu"},
        {"norm": "post"},
        {"rotary": False},
        {"rotary_base": 10.0},
        {"embedding_size": 16},
        {"tie_word_embeddings": False},
        {"initializer_seed": 1},
        {"layers": [MIXED[0], {**MIXED[1], "score": "alibi"}]},
        {"layers": [MIXED[0], {**MIXED[1], "rotary": False}]},
        {"layers": [MIXED[0], {**MIXED[1], "project": "grouped_query(kv_heads=2)"}]},
    ],
    ids=str,
)
def test_every_field_changes_something(change: dict[str, Any]) -> None:
    ids = tokens(2, 24)
    plain, changed = (MapformerForCausalLM(config_of(**fields)).eval() for fields in ({}, change))
    assert (plain(ids).logits - changed(ids).logits).abs().max() > 1e-5


@torch.no_grad()
def test_default_positions_are_the_ranks() -> None:
    model, ids = model_of(), tokens(2, 8)
    ranks = torch.arange(8)[None]
    assert torch.equal(model(ids, position_ids=ranks).logits, model(ids).logits)
    assert not torch.equal(model(ids, position_ids=3 * ranks).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "neither"),
        ({"input_ids": tokens(1, 0)}, "at least one token"),
        ({"input_ids": tokens(1, 4) + VOCABULARY}, r"\[0, 50\)"),
        ({"input_ids": tokens(1, 4), "inputs_embeds": torch.zeros(1, 4, 32)}, "both"),
        ({"input_ids": tokens(1, 4), "attention_mask": torch.ones(1, 3)}, r"shape \(1, 4\)"),
        ({"input_ids": tokens(1, 4), "attention_mask": torch.ones(1, 1, 4, 4)}, "attention_mask"),
        ({"input_ids": tokens(1, 4), "position_ids": torch.zeros(1, 5)}, "position_ids"),
        ({"input_ids": tokens(1, 4), "segments": torch.zeros(2, 4)}, "segments"),
        ({"input_ids": tokens(1, 4), "labels": tokens(1, 5)}, "labels"),
        ({"input_ids": tokens(1, 4), "labels": tokens(1, 4), "logits_to_keep": 1}, "logits_to_keep"),
        ({"input_ids": tokens(1, 4), "output_attentions": True}, "output_attentions"),
    ],
)
def test_bad_inputs_are_named(inputs: dict[str, Any], says: str) -> None:
    with pytest.raises(MapformersError, match=says):
        model_of()(**inputs)


def test_misspelt_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match="atention_mask"):
        model_of()(tokens(1, 4), atention_mask=torch.ones(1, 4))


def test_encoders_see_both_sides_and_do_not_decode() -> None:
    config = config_of([{"attention": "band(window=3)"}], causal=False)
    encoder, ids = MapformerModel(config).eval(), tokens(1, 8)
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 1) % VOCABULARY
    assert not torch.equal(encoder(ids).last_hidden_state[:, 5], encoder(changed).last_hidden_state[:, 5])
    with pytest.raises(MapformersError, match="causal"):
        encoder(ids, use_cache=True)
    with pytest.raises(MapformersError, match="MapformerModel"):
        MapformerForCausalLM(config)
