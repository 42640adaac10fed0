"""Splits, class folders and .npz: what all kinds of labelled examples share."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mapformers.core.errors import MapformersError
from mapformers.tasks.labelled import KINDS, Labelled, Piece, from_pieces, read_labelled
from mapformers.tasks.splits import cut


def refusal(kind: str, source: object, size: int | None = None) -> str:
    """The message with which a source is refused."""
    with pytest.raises(MapformersError) as caught:
        read_labelled(kind, str(source), size)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("data: ")
    assert ", got " in message
    assert "; " in message
    return message


def texts(root: Path, counts: dict[str, int]) -> Path:
    """A folder with so many texts of each class; every text says its own path."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.txt").write_text(f"{name}/{index}.txt")
    return root


def contents(made: Labelled, split: str) -> list[str]:
    examples = made.splits[split]
    return [bytes(examples.row(index)).decode() for index in range(len(examples))]


def share(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32


def test_a_hash_of_the_path_decides(tmp_path: Path) -> None:
    made = read_labelled("text", str(texts(tmp_path, {"a": 60, "b": 60})))
    assert list(made.splits) == ["train", "valid", "test"]
    assert made.classes == ("a", "b")
    assert made.shape is None
    assert made.rule == "80/10/10 by the SHA-256 of each relative path"
    borders = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
    for split, (low, high) in borders.items():
        found = contents(made, split)
        assert found
        assert all(low <= share(key) < high for key in found)
        assert [made.classes[label] for label in made.splits[split].labels] == [key[0] for key in found]
    together = [key for split in made.splits for key in contents(made, split)]
    assert len(together) == len(set(together)) == 120


def test_the_place_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    first = read_labelled("text", str(texts(tmp_path / "one", {"a": 30, "b": 30})))
    again = read_labelled("text", str(texts(tmp_path / "two", {"a": 30, "b": 30})))
    for split in first.splits:
        assert contents(first, split) == contents(again, split)


@pytest.mark.parametrize(("count", "wanted"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (10, (8, 1, 1))])
def test_small_classes_are_cut_by_rank(tmp_path: Path, count: int, wanted: tuple[int, ...]) -> None:
    made = read_labelled("text", str(texts(tmp_path, dict.fromkeys("abcde", count))))
    assert "class by class" in made.rule
    for label in range(5):
        sizes = [int((made.splits[split].labels == label).sum()) for split in made.splits]
        assert tuple(sizes) == wanted


def test_a_class_of_two_is_in_train_and_test() -> None:
    shares = {"train": 0.8, "valid": 0.1, "test": 0.1}
    labels = ["a"] * 40 + ["b"] * 2
    chosen, by_class = cut(labels, [str(index) for index in range(42)], shares)
    assert by_class
    assert sorted(chosen[40:]) == ["test", "train"]
    assert [chosen.count(split) for split in shares] == [33, 4, 5]


def test_numbers_are_ordered_by_value() -> None:
    pieces = [
        Piece(np.ones(1, np.uint8), str(label), f"{label} {i}") for label in range(12) for i in range(3)
    ]
    assert from_pieces("x", pieces).classes == tuple(str(label) for label in range(12))


def test_published_splits_are_kept(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 1), ("test", 3)):
        texts(tmp_path / split, {"a": count, "b": count})
    made = read_labelled("text", str(tmp_path))
    assert made.rule == "the published splits"
    assert [len(examples) for examples in made.splits.values()] == [4, 2, 6]
    assert contents(made, "valid") == ["a/0.txt", "b/0.txt"]


@pytest.mark.parametrize(("there", "cut_off"), [("test", "valid"), ("valid", "test")])
def test_the_missing_split_is_cut_from_train(tmp_path: Path, there: str, cut_off: str) -> None:
    texts(tmp_path / "train", {"a": 50, "b": 50})
    texts(tmp_path / there, {"a": 7, "b": 7})
    made = read_labelled("text", str(tmp_path))
    assert made.rule.startswith(f"the published splits; {cut_off} is 10 % of train")
    assert len(made.splits[there]) == 14
    assert len(made.splits["train"]) + len(made.splits[cut_off]) == 100
    assert all(share(f"train/{key}") >= 0.9 for key in contents(made, cut_off))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert read_labelled("text", str(texts(tmp_path, {"bus": 9, "train": 9}))).classes == ("bus", "train")


