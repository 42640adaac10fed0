"""Runs that classify: training, resuming, scoring, other data, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.report.results import read_metrics
from mapformers.tasks.examples import Examples
from mapformers.tasks.labelled import Labelled
from mapformers.train.assess import as_text, assess
from mapformers.train.classification import collate, facts_of, write_labelled
from mapformers.train.folder import open_run
from mapformers.train.loading import load_trained
from mapformers.train.models import CLASSES, CONFIGS, config_of, model_class
from mapformers.train.presets import load_preset, override, with_attention
from mapformers.train.run import Request, train
from mapformers.train.sections import ARCHITECTURES, DATA
from mapformers.train.task import Asked, Prompt
from mapformers.train.tasks import TASKS

QUICK = (
    "training.max_steps=6",
    "training.eval_every=3",
    "training.save_every=3",
    "training.log_every=1",
    "data.batch=8",
    "optimiser.warmup_steps=0",
)
SMALL = {
    "image-classification": ("model.latents=4", "model.latent_size=16", "model.depth=1"),
    "text-classification": (
        "model.hidden_size=16",
        "model.layers=[{attention: 'routing(clusters=2, window=8):2 + band(window=8):2'}]",
    ),
}


def write_images(path: Path, count: int = 60, classes: int = 2) -> Path:
    """Pictures of 4 x 4 whose left or right half is bright."""
    draw = np.random.Generator(np.random.PCG64(0))
    y = np.arange(count) % classes
    x = draw.random((count, 4, 4)).astype(np.float32) * 0.2
    for place, label in enumerate(y):
        x[place, :, 2 * (label % 2) : 2 * (label % 2) + 2] += 0.7
    np.savez(path, x=x, y=y)
    return path


def write_texts(path: Path, count: int = 60) -> Path:
    """Lines of two kinds, of different lengths."""
    rows = [
        {"text": ("ab" if i % 2 else "xy") * (3 + i % 7), "label": ("one", "two")[i % 2]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(preset: str, source: Path, output: Path, *settings: str, **more: Any) -> Request:
    return Request(preset, output, str(source), (*QUICK, *SMALL[preset], *settings), **more)


@pytest.fixture(
    scope="module",
    params=["image-classification", pytest.param("text-classification", marks=pytest.mark.slow)],
)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps on each kind of data, under its preset's name."""
    folder = tmp_path_factory.mktemp("runs")
    source = write_images(folder / "x.npz") if "image" in request.param else write_texts(folder / "x.jsonl")
    train(globals()["request"](request.param, source, folder / request.param))
    return folder / request.param


def test_what_a_run_leaves(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["score"] == "accuracy"
    assert results["task"] == "classification"
    assert set(results["baselines"]) == {"most frequent class"}
    assert 0 <= results["test"]["accuracy"] <= 1
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines if "valid_accuracy" in line] == [3, 6]
    assert all("examples_per_second" in line for line in lines if "loss" in line)
    page = (finished / "report.html").read_text()
    assert "most frequent class" in page
    config = load_trained(finished).model.config
    assert list(config.id2label.values()) == (["0", "1"] if "image" in finished.name else ["one", "two"])


