"""mapformers inspect of classifiers, Perceivers and models of images: record, page, refusals."""

import contextlib
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mapformers.blocks.read import Read, ReadSizes
from mapformers.cli.main import run
from mapformers.core.errors import MapformersError
from mapformers.inspector.example import WIDE, Example, example_of
from mapformers.inspector.picture import PictureRecord, picture_page, record_picture
from mapformers.train.loading import Trained, load_trained
from mapformers.train.run import Request, train
from tests.inspector.test_inspect import data_of, quiet

STEPS = ("training.max_steps=1", "training.eval_every=1", "training.save_every=1", "data.batch=2")
FEW = ("data.train_examples=8", "data.valid_examples=4", "data.test_examples=4")
SMALL = ("model.hidden_size=16", "model.num_attention_heads=4", "model.intermediate_size=16")
FACTS = {"title": "t", "about": "a", "label": "0"}


def trained_on(folder: Path, preset: str, *settings: str) -> Trained:
    train(Request(preset, folder, settings=(*STEPS, *FEW, *settings)))
    return load_trained(folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    sizes = ("model.latents=5", "model.latent_size=16", "model.depth=1", "model.latent_heads=2")
    return trained_on(tmp_path_factory.mktemp("digits") / "run", "image-classification", *sizes)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_on(tmp_path_factory.mktemp("drawn") / "run", "image-generation", *SMALL)


def recorded(trained: Trained, number: int = 1) -> tuple[Example, PictureRecord]:
    example = example_of(trained, number, "test")
    return example, record_picture(trained.model, example, 6, FACTS, quiet)


@torch.no_grad()
def test_the_weights_of_a_read_give_its_values() -> None:
    draw = torch.Generator().manual_seed(0)
    read = Read(ReadSizes(8, 6, heads=2, qk=4, v=4), draw).double()
    x, context = (torch.randn(2, n, d, generator=draw, dtype=torch.float64) for n, d in ((3, 8), (7, 6)))
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, 4:], real[1] = False, False
    for known in (None, real):
        weights = read.weights(x, context, known)
        values = read._heads(read.value(read.context_norm(context)))  # type: ignore[misc]
        wanted = read._attended(read.query_norm(x), context, known, None)
        torch.testing.assert_close((weights @ values).transpose(1, 2).flatten(2), wanted, rtol=0, atol=1e-12)
    assert (read.weights(x, context, real)[1] == 0).all()


def test_latents_read_the_pixels_of_an_image(digits: Trained) -> None:
    example, record = recorded(digits)
    assert example.cells == (8, 8)
    assert example.pixels is not None
    assert example.pixels.shape == (8, 8, 3)
    assert [read.name for read in record.reads] == ["read 1 of 2", "read 2 of 2"]
    first = record.reads[0]
    assert first.weights.shape == (1, 5, 64)
    np.testing.assert_allclose(first.weights.sum(-1), 1, atol=1e-6)
    assert 0 < first.entropy[0] <= 6
    encoder = digits.model.encoder
    with torch.no_grad():
        array, _ = digits.model.input(example.inputs["inputs"])
        wanted = encoder.reads[0].weights(encoder.latents[None], array)[0]
    np.testing.assert_allclose(first.weights, wanted.numpy(), atol=1e-6)
    shares = [share for _, share in record.answer]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 5


def test_permuted_pixels_stand_where_they_came_from(digits: Trained) -> None:
    trained = dataclasses.replace(digits)
    preset = digits.run.preset
    permuted = dataclasses.replace(preset, data=dataclasses.replace(preset.data, permute=True))
    trained = dataclasses.replace(digits, run=dataclasses.replace(digits.run, preset=permuted))
    plain, moved = example_of(digits, 0, "test"), example_of(trained, 0, "test")
    assert (plain.cell == np.arange(64)).all()
    assert sorted(moved.cell) == list(range(64))
    assert not (moved.cell == plain.cell).all()
    assert plain.pixels is not None
    values = moved.inputs["inputs"][0, :, 0].numpy()  # as the model reads them
    shade = np.rint(255 * values).astype(np.uint8)
    assert (shade == plain.pixels[..., 0].reshape(-1)[moved.cell]).all()


