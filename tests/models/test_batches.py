"""Every kind of model: a batch in parts gives the gradients of the whole; a row alone is the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from mapformers.models.classification import MapformerForSequenceClassification
from mapformers.models.forecasting import MapformerForForecasting
from mapformers.models.image_generation import MapformerForImageGeneration
from mapformers.models.masked_lm import MapformerForMaskedLM
from mapformers.models.perceiver.config import PerceiverConfig
from mapformers.models.perceiver.model import (
    PerceiverForClassification,
    PerceiverForMaskedLM,
    PerceiverForRegression,
)
from mapformers.models.perceiver_ar.config import PerceiverARConfig
from mapformers.models.perceiver_ar.model import PerceiverARForCausalLM
from mapformers.models.seq2seq import MapformerForSeq2SeqLM
from tests.tolerances import assert_close

from .tiny import MIXED, config_of, tokens

Batch = dict[str, torch.Tensor]
CROSS = [{"attention": "band(window=4)", "cross": "routing(clusters=2)"}]
SERIES = {
    "kind": "series",
    "channels": 2,
    "outputs": 2,
    "context": 12,
    "known": 5,
    "horizon": 4,
    "features": 0,
}
PERCEIVER = {"latents": 5, "latent_size": 16, "latent_heads": 4, "num_labels": 3}
TEXT = {"kind": "text", "vocab_size": 50, "length": 16, "channels": 16}
GRID = {"kind": "grid", "shape": [4, 3], "channels": 2, "bands": 2}
AXIAL = {"vocab_size": 257, "positions": "axial", "image_shape": [3, 3, 1]}
ROWS = 4


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(length: int = 9, seed: int = 0) -> torch.Tensor:
    return tokens(ROWS, length, seed)


def made() -> dict[str, tuple[Any, Batch]]:
    """A model of each kind with a batch of it."""
    labels = torch.arange(ROWS) % 3
    perceiver = PerceiverConfig(input=GRID, **PERCEIVER)
    array = {"kind": "array", "channels": 2, "rows": 6, "width": 8}
    masked = {"kind": "array", "rows": 16, "width": 16}
    seq2seq = config_of(
        CROSS, encoder_layers=MIXED, pad_token_id=47, decoder_start_token_id=48, eos_token_id=49
    )
    forecast = config_of(CROSS, encoder_layers=MIXED, input=SERIES, rotary=False)
    ar = PerceiverARConfig(vocab_size=50, hidden_size=32, num_attention_heads=4, latents=5, layers=MIXED)
    picture = torch.randint(256, (ROWS, 10), generator=torch.Generator().manual_seed(0))
    return {
        "classification": (
            MapformerForSequenceClassification(config_of(causal=False, num_labels=3)),
            {"input_ids": ids(), "labels": labels},
        ),
        "masked": (
            MapformerForMaskedLM(config_of(causal=False)),
            {"input_ids": ids(), "labels": ids(seed=1)},
        ),
        "seq2seq": (MapformerForSeq2SeqLM(seq2seq), {"input_ids": ids(), "labels": ids(6, seed=1)}),
        "forecasting": (
            MapformerForForecasting(forecast),
            {"values": numbers(ROWS, 12, 2), "labels": numbers(ROWS, 4, 2, seed=1)},
        ),
        "images": (
            MapformerForImageGeneration(config_of(**AXIAL)),
            {"input_ids": picture, "labels": picture},
        ),
        "perceiver classification": (
            PerceiverForClassification(perceiver),
            {"inputs": numbers(ROWS, 4, 3, 2), "labels": labels},
        ),
        "perceiver regression": (
            PerceiverForRegression(PerceiverConfig(input=GRID, output=array, **PERCEIVER)),
            {"inputs": numbers(ROWS, 4, 3, 2), "labels": numbers(ROWS, 6, 2, seed=1)},
        ),
        "perceiver masked": (
            PerceiverForMaskedLM(PerceiverConfig(input=TEXT, output=masked, **PERCEIVER)),
            {"input_ids": ids(), "labels": ids(seed=1)},
        ),
        "perceiver ar": (PerceiverARForCausalLM(ar), {"input_ids": ids(13), "labels": ids(13)}),
    }


KINDS = list(made())


def part(batch: Batch, rows: slice) -> Batch:
    return {name: x[rows] for name, x in batch.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_gradients_are_those_of_the_large_batch(kind: str) -> None:
    model, batch = made()[kind]
    model = model.double().train()
    model(**batch).loss.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for rows in (slice(0, 2), slice(2, 4)):
        (model(**part(batch, rows)).loss / 2).backward()
    for name, parameter in model.named_parameters():
        if name in whole:
            assert_close(parameter.grad, whole[name], "gradient", name)
    assert len(whole) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_the_row_in_the_batch(kind: str) -> None:
    model, batch = made()[kind]
    model = model.double().eval()
    whole = model(**batch).logits
    for row in range(ROWS):
        alone = model(**part(batch, slice(row, row + 1))).logits
        assert_close(alone, whole[row : row + 1], "parity", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_comes_back(kind: str, tmp_path: Path) -> None:
    model, batch = made()[kind]
    model = model.eval()
    batch = {name: x.float() if x.is_floating_point() else x for name, x in batch.items()}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    one, two = model.state_dict(), again.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(model(**batch).logits, again(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_goes_on_as_if_it_had_not_stopped(kind: str, tmp_path: Path) -> None:
    """Four steps with transformers' own Trainer, and two steps, a checkpoint, and two more."""

    def run(folder: Path, steps: int, resume: str | None) -> dict[str, torch.Tensor]:
        model, batch = made()[kind]
        rows = [
            {name: x[i].float() if x.is_floating_point() else x[i] for name, x in batch.items()}
            for i in range(ROWS)
        ]
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=2,
            lr_scheduler_type="constant",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = run(tmp_path / "whole", 4, None)
    run(tmp_path / "half", 2, None)
    again = run(tmp_path / "half", 4, str(tmp_path / "half" / "checkpoint-2"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