def test_eval_says_what_the_results_say(finished: Path) -> None:
    own = assess(finished)
    results = json.loads((finished / "results.json").read_text())
    assert own["accuracy"] == results["test"]["accuracy"]
    assert "accuracy" in as_text(own)
    assert assess(finished, Asked(split="train"))["examples"] > own["examples"]
    with pytest.raises(MapformersError, match="--split is unknown"):
        assess(finished, Asked(split="tset"))
    with pytest.raises(MapformersError, match="--prefix-only is for language models"):
        assess(finished, Asked(positions=3))
    with pytest.raises(MapformersError, match="must write text, got the task classification"):
        open_run(finished).task.generate(
            load_trained(finished).model, finished / "data", Prompt("a", 3, 0.0, 0, print)
        )


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    preset = finished.name
    source = Path(open_run(finished).preset.data.source)
    train(request(preset, source, tmp_path / "run", max_steps=3))
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    # The schedule spans all steps, so the first half is run as part of the whole.
    held = open_run(tmp_path / "run")
    assert held.preset.training.max_steps == 3
    train(Request(None, tmp_path / "run", max_steps=6, resume=True))
    assert open_run(tmp_path / "run").last_checkpoint()[0] == 6
    lines = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert lines == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    source = Path(open_run(finished).preset.data.source)
    train(request(finished.name, source, tmp_path / "run"))
    one, two = (load_trained(path).model.state_dict() for path in (finished, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_another_attention(tmp_path: Path) -> None:
    preset = with_attention(load_preset("text-classification"), "performer(features=16)")
    assert {layer["attention"] for layer in preset.model["layers"]} == {"performer(features=16)"}
    preset = with_attention(load_preset("image-classification"), "band(window=4)")
    assert preset.model["latent_attention"] == "band(window=4)"
    source = write_images(tmp_path / "x.npz")
    train(request("image-classification", source, tmp_path / "run", attention="linear", max_steps=2))
    assert load_trained(tmp_path / "run").model.config.latent_attention == "linear"
    with pytest.raises(MapformersError, match="nearest: band"):
        config_of(with_attention(load_preset("image-classification"), "bnd"))


@pytest.mark.slow
def test_a_permutation_is_the_same_for_all(tmp_path: Path) -> None:
    source = write_images(tmp_path / "x.npz")
    train(request("image-classification", source, tmp_path / "run", "data.permute=true"))
    run = open_run(tmp_path / "run")
    rows = run.task.feed(run.preset, run.data).rows
    plain = override(run.preset, ["data.permute=false"])
    others = run.task.feed(plain, run.data).rows
    orders = {
        tuple(np.argsort(rows[i][0][:, 0], kind="stable").tolist())
        == tuple(np.argsort(others[i][0][:, 0], kind="stable").tolist())
        for i in range(5)
    }
    assert orders == {False}
    assert all(np.array_equal(np.sort(rows[i][0], 0), np.sort(others[i][0], 0)) for i in range(5))


def test_a_batch_by_hand() -> None:
    batch = collate([(np.array([3, 4], dtype=np.uint8), 1), (np.array([5], dtype=np.uint8), 0)])
    assert batch["input_ids"].tolist() == [[3, 4], [5, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert "attention_mask" not in collate([(np.zeros((2, 1), dtype=np.float32), 1)])


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    good = write_images(tmp_path / "x.npz")
    (tmp_path / "bad.npz").write_bytes(good.read_bytes()[:100])
    np.savez(tmp_path / "nan.npz", x=np.full((30, 4, 4), np.nan, dtype=np.float32), y=np.arange(30) % 2)
    for source, settings, rule in (
        (tmp_path / "nowhere", (), "nowhere"),
        (tmp_path / "bad.npz", (), "bad.npz"),
        (tmp_path / "nan.npz", (), "nan.npz"),
        (good, ("data.options={depth: 3}",), "options belong to a generator"),
        (good, ("model.latent_heads=5",), "multiple of heads"),
        (good, ("model.input={kind: grid, bands: 0}",), "bands must be 1 or more"),
    ):
        with pytest.raises(MapformersError, match=rule) as caught:
            train(request("image-classification", source, tmp_path / "run", *settings))
        assert "\n" not in str(caught.value)
        assert {path.name for path in tmp_path.iterdir()} == {"x.npz", "bad.npz", "nan.npz"}
    train(request("image-classification", good, tmp_path / "run"))
    other = write_images(tmp_path / "more.npz", classes=3)
    with pytest.raises(MapformersError, match="must have the classes of the run"):
        assess(tmp_path / "run", Asked(data=str(other)))


def test_texts_longer_than_a_table_of_positions_are_refused(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "x.jsonl")
    with pytest.raises(MapformersError, match="at most 5 tokens"):
        train(
            request(
                "text-classification",
                source,
                tmp_path / "run",
                "model.input={kind: text, channels: 8, length: 5}",
                "model.rotary=false",
            )
        )


def test_what_was_cut_is_said(tmp_path: Path) -> None:
    rows = [np.full(n, 65, dtype=np.uint8) for n in (3, 9, 5)]
    splits = {name: Examples.of(rows, [0, 1, 0]) for name in ("train", "valid", "test")}
    for longest, cut in ((None, 0), (9, 0), (5, 3), (4, 6)):
        settings = ["data.source=x", *([] if longest is None else [f"data.longest={longest}"])]
        preset = override(load_preset("text-classification"), ["data.longest=null", *settings])
        folder = tmp_path / str(longest)
        write_labelled(Labelled(splits, ("a", "b"), "by hand", None), preset, folder)
        said = TASKS["classification"].describe(folder)
        assert sum(part["cut"] for part in facts_of(folder)["splits"].values()) == cut
        assert (f"\n{cut} examples were cut to data.longest={longest}" in said) == (cut > 0)


def test_every_task_says_what_it_reads() -> None:
    assert set(TASKS) <= set(DATA)
    assert {architecture for architecture, _ in CLASSES} == set(CONFIGS) == set(ARCHITECTURES)
    assert {task for _, task in CLASSES} == set(TASKS)
    with pytest.raises(MapformersError, match="architecture must be mapformer or perceiver-ar"):
        model_class(override(load_preset("demo"), ["architecture=perceiver"]))
