"""The language model in training: losses, accumulation, checkpointing, centroids."""

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

from .tiny import MIXED, VOCABULARY, config_of, model_of, tokens


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


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
    assert torch.equal(model.weighted(out.losses["next_token"], out.losses), out.losses["next_token"])
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_policy_learns_from_what_the_loss_exceeds_its_average_by(tmp_path: Path) -> None:
    """The predictor of sac gets no gradient from the first loss, which is the average, but from others."""
    model = model_of([{"attention": "sac(edges=2, predictor=parallel)"}]).train()
    assert model.policy_baseline is not None
    model.policy_baseline.count.zero_()
    predictor = model.model.layers[0].block.attention.mechanisms[0].predictor
    for turn, moved in ((0, False), (1, True)):
        ids = tokens(2, 12, seed=turn)
        model.zero_grad()
        out = model(ids, labels=ids)
        assert set(out.losses) == {"next_token", "edges"}
        out.loss.backward()
        assert [bool(p.grad.any()) for p in predictor.parameters()] == [moved] * 3
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.policy_baseline.count == model.policy_baseline.count == 2
    assert model_of().policy_baseline is None
