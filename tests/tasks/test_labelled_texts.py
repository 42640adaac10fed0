"""Labelled texts: folders, tables, and data sets of the hub."""

import json
from pathlib import Path
from typing import Any

import pytest

from mapformers.tasks import hub as hub_file
from mapformers.tasks.labelled import Labelled, read_labelled
from tests.tasks.test_labelled import contents, refusal

ROWS = [(f"text {index}", "good" if index % 2 else "bad") for index in range(60)]


def csv_text(rows: list[tuple[str, ...]] = ROWS, header: str = "text,label") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def jsonl_text(rows: list[tuple[str, ...]] = ROWS, names: tuple[str, ...] = ("text", "label")) -> str:
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


def read(path: Path, text: str) -> Labelled:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return read_labelled("text", str(path))


def wrong(path: Path, text: str) -> str:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    said = refusal("text", path)
    assert str(path) in said
    return said


def test_bytes_of_files_stay_as_they_are(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(3):
            (tmp_path / name / f"{index}").write_bytes(b"\xff\x00\r\n" + name.encode())
    made = read_labelled("text", str(tmp_path))
    assert bytes(made.splits["test"].row(1)) == b"\xff\x00\r\nb"
    (tmp_path / "b" / "7.md").write_bytes(b"")
    assert "b/7.md must not be empty, got 0 bytes" in refusal("text", tmp_path)


def test_both_tables_say_the_same(tmp_path: Path) -> None:
    first = read(tmp_path / "a.csv", csv_text())
    again = read(tmp_path / "a.jsonl", jsonl_text())
    assert first.classes == again.classes == ("bad", "good")
    assert first.rule == again.rule == "80/10/10 by the SHA-256 of each row index"
    for split in first.splits:
        assert contents(first, split) == contents(again, split)
        labels = [first.classes[label] for label in first.splits[split].labels]
        assert [(text, label) for text, label in zip(contents(first, split), labels, strict=True)] == [
            row for row in ROWS if row[0] in contents(first, split)
        ]
    assert sum(map(len, first.splits.values())) == 60


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_column_of_splits_is_kept(tmp_path: Path, suffix: str) -> None:
    words = ("train", "validation", "test")
    rows = [(f"{word} {label}", label, word) for word in words for label in "ab"]
    names = ("text", "label", "split")
    text = csv_text(rows, "text,label,split") if suffix == "csv" else jsonl_text(rows, names)
    made = read(tmp_path / f"a.{suffix}", text)
    assert made.rule == "the published splits"
    assert [contents(made, split) for split in made.splits] == [
        ["train a", "train b"],
        ["validation a", "validation b"],
        ["test a", "test b"],
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_folder_with_a_table_for_each_split(tmp_path: Path, suffix: str) -> None:
    make = csv_text if suffix == "csv" else jsonl_text
    for stem in ("train", "test"):
        (tmp_path / f"{stem}.{suffix}").write_text(make([(f"{stem} {text}", name) for text, name in ROWS]))
    (tmp_path / "README.md").write_text("x")
    made = read_labelled("text", str(tmp_path))
    assert len(made.splits["test"]) == 60
    assert all(text.startswith("test") for text in contents(made, "test"))
    assert all(text.startswith("train") for text in contents(made, "train") + contents(made, "valid"))
    (tmp_path / f"valid.{suffix}").write_text(make(ROWS))
    assert contents(read_labelled("text", str(tmp_path)), "valid") == [text for text, _ in ROWS]


def test_quotes_line_breaks_and_other_columns(tmp_path: Path) -> None:
    rows = "".join(f'{index},x,"a ""b"",\r\nc é"\r\n\r\n{index},y,d\r\n' for index in range(3))
    made = read(tmp_path / "a.csv", "\ufeffid, label ,text\r\n" + rows)
    assert made.classes == ("x", "y")
    assert contents(made, "train") == ['a "b",\r\nc é', "d"]


def test_labels_of_objects_may_be_numbers(tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": "é", "label": index % 11}) + "\n\n" for index in range(33))
    made = read(tmp_path / "a.jsonl", text)
    assert made.classes == tuple(map(str, range(11)))
    assert contents(made, "test") == ["é"] * 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold rows, got none"),
        ("text,label\n", "must hold rows, got none"),
        ("words,label\na,b\n", "line 1 must name the columns text and label once, got words, label"),
        ("text,text,label\na,b,c\n", "line 1 must name the columns text and label once"),
        ("text,label\na,b\n\nc\n", "line 4 must have 2 columns as the header, got 1"),
        ("text,label\na,b,c\n", "line 2 must have 2 columns as the header, got 3"),
        ('text,label\n"a\nb",x\n,y\n', "line 4 must have a text that is not empty, got an empty text"),
        ("text,label\na,\n", "line 2 must have a label, a name or an integer, got ''"),
        ('text,label\na,b\n"c,d\n', "line 3 must be a readable row, got unexpected end of data"),
        ("text,label\n" + "a" * 140000 + ",b\n", "line 2 must be a readable row, got field larger"),
        ("text,label\n\udcffa,b\n", "byte 11 must be UTF-8, got 0xff; save the file as UTF-8"),
        ("text,label,split\na,b,train\nc,d,\n", "line 3 must have a split of train, valid, test"),
        ("text,label,split\na,b,valid\n", "must have 2 classes or more"),
        ("text,label,split\na,b,test\na,c,test\n", "must hold the split train, got test"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    assert message in wrong(tmp_path / "a.csv", text)


GOOD = '{"text": "a", "label": "b"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "must hold rows, got none"),
        (GOOD + "{'text'\n", "line 2 must be JSON, got Expecting property name"),
        (GOOD + "[" * 100_000 + "\n", "line 2 must be JSON"),
        (GOOD + "1" * 5000 + "\n", "line 2 must be JSON"),
        ("[1]\n", "line 1 must be an object with text and label, got list"),
        (GOOD + '\n{"text": "a"}\n', "line 3 must be an object with text and label, got the keys text"),
        ('{"text": 3, "label": "b"}\n', "line 1 must have a text that is not empty, got int"),
        ('{"text": "", "label": "b"}\n', "line 1 must have a text that is not empty, got an empty text"),
        ('{"text": "a\\ud800", "label": 0}\n', "line 1 must be text that UTF-8 can hold, got '\\ud800'"),
        ('{"text": "a", "label": 0.5}\n', "line 1 must have a label, a name or an integer, got 0.5"),
        ('{"text": "a", "label": true}\n', "line 1 must have a label, a name or an integer, got True"),
        (GOOD + GOOD.replace("}", ', "split": "test"}'), "line 2 must name a split as all rows or none"),
        (GOOD.replace("}", ', "split": 3}'), "line 1 must have a split of train"),
        (GOOD + '{"text": "\udc80"}', f"byte {len(GOOD) + 10} must be UTF-8, got 0x80"),
    ],
)
def test_jsonl_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    assert message in wrong(tmp_path / "a.jsonl", text)


def test_folders_of_tables_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(csv_text())
    (tmp_path / "test.csv").write_text("text,label\n")
    assert f"{tmp_path / 'test.csv'} must hold rows" in refusal("text", tmp_path)
    (tmp_path / "test.csv").write_text("text,label,split\na,good,test\n")
    assert "test.csv line 2 must not name a split in test.csv, got 'test'" in refusal("text", tmp_path)
    (tmp_path / "test.jsonl").write_text(GOOD)
    assert "must hold test once, got test.csv and test.jsonl" in refusal("text", tmp_path)


def test_arrays_that_are_no_text(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "a.npz", x=np.ones((4, 3), int), y=np.arange(4) % 2)
    said = refusal("text", tmp_path / "a.npz")
    assert "x must be uint8 of the shape [n, bytes], got int64 of the shape (4, 3)" in said


def hub(monkeypatch: pytest.MonkeyPatch, names: list[str] | None, **splits: dict[str, list[Any]]) -> None:
    """Puts data sets in the place of those that would be downloaded."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    made = {}
    for split, columns in splits.items():
        made[split] = datasets.Dataset.from_dict(columns)
        if names:
            made[split] = made[split].cast_column("label", datasets.ClassLabel(names=names))
    monkeypatch.setattr(hub_file, "load_hub", lambda source: made)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"text": [text for text, _ in ROWS], "label": [int(name == "good") for _, name in ROWS]}
    hub(monkeypatch, ["bad", "good"], train=columns, validation=columns, test=columns, unsupervised=columns)
    made = read_labelled("text", "hf:films,plain")
    assert made.rule == "the published splits; left out: unsupervised"
    assert made.classes == ("bad", "good")
    assert contents(made, "valid") == columns["text"]
    assert made.splits["valid"].labels.tolist() == columns["label"]
    hub(monkeypatch, None, everything=columns)
    made = read_labelled("text", "hf:films")
    assert made.classes == ("0", "1")
    assert made.rule == "80/10/10 by the SHA-256 of each row index"


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"text": ["a"], "stars": [1]}, None, "hf:films train must have the column label, got text, stars"),
        ({"content": ["a"], "label": [1]}, None, "hf:films train must have the column text, got content, la"),
        ({"text": ["a", ""], "label": [0, 1]}, None, "hf:films train[1] must have a text that is not empty"),
        ({"text": ["a", "b"], "label": [0, -1]}, ["x", "y"], "train[1] must have a label of 0 to 1, got -1"),
        ({"text": ["a", "b"], "label": [0, None]}, ["x", "y"], "train[1] must have a label, a name"),
    ],
)
def test_data_sets_that_have_no_labelled_texts(
    monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[Any]], names: list[str] | None, message: str
) -> None:
    hub(monkeypatch, names, train=columns)
    assert message in refusal("text", "hf:films")


def test_names_and_splits_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hf: needs a name, got 'hf:'" in refusal("text", "hf:")
    hub(monkeypatch, None, one={"text": ["a"]}, two={"text": ["a"]})
    assert "hf:films must have the split train, got one, two" in refusal("text", "hf:films")
