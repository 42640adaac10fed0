"""Runs that translate, forecast and draw: what they leave, other data, bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mapformers.core.errors import MapformersError
from mapformers.tasks.grammar import Grammar
from mapformers.tasks.tokens import Tokens
from mapformers.train.assess import as_text, assess
from mapformers.train.loading import load_trained
from mapformers.train.presets import load_preset, with_attention
from mapformers.train.run import Request, train
from mapformers.train.task import Asked, Prompt
from mapformers.train.translation import collate

QUICK = (
    "training.max_steps=4",
    "training.eval_every=2",
    "training.save_every=2",
    "training.log_every=1",
    "data.batch=4",
    "model.hidden_size=16",
    "model.intermediate_size=16",
    "optimiser.schedule=constant",
)
SMALL: dict[str, tuple[str, ...]] = {
    "translation": (
        "data.train_examples=40",
        "data.valid_examples=3",
        "data.test_examples=4",
        "model.encoder_layers=[{attention: 'band(window=4)'}]",
        "model.layers=[{attention: full, cross: 'routing(clusters=2)'}]",
    ),
    "forecast": ("data.context=24", "data.known=12", "data.horizon=6", "data.borders=[300, 40, 50]"),
    "masked-bytes": (
        "data.context=32",
        "data.train_bytes=4000",
        "data.valid_bytes=200",
        "data.test_bytes=300",
        "model.layers=[{attention: 'band(window=4)'}]",
    ),
    "image-generation": (
        "data.train_examples=40",
        "data.valid_examples=5",
        "data.test_examples=6",
        "model.layers=[{attention: 'band(window=4)'}]",
    ),
}
SCORES = {
    "masked-bytes": "bits_per_hidden_byte",
    "translation": "exact_match",
    "forecast": "mse",
    "image-generation": "bits_per_dim",
}
BASELINES = {
    "masked-bytes": {"how often each byte occurs"},
    "translation": {"the source as it is"},
    "forecast": {"repeat the last day", "repeat the last value", "mean of train"},
    "image-generation": {"values anywhere", "values at their place"},
}


def request(preset: str, output: Path, *settings: str, **more: Any) -> Request:
    return Request(preset, output, settings=(*QUICK, *SMALL[preset], *settings), **more)


FAST = ("translation", "forecast")
PARAMS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SMALL]


@pytest.fixture(scope="module", params=PARAMS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps under the name of its preset."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    train(globals()["request"](request.param, folder))
    return folder


def test_what_a_run_leaves(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["score"] == SCORES[finished.name]
    assert set(results["baselines"]) == BASELINES[finished.name]
    assert torch.tensor(list(results["baselines"].values())).isfinite().all()
    page = (finished / "report.html").read_text()
    assert all(name in page for name in BASELINES[finished.name])
    own = assess(finished)
    assert own[SCORES[finished.name]] == pytest.approx(results["test"][SCORES[finished.name]])
    assert as_text(own)
    assert assess(finished, Asked(split="valid"))["split"] == "valid"
    with pytest.raises(MapformersError, match="--split is unknown"):
        assess(finished, Asked(split="tset"))
    with pytest.raises(MapformersError, match="--stride is for language models"):
        assess(finished, Asked(stride=3))


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_stopped(finished: Path, tmp_path: Path) -> None:
    train(request(finished.name, tmp_path / "run", max_steps=2))
    train(Request(None, tmp_path / "run", max_steps=4, resume=True))
    one, two = (load_trained(path).model.state_dict() for path in (finished, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_generate_makes(finished: Path) -> None:
    trained, written = load_trained(finished), []
    prompt = Prompt(
        "the old dog sees a king" if finished.name == "translation" else "", 12, 1.0, 0, written.append
    )
    if finished.name in ("forecast", "masked-bytes"):
        with pytest.raises(MapformersError, match="must write text"):
            trained.run.task.generate(trained.model, trained.run.data, prompt)
        return
    trained.run.task.generate(trained.model, trained.run.data, prompt)
    assert written
    if finished.name == "image-generation":
        assert [len(line) for line in written[0].splitlines()] == [16] * 8


@pytest.mark.parametrize("attention", ["full", "linear", "linformer(length=300)", "band(window=4)"])
@pytest.mark.parametrize("preset", ["translation", "forecast", "image-generation", "text-classification"])
def test_another_attention_stands_wherever_it_can(preset: str, attention: str) -> None:
    model = with_attention(load_preset(preset), attention).model
    causal, cross = attention != "linformer(length=300)", attention != "band(window=4)"
    if "encoder_layers" in model:
        assert {layer["attention"] for layer in model["encoder_layers"]} == {attention}
        assert {layer["attention"] == attention for layer in model["layers"]} == {
            causal or attention == "full"
        }
        assert {layer["cross"] == attention for layer in model["layers"]} == {cross}
    else:
        assert {layer["attention"] for layer in model["layers"]} == {attention}
    turned = attention in ("full", "band(window=4)") or load_preset(preset).model.get("rotary") is False
    assert (model.get("positions") == "sinusoidal") == (not turned)


def test_a_batch_of_pairs_by_hand() -> None:
    import numpy as np

    def bytes_of(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8)

    tokens = Tokens()
    made = collate([(bytes_of("ab"), bytes_of("c")), (bytes_of("d"), bytes_of("ef"))], tokens)
    assert (tokens.pad, tokens.start, tokens.end, tokens.vocabulary) == (256, 257, 258, 259)
    assert made["input_ids"].tolist() == [[97, 98], [100, 256]]
    assert made["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert made["labels"].tolist() == [[99, 258, -100], [101, 102, 258]]


@pytest.mark.slow
def test_files_of_ones_own(tmp_path: Path) -> None:
    left, right = Grammar().write(tmp_path / "pairs", 60, seed=1)
    train(request("translation", tmp_path / "t", data=f"{left},{right}"))
    assert assess(tmp_path / "t", Asked(data="grammar"))["examples"] == 4
    rows = [f"2020-01-{1 + i // 24:02} {i % 24:02}:00,{i % 24},{i % 7}" for i in range(500)]
    (tmp_path / "x.csv").write_text("date,a,b\n" + "\n".join(rows) + "\n")
    train(request("forecast", tmp_path / "f", data=str(tmp_path / "x.csv")))
    (tmp_path / "y.csv").write_text("date,a,c\n" + "\n".join(rows) + "\n")
    assert load_trained(tmp_path / "f").model.options.channels == 2
    with pytest.raises(MapformersError, match="must have the columns a, b, got a, c"):
        assess(tmp_path / "f", Asked(data=str(tmp_path / "y.csv")))
    train(request("forecast", tmp_path / "g", "data.target=b", data=str(tmp_path / "x.csv")))
    assert load_trained(tmp_path / "g").model.options.channels == 1


def words_of(folder: Path) -> Path:
    """A tokenizer of whole words, trained on the grammar."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pairs = Grammar().pairs(500, torch.Generator().manual_seed(0))
    tokenizer.train_from_iterator(
        (side for pair in pairs for side in pair), trainers.WordLevelTrainer(special_tokens=["?"])
    )
    tokenizer.save(str(folder / "words.json"))
    return folder / "words.json"