def test_a_drawn_image_is_seen_value_by_value(drawn: Trained) -> None:
    example, record = recorded(drawn)
    assert example.cell[0] == -1
    assert (example.cell[1:] == np.arange(64)).all()
    band = record.layers[0]
    assert band.keys.shape == (4, 65, 6)
    assert (band.keys <= np.arange(65)[:, None]).all(), "a drawn image sees what comes later"
    assert record.answer == ()


@pytest.mark.parametrize(("preset", "lines"), [("audio-classification", 4), ("text-classification", None)])
def test_sound_and_text_go_on_line_by_line(tmp_path: Path, preset: str, lines: int | None) -> None:
    sizes = ("model.latents=4", "model.depth=1") if preset.startswith("audio") else SMALL
    example, record = recorded(trained_on(tmp_path / "run", preset, *sizes))
    assert example.cells[1] <= WIDE
    assert lines in (None, example.cells[0])
    assert len(example.cell) == (record.layers[0].keys.shape[1] if record.layers else len(example.cell))
    if record.reads:
        np.testing.assert_allclose(record.reads[0].weights.sum(-1), 1, atol=1e-5)
    assert (example.glyphs is None) == bool(record.reads)
    assert "</html>" in picture_page(record)


@pytest.mark.parametrize("preset", ["perceiver-bytes", "masked-bytes"])
def test_hidden_bytes_of_a_text(tmp_path: Path, preset: str) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"in the beginning was the word, and the word was long enough. " * 100)
    sizes = ("model.latents=4", "model.latent_size=16", "model.depth=1", "model.latent_heads=2")
    sizes = sizes if preset.startswith("perceiver") else SMALL
    settings = (*STEPS, *sizes, f"data.source={text}", "data.context=100")
    train(Request(preset, tmp_path / "run", settings=settings))
    trained = load_trained(tmp_path / "run")
    example, record = recorded(trained, 2)
    assert "window 2 of 3" in example.said
    assert example.glyphs is not None
    assert example.glyphs.shape == (100,)
    assert "".join(map(chr, example.glyphs)) in text.read_text()
    hidden = (example.inputs["input_ids"][0].numpy() - 6 != example.glyphs).sum()
    assert 3 <= hidden <= 30
    assert bool(record.reads) == preset.startswith("perceiver")
    with pytest.raises(MapformersError, match=r"must lie in 0\.\.2, got 3"):
        example_of(trained, 3, "test")


def test_many_places_are_shown_by_areas() -> None:
    from mapformers.inspector.example import _areas

    cell, cells = _areas((224, 224), True)
    assert cells == (56, 56)
    assert (np.bincount(cell) == 16).all()
    assert cell[224 * 4] == 56
    assert _areas((3, 5), True)[1] == (3, 5)


def test_the_page_holds_the_weights_and_no_name_as_markup(digits: Trained) -> None:
    _, record = recorded(digits)
    record = dataclasses.replace(record, facts={**FACTS, "title": "</script><b>title"})
    page = picture_page(record)
    assert "<b>title" not in page
    shares = np.frombuffer(data_of(page, "reads-1"), np.uint8).reshape(1, 5, 64)
    scale = np.frombuffer(data_of(page, "scale-1"), np.float32).reshape(1, 5)
    np.testing.assert_allclose(shares / 255 * scale[..., None], record.reads[1].weights, atol=2e-3)
    facts = json.loads(re.findall(r'id="facts">(.*?)</script>', page, re.DOTALL)[0])
    assert facts["cells"] == [8, 8]
    assert [view["kind"] for view in facts["views"]] == ["read", "read"]


def test_the_command_writes_the_page(digits: Trained, tmp_path: Path) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert (
            run(["inspect", str(digits.run.path), "--example", "2", "--output", str(tmp_path / "p.html")])
            == 0
        )
    assert "example 2 of" in out.getvalue()
    assert "2 reads" in out.getvalue()
    assert (tmp_path / "p.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--example", "999"], "--example must lie in 0..3, got 999"),
        (["--split", "tset"], "nearest: test"),
        (["--text", "a.txt"], "--text is for a language model, got a run of classification"),
        (["--keep", "0"], "--keep must lie in 1..1024, got 0"),
    ],
)
def test_bad_input(
    digits: Trained, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(digits.run.path), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