def test_hidden_files_are_left_out_and_deeper_ones_found(tmp_path: Path) -> None:
    texts(tmp_path, {"a": 3, "b": 3, ".git": 1, "b/deeper": 2})
    (tmp_path / "a" / ".hidden").write_text("x")
    (tmp_path / "README").write_text("no class")
    made = read_labelled("text", str(tmp_path))
    assert sum(map(len, made.splits.values())) == 8


def test_npz_of_each_kind(tmp_path: Path) -> None:
    arrays = {
        "text": np.full((9, 4), 65, np.uint8),
        "image": np.full((9, 2, 5), 255, np.uint8),
        "audio": np.full((9, 6), -32768, np.int16),
        "points": np.arange(9 * 4 * 3).reshape(9, 4, 3),
    }
    shapes = {"text": (4,), "image": (10, 1), "audio": (6, 1), "points": (4, 3)}
    assert set(arrays) == set(KINDS)
    for kind, x in arrays.items():
        path = tmp_path / f"{kind}.npz"
        np.savez(path, x=x, y=np.array([0, 0, 0, 0, 2, 2, 2, 2, 2]))
        made = read_labelled(kind, str(path))
        assert made.classes == ("0", "1", "2")
        assert made.rule.startswith("80/10/10 by the SHA-256 of each row index")
        assert made.splits["train"].row(0).shape == shapes[kind]
        assert made.splits["train"].values.dtype == (np.uint8 if kind == "text" else np.float32)
        assert sum(map(len, made.splits.values())) == 9


def test_npz_with_published_splits(tmp_path: Path) -> None:
    parts = {}
    for number, split in enumerate(("train", "valid", "test")):
        parts[f"x_{split}"] = np.full((8, 3), number, np.float64)
        parts[f"y_{split}"] = np.arange(8, dtype=np.uint8) % 2
    np.savez(tmp_path / "a.npz", **parts)
    made = read_labelled("audio", str(tmp_path / "a.npz"))
    assert [set(examples.values.ravel()) for examples in made.splits.values()] == [{0.0}, {1.0}, {2.0}]
    del parts["x_valid"], parts["y_valid"]
    np.savez_compressed(tmp_path / "b.npz", **parts)
    made = read_labelled("audio", str(tmp_path / "b.npz"))
    assert len(made.splits["valid"]) > 0
    assert len(made.splits["train"]) + len(made.splits["valid"]) == len(made.splits["test"]) == 8
    assert set(made.splits["valid"].values.ravel()) == {0.0}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 3)), "y": np.array([0.0, 1.0])}, "y must be integers"),
        ({"x": np.ones((2, 3)), "y": np.array([True, False])}, "y must be integers"),
        ({"x": np.ones((2, 3)), "y": np.array([[0], [1]])}, "must be integers of the shape [n]"),
        ({"x": np.ones((2, 3)), "y": np.array([0, -1])}, "y[1] must be 0 to 65535, got -1"),
        ({"x": np.ones((2, 3)), "y": np.array([2**63, 1], np.uint64)}, "y[0] must be 0 to 65535"),
        ({"x": np.ones((2, 3)), "y": np.array([0, 1, 1])}, "must be of one length, got 2 rows and 3 labels"),
        ({"x": np.ones((0, 3)), "y": np.ones(0, int)}, "x must hold examples"),
        ({"x": np.float32(1), "y": np.array([0])}, "must be of one length, got no rows"),
        ({"x": np.array([[None]]), "y": np.array([0])}, "x must be arrays without objects"),
        ({"x": np.ones((2, 3))}, "must hold x, y, got x; save x and y"),
        ({"x": np.ones((2, 3)), "y": np.ones(2, int), "z": np.ones(1)}, "must hold x, y, got x, y, z"),
        ({"x_train": np.ones((2, 3)), "y_train": np.ones(2, int)}, "must hold x_test, x_train, y_test"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.array([0, 1])}, "x[1] must be finite, got nan"),
        ({"x": np.array([[1.0], [1e300]]), "y": np.array([0, 1])}, "x[1] must be finite, got inf"),
        ({"x": np.ones((2, 3)), "y": np.array([1, 1])}, "must have 2 classes or more, got 1 (1)"),
    ],
)
def test_npz_that_does_not_hold_examples(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    said = refusal("audio", path)
    assert message in said
    assert str(path) in said


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(3000.0).reshape(1000, 3), y=np.zeros(1000, int))
    whole = path.read_bytes()
    single = io.BytesIO()
    np.save(single, np.ones(3))
    for data in (b"", b"PK\x03\x04", b"hello", whole[:400], whole[:300] + b"?" * 60 + whole[360:]):
        path.write_bytes(data)
        assert f"{path}" in refusal("audio", path)
    path.write_bytes(single.getvalue())
    assert str(path) in refusal("audio", path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "no array")
        archive.writestr("y.npy", "no array either")
    assert str(path) in refusal("audio", path)


