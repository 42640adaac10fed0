"""The language model as a module: drawing, losses, gradients, checkpointing, shapes."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from mapformers import MapformersError
from mapformers.models.causal_lm import MapformerForCausalLM, next_token_loss
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


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


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


# --- losses ---


def test_next_token_loss_by_hand() -> None:
    logits, labels = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)), tokens(2, 5) % 7
    labels[0, 3] = -100
    probabilities = logits.double().softmax(-1)
    places = [(b, n) for b in range(2) for n in range(4) if labels[b, n + 1] != -100]
    expected = -sum(math.log(float(probabilities[b, n, labels[b, n + 1]])) for b, n in places) / len(places)
    assert math.isclose(float(next_token_loss(logits, labels)), expected, rel_tol=1e-6)
    assert float(next_token_loss(logits, torch.full_like(labels, -100))) == 0.0
    assert float(next_token_loss(logits[:, :1], labels[:, :1])) == 0.0


def test_auxiliary_losses_are_weighted_in_training_only() -> None:
    ids = tokens(2, 16)
    model = model_of(auxiliary_weights={"commitment": 0.25}).train()
    out = model(ids, labels=ids)
    assert set(out.losses) == {"next_token", "commitment"}
    assert torch.allclose(out.loss, out.losses["next_token"] + 0.25 * out.losses["commitment"])
    evaluated = model.eval()(ids, labels=ids)
    assert torch.equal(evaluated.loss, evaluated.losses["next_token"])
    assert torch.equal(model._total(dict(out.losses)), out.losses["next_token"])
    assert model(ids).losses is None or "next_token" not in model(ids).losses
    silent = model_of(auxiliary_weights={}).train()(ids, labels=ids)
    assert torch.equal(silent.loss, silent.losses["next_token"])
    assert "commitment" in silent.losses


def test_auxiliary_gradients_arrive_by_their_weight() -> None:
    ids, grads = tokens(2, 16), []
    for weight in (0.0, 1.0, 2.0):
        model = model_of(auxiliary_weights={"commitment": weight}).double().train()
        model(ids, labels=ids).loss.backward()
        grads.append(gradients(model))
    one = {name: grads[1][name] - grads[0][name] for name in grads[0]}
    two = {name: grads[2][name] - grads[0][name] for name in grads[0]}
    assert max(float(g.abs().max()) for g in one.values()) > 1e-4
    assert furthest({name: 2 * g for name, g in one.items()}, two) < 1e-9


def test_four_micro_batches_are_one_batch() -> None:
    """Losses are means over equal parts, so their mean is the loss of the whole, auxiliary ones included."""
    ids, model = tokens(8, 16), model_of(auxiliary_weights={"commitment": 1.0}).double().train()
    model(ids, labels=ids).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for part in ids.split(2):
        (model(part, labels=part).loss / 4).backward()
    assert furthest(whole, gradients(model)) < 1e-12


class Examples(torch.utils.data.Dataset):
    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def trained_gradient(
    model: MapformerForCausalLM, ids: Tensor, accumulation: int, folder: Path
) -> dict[str, Tensor]:
    """The gradients that the first optimiser step of Trainer sees."""
    seen: list[dict[str, Tensor]] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            seen.append(gradients(model))

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=len(ids) // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    optimizer = Recorder(model.parameters(), lr=0.1)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    Trainer(model, arguments, train_dataset=Examples(ids), optimizers=(optimizer, constant)).train()
    return seen[0]


def test_trainer_does_not_multiply_auxiliary_losses_by_the_accumulation_steps(tmp_path: Path) -> None:
    ids = tokens(8, 16)
    start = model_of(auxiliary_weights={"commitment": 1.0}).double()
    whole = trained_gradient(copy.deepcopy(start), ids, 1, tmp_path)
    parts = trained_gradient(copy.deepcopy(start), ids, 4, tmp_path)
    start.train()(ids, labels=ids).loss.backward()
    assert furthest(whole, gradients(start)) < 1e-12
    assert furthest(parts, whole) < 1e-12
    assert start.accepts_loss_kwargs is False


def test_trainer_predicts_logits_and_the_plain_loss(tmp_path: Path) -> None:
    ids, model = tokens(4, 16), model_of()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, dataloader_pin_memory=False
    )
    predicted = Trainer(model, arguments).predict(Examples(ids))
    assert predicted.predictions.shape == (4, 16, VOCABULARY)
    expected = model(ids, labels=ids).loss.item()
    assert math.isclose(predicted.metrics["test_loss"], expected, rel_tol=1e-5)


# --- activation checkpointing, centroids ---


def test_activation_checkpointing_changes_no_number() -> None:
    ids, start = tokens(2, 24), model_of(auxiliary_weights={"commitment": 1.0}, residual_dropout=0.1)
    results = []
    for checkpointed in (False, True):
        model = copy.deepcopy(start).double().train()
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        loss = model(ids, labels=ids).loss
        loss.backward()
        model.update_centroids()
        results.append((loss.detach(), gradients(model), {n: b.clone() for n, b in model.named_buffers()}))
    (loss, grads, buffers), (loss_again, grads_again, buffers_again) = results
    assert torch.equal(loss, loss_again)
    assert furthest(grads, grads_again) < 1e-14
    assert all(torch.equal(buffers[name], buffers_again[name]) for name in buffers)


def test_activation_checkpointing_does_recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of().train()
    model.activation_checkpointing_enable()
    calls = []
    block = type(model.model.layers[0].block)
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x, carry: calls.append(1) or forward(self, x, carry))
    model(tokens(1, 8), labels=tokens(1, 8)).loss.backward()
    assert len(calls) == 2 * len(MIXED)


def test_reentrant_checkpointing_is_refused() -> None:
    with pytest.raises(MapformersError, match="use_reentrant"):
        model_of().activation_checkpointing_enable({"use_reentrant": True})


def test_centroids_move_when_told_and_not_in_evaluation() -> None:
    model, ids = model_of(), tokens(4, 24, seed=3)
    name = next(name for name, _ in model.named_buffers() if name.endswith("centroids"))
    before = model.get_buffer(name).clone()
    model(ids)
    model.update_centroids()
    assert torch.equal(model.get_buffer(name), before)
    model.train()(ids)
    assert torch.equal(model.get_buffer(name), before)
    model.update_centroids()
    assert not torch.equal(model.get_buffer(name), before)


def test_telemetry_has_one_entry_per_layer() -> None:
    numbers = model_of().telemetry()
    assert len(numbers) == len(MIXED)
    assert numbers[0] == {}
    assert {"occupancy_entropy", "dead_clusters", "centroid_drift", "mean_horizon"} <= set(numbers[1])


def test_dropout_fields_act_in_training_only() -> None:
    ids = tokens(2, 12)
    plain = MapformerForCausalLM(config_of()).eval()(ids).logits
    for name in ("residual_dropout", "attention_dropout", "embedding_dropout"):
        model = MapformerForCausalLM(config_of(**{name: 0.5}))
        assert torch.equal(model.eval()(ids).logits, plain)
        assert not torch.equal(model.train()(ids).logits, plain)


def test_a_few_steps_learn() -> None:
    model, ids = model_of().train(), tokens(4, 24)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = model(ids, labels=ids).losses["next_token"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_centroids()
    assert loss < 0.5 * math.log(VOCABULARY)


def test_half_precision_runs_and_keeps_centroids_wide() -> None:
    model, ids = model_of().to(torch.bfloat16), tokens(2, 12)
    wide = {b.dtype for name, b in model.named_buffers() if "kmeans" in name and b.is_floating_point()}
    assert wide == {torch.float32}
    out = model.train()(ids, labels=ids)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert torch.isfinite(out.loss)
    single = model_of().train()(ids, labels=ids).loss
    assert F.l1_loss(out.loss, single) < 0.05