@pytest.mark.slow
def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    path = words_of(tmp_path)
    tokens = Tokens.named(str(path))
    sentence = "leai kelai uno taso viden"
    assert tokens.decode(tokens.encode(sentence)) == sentence
    assert len(tokens.encode(sentence)) == 5
    train(request("translation", tmp_path / "run", f"data.tokenizer={path}", "data.longest=30"))
    path.unlink()  # the run has a copy
    assert load_trained(tmp_path / "run").model.config.vocab_size == tokens.vocabulary
    assert assess(tmp_path / "run")["examples"] == 4
    with pytest.raises(MapformersError, match="tokenizer must be"):
        train(request("translation", tmp_path / "other", f"data.tokenizer={tmp_path / 'none.json'}"))


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    left, right = Grammar().write(tmp_path, 60, seed=1)
    right.write_text("one line\n")
    (tmp_path / "x.csv").write_text("date,a\n2020-01-01,nan\n")
    before = sorted(tmp_path.iterdir())
    for preset, settings, data, rule in (
        ("translation", (), f"{left},{right}", "as many lines, got 60 and 1"),
        ("translation", ("data.longest=20",), "grammar", "at most data.longest=20 bytes"),
        ("forecast", (), str(tmp_path / "x.csv"), "line 2 must have a finite number"),
        ("forecast", (), "", "must be a CSV file"),
        ("forecast", ("data.borders=[3, 40, 50]",), "seasonal", "train must hold"),
        ("forecast", ("data.known=50",), "seasonal", "known must be at most context"),
        ("image-generation", ("data.permute=true",), "digits", "without permute"),
        ("image-generation", ("data.kind=text",), "digits", "needs data.kind=image"),
    ):
        with pytest.raises(MapformersError, match=rule) as caught:
            train(request(preset, tmp_path / "run", *settings, data=data))
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before
