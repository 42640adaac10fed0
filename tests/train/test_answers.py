"""Runs on generated sequences: labels by hand, training, scoring."""

import json
from pathlib import Path

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.recall import Recall
from mapformers.train.answers import GENERATORS, generator_of, labelled
from mapformers.train.assess import as_text, assess
from mapformers.train.loading import load_trained
from mapformers.train.presets import load_preset, override
from mapformers.train.run import Request, train
from mapformers.train.task import Asked

QUICK = (
    "training.max_steps=4",
    "training.eval_every=2",
    "training.save_every=2",
    "training.log_every=1",
    "data.batch=4",
    "data.valid_examples=10",
    "data.test_examples=70",
    "model.hidden_size=16",
    "model.intermediate_size=16",
)


def test_labels_stand_behind_their_questions() -> None:
    batch = Recall(pairs=2, length=12, gap=2, vocabulary=20).batch(3, torch.Generator().manual_seed(0))
    made = labelled(batch)
    for tokens, labels, places, target in zip(
        made["input_ids"], made["labels"], batch.place, batch.target, strict=True
    ):
        asked = {int(place) + 1: int(value) for place, value in zip(places, target, strict=True)}
        assert {i: int(x) for i, x in enumerate(labels) if x != -100} == asked
        assert len(tokens) == len(labels)


@pytest.mark.slow
@pytest.mark.parametrize("source", GENERATORS)
def test_every_generator_trains(source: str, tmp_path: Path) -> None:
    options = {"passkey": "{length: 120}", "recall": "{pairs: 2, length: 32}"}.get(source, "{length: 32}")
    if source == "selective_copying":
        options = "{length: 32, data: 4}"
    settings = (*QUICK, f"data.source={source}", f"data.options={options}")
    train(Request("mqar", tmp_path / "run", settings=settings))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["examples"] == 70
    assert 0 <= results["test"]["exact_match"] <= results["test"]["accuracy"] <= 1
    assert 0 < results["baselines"]["most frequent answer"] < 1
    own = assess(tmp_path / "run")
    assert own["accuracy"] == results["test"]["accuracy"]
    assert source in as_text(own)
    assert load_trained(tmp_path / "run").step == 4


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    constant = (*QUICK, "optimiser.schedule=constant", "data.options={pairs: 2, length: 32}")
    train(Request("mqar", tmp_path / "whole", settings=constant))
    train(Request("mqar", tmp_path / "half", settings=constant, max_steps=2))
    train(Request(None, tmp_path / "half", max_steps=4, resume=True))
    one, two = (load_trained(tmp_path / name).model.state_dict() for name in ("whole", "half"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bad_input_is_named(tmp_path: Path) -> None:
    for settings, rule in (
        (("data.source=recal",), "nearest: recall"),
        (("data.options={pars: 3}",), "nearest: pairs"),
        (("data.options={pairs: 0}",), "pairs must be 1 or more"),
    ):
        with pytest.raises(MapformersError, match=rule):
            train(Request("mqar", tmp_path / "run", settings=settings))
        assert not (tmp_path / "run").exists()
    assert generator_of(override(load_preset("mqar"), ["data.options={pairs: 3}"])).pairs == 3
    train(Request("mqar", tmp_path / "run", settings=(*QUICK, "data.options={pairs: 2, length: 32}")))
    with pytest.raises(MapformersError, match="--data must be left out"):
        assess(tmp_path / "run", Asked(data="book.txt"))
