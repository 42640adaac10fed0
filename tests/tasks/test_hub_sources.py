"""hf:NAME for images, sound and pairs: files go through our own readers, and rows are named in errors."""

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapformers.core.errors import MapformersError
from mapformers.tasks import hub
from mapformers.tasks.labelled import Labelled, read_labelled
from mapformers.tasks.pairs import read_pairs

datasets = pytest.importorskip("datasets", reason="needs the package datasets")
image = pytest.importorskip("PIL.Image", reason="needs the package pillow")
Serve = Callable[..., None]
WORDS = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """serve(features, split=[row, ..]) puts data sets in the place of those that would be downloaded."""

    def put(features: dict[str, Any], **splits: list[dict[str, Any]]) -> None:
        made = {}
        for split, rows in splits.items():
            columns = {name: [row[name] for row in rows] for name in features}
            made[split] = datasets.Dataset.from_dict(columns)
            for name, feature in features.items():
                made[split] = made[split].cast_column(name, feature)
        monkeypatch.setattr(hub, "load_hub", lambda source: made)

    return put


def png(shade: int, mode: str = "L", size: tuple[int, int] = (3, 2)) -> dict[str, Any]:
    file = io.BytesIO()
    image.new(mode, size, shade if mode == "L" else (shade, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def wav(samples: list[int], rate: int = 8000) -> dict[str, Any]:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(np.array(samples, "<i2").tobytes())
    return {"bytes": file.getvalue(), "path": None}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(MapformersError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(made: Labelled, split: str) -> list[np.ndarray]:
    return [made.splits[split].row(i) for i in range(len(made.splits[split]))]


@pytest.mark.parametrize("column", ["image", "img"])
def test_images_in_published_splits(serve: Serve, column: str) -> None:
    rows = [{column: png(255), "label": 0}, {column: png(51, "RGB"), "label": 1}]
    features = {column: datasets.Image(), "label": WORDS}
    serve(features, train=rows, validation=rows, test=rows, extra=rows)
    made = read_labelled("image", "hf:pets")
    assert (made.classes, made.shape) == (("cat", "dog"), (2, 3))
    assert made.rule == "the published splits; left out: extra"
    grey, red = rows_of(made, "valid")
    np.testing.assert_array_equal(grey, np.ones((6, 3), np.float32))  # made coloured as the other is
    np.testing.assert_allclose(red, np.tile(np.float32([0.2, 0, 0]), (6, 1)))
    assert read_labelled("image", "hf:pets", 4).shape == (4, 4)


def test_images_that_are_none(serve: Serve) -> None:
    features = {"image": datasets.Image(), "label": WORDS}
    good = [{"image": png(9), "label": i % 2} for i in range(4)]
    serve(features, train=[*good, {"image": {"bytes": b"\x89PNG cut", "path": None}, "label": 0}])
    assert "hf:pets train[4] must be a readable image" in refusal(lambda: read_labelled("image", "hf:pets"))
    serve(features, train=[*good, {"image": png(9, size=(5, 2)), "label": 0}])
    said = refusal(lambda: read_labelled("image", "hf:pets"))
    assert "hf:pets train[4] must be 2 x 3 (height x width) as hf:pets train[0], got 2 x 5" in said
    serve(features, train=[*good, {"image": None, "label": 0}])
    assert "hf:pets train[4] must hold a file, got None" in refusal(lambda: read_labelled("image", "hf:pets"))
    serve(features, train=[*good, {"image": png(9), "label": -1}])
    assert "train[4] must have a label of 0 to 1, got -1" in refusal(
        lambda: read_labelled("image", "hf:pets")
    )
    serve({"picture": datasets.Image(), "label": WORDS}, train=[{"picture": png(9), "label": 0}])
    said = refusal(lambda: read_labelled("image", "hf:pets"))
    assert "hf:pets train must have the column image or img, got picture, label" in said
    serve({"image": datasets.Value("string"), "label": WORDS}, train=[{"image": "x.png", "label": 0}])
    assert "column image must hold files, got Value" in refusal(lambda: read_labelled("image", "hf:pets"))


def test_sound(serve: Serve, tmp_path: Path) -> None:
    """As bytes in the row, or as a path."""
    features = {"audio": datasets.Audio(), "label": datasets.Value("string")}
    path = tmp_path / "b.wav"
    path.write_bytes(wav([0, 8192])["bytes"])
    rows = [
        {"audio": wav([16384, -32768, 0]), "label": "up"},
        {"audio": {"bytes": None, "path": str(path)}, "label": "down"},
    ]
    serve(features, train=rows, dev=rows, test=rows)
    made = read_labelled("audio", "hf:tones")
    assert made.classes == ("down", "up")
    first, second = rows_of(made, "train")
    np.testing.assert_array_equal(first, np.float32([[0.5], [-1], [0]]))
    np.testing.assert_array_equal(second, np.float32([[0], [0.25]]))
    serve(features, train=[*rows, {"audio": wav([1], rate=16000), "label": "up"}])
    said = refusal(lambda: read_labelled("audio", "hf:tones"))
    assert "hf:tones train[2] must have the sample rate 8000 of hf:tones train[0], got 16000" in said
    serve(features, train=[*rows, {"audio": {"bytes": b"ID3 an mp3", "path": None}, "label": "up"}])
    said = refusal(lambda: read_labelled("audio", "hf:tones"))
    assert "hf:tones train[2] must be a readable PCM .wav" in said


def test_pairs_of_a_translation_column(serve: Serve) -> None:
    features = {"translation": datasets.Translation(languages=["de", "en"])}
    rows = [{"translation": {"de": f"das  Haus\n{i}", "en": f"the house {i}"}} for i in range(3)]
    serve(features, train=rows, validation=rows[:1], test=rows[1:])
    made = read_pairs("hf:houses", 0, 0)
    assert made.rule == "the published splits, de to en"
    assert made.splits["valid"] == [("das Haus 0", "the house 0")]
    assert [len(made.splits[split]) for split in ("train", "valid", "test")] == [3, 1, 2]
    serve(features, train=[*rows, {"translation": {"de": "ja", "en": " "}}])
    said = refusal(lambda: read_pairs("hf:houses", 0, 0))
    assert "hf:houses train[3] must hold a sentence in both languages, got an empty text" in said


def test_pairs_of_two_columns_are_split_by_their_source(serve: Serve) -> None:
    features = {"source": datasets.Value("string"), "target": datasets.Value("string")}
    rows = [{"source": f"word {i // 2}", "target": f"mot {i}"} for i in range(200)]
    serve(features, train=rows)
    made = read_pairs("hf:words", 0, 0)
    assert made.rule == "80/10/10 by the SHA-256 of each source sentence"
    assert sum(map(len, made.splits.values())) == 200
    sources = [{source for source, _ in pairs} for pairs in made.splits.values()]
    assert not sources[0] & sources[1]
    assert not sources[0] & sources[2]
    serve({"text": datasets.Value("string")}, train=[{"text": "a"}])
    said = refusal(lambda: read_pairs("hf:words", 0, 0))
    assert "hf:words train must have the column source, got text" in said


def test_an_empty_split_is_named(serve: Serve) -> None:
    serve({"image": datasets.Image(), "label": WORDS}, train=[])
    assert "hf:pets train must hold rows, got none" in refusal(lambda: read_labelled("image", "hf:pets"))