def test_classes_that_a_split_lacks(tmp_path: Path) -> None:
    texts(tmp_path / "one" / "train", {"a": 4, "b": 4, "c": 4})
    texts(tmp_path / "one" / "test", {"a": 1, "b": 1})
    assert "class 'c' of train must be in test" in refusal("text", tmp_path / "one")
    texts(tmp_path / "two" / "train", {"a": 4, "b": 4})
    texts(tmp_path / "two" / "test", {"a": 1, "b": 1, "dog": 1})
    assert "class 'dog' of test must be in train" in refusal("text", tmp_path / "two")
    texts(tmp_path / "two" / "dev", {"a": 1, "cat": 1})
    assert "class 'cat' of valid must be in train" in refusal("text", tmp_path / "two")
    texts(tmp_path / "three", {"a": 9, "b": 1})
    assert "class 'b' of train must be in test" in refusal("text", tmp_path / "three")
    texts(tmp_path / "four", {"a": 2, "b": 2})
    assert "must have 3 examples or more of a class, got 4 in all" in refusal("text", tmp_path / "four")


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "none must hold one folder per class" in refusal("text", tmp_path / "none")
    texts(tmp_path / "empty", {"a": 3, "b": 0})
    assert f"{tmp_path / 'empty' / 'b'} must hold files of its class" in refusal("text", tmp_path / "empty")
    texts(tmp_path / "mixed", {"train/a": 1, "test/a": 1, "cat": 1})
    assert "must hold splits only or classes only, got train and cat" in refusal("text", tmp_path / "mixed")
    texts(tmp_path / "twice", {"train/a": 1, "val/a": 1, "valid/a": 1})
    assert "must hold valid once, got train, val, valid" in refusal("text", tmp_path / "twice")
    texts(tmp_path / "one", {"a": 3})
    assert "must have 2 classes or more, got 1 (a)" in refusal("text", tmp_path / "one")


def test_sources_that_are_none(tmp_path: Path) -> None:
    for kind in KINDS:
        path = tmp_path / "a.tar"
        path.write_bytes(b"x")
        assert f"{path} must be a known form of {kind}, got a file .tar" in refusal(kind, path)
        assert "SOURCE must exist" in refusal(kind, tmp_path / "nothing here")
        assert "SOURCE must be a path that can be looked up" in refusal(kind, "x" * 9000)
        assert "must be a name or a path" in refusal(kind, "")
    assert "kind is unknown, got 'txt'; nearest: text" in refusal("txt", tmp_path)
    assert "hf:NAME is read for text, image and audio only" in refusal("points", "hf:x")
    assert "data.size is for images only, got 3 for text" in refusal("text", tmp_path, 3)
    assert "data.size must be an integer of 1 or more, got 0" in refusal("image", tmp_path, 0)


def test_a_strange_name_stays_on_one_line(tmp_path: Path) -> None:
    texts(tmp_path, {"a\nb": 0, "c": 3})
    assert "a b must hold files" in refusal("text", tmp_path)
