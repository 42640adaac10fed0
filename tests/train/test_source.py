"""SOURCE: every kind is split as documented, and what cannot be used is refused in one line."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mapformers.core.errors import MapformersError
from mapformers.tasks import source as sources
from mapformers.tasks.corpus import FACTS, check_corpus, load_corpus, write_corpus
from mapformers.tasks.source import plan_source, split_of
from tests.train.tiny import text


def read(plan: sources.SourcePlan, split: str) -> bytes:
    return b"".join(plan.stream(split))


def test_a_file_is_cut_by_position(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text(1000))
    plan = plan_source(str(path))
    parts = [read(plan, split) for split in ("train", "valid", "test")]
    assert b"".join(parts) == text(1000)
    assert [len(part) for part in parts] == [900, 50, 50]
    assert "by position" in plan.rule


def test_few_files_are_one_stream_cut_by_position(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_bytes(bytes([65 + i]) * 100)
    plan = plan_source(str(tmp_path))
    assert read(plan, "train") == b"A" * 100 + b"B" * 100 + b"C" * 70
    assert read(plan, "valid") + read(plan, "test") == b"C" * 30


def test_many_files_are_split_by_the_hash_of_their_relative_path(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = [f"deep/{i}.txt" for i in range(200)]
    for name in names:
        (tmp_path / name).write_text(name + "\n")
    plan = plan_source(str(tmp_path))
    assert "SHA-256" in plan.rule
    for split in ("train", "valid", "test"):
        assert set(read(plan, split).decode().split()) == {name for name in names if split_of(name) == split}
    share = sum(split_of(name) == "train" for name in names) / len(names)
    assert 0.8 < share < 1.0


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("secret")
    (tmp_path / "a.txt").write_bytes(text(100))
    assert plan_source(str(tmp_path)).files == 1


def test_a_glob_takes_what_matches(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 100)
    (tmp_path / "b.md").write_bytes(b"b" * 100)
    plan = plan_source(str(tmp_path / "*.txt"))
    assert b"".join(read(plan, split) for split in plan.names) == b"a" * 100


def test_stdlib_leaves_out_tests_and_tables() -> None:
    plan = plan_source("stdlib")
    paths = [piece.path for pieces in plan.splits.values() for piece in pieces]
    assert len(paths) > 300
    assert all(path.suffix == ".py" for path in paths)
    assert not {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages"} & {
        p for q in paths for p in q.parts[-3:-1]
    }
    assert "english" in plan.names
    assert len(read(plan, "english")) > 100_000


def test_stdlib_falls_back_on_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    plan = plan_source("stdlib")
    assert "torch's own sources" in plan.rule
    assert plan.files > 300


@pytest.mark.parametrize(
    "splits", [("train",), ("train", "test"), ("test",), ("train", "validation", "test")]
)
def test_hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: tuple[str, ...]) -> None:
    pytest.importorskip("datasets", reason="needs the package datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for split in splits:
        rows = "".join(json.dumps({"text": f"{split} {i}"}) + "\n" for i in range(40))
        (folder / f"{split}.jsonl").write_text(rows)
    corpus = write_corpus(plan_source(f"hf:{folder}"), tmp_path / "out", {})
    parts = {split: bytes(corpus.split(split)).decode().splitlines() for split in ("train", "valid", "test")}
    if len(splits) == 3:
        assert [len(part) for part in parts.values()] == [40, 40, 40]
        assert parts["valid"][0] == "validation 0"
    else:  # the rows of one split, cut in three
        assert [len(part) for part in parts.values()] == [36, 2, 2]
        assert [line for part in parts.values() for line in part] == [f"{splits[0]} {i}" for i in range(40)]


def test_corpus_facts_and_caps(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text(1000))
    corpus = write_corpus(plan_source(str(path)), tmp_path / "data", {"train": 300, "test": None})
    assert isinstance(corpus.split("train"), np.memmap)
    assert bytes(corpus.split("train")) == text(1000)[:300]
    assert corpus.facts["splits"]["test"] == {
        "bytes": 50,
        "sha256": hashlib.sha256(text(1000)[950:]).hexdigest(),
    }
    assert bytes(corpus.split("all")) == text(1000)[:300] + text(1000)[900:]
    assert load_corpus(tmp_path / "data") == corpus
    for fact in ("1 files", "400 bytes", "Python 3", "SHA-256"):
        assert fact in corpus.describe()


@pytest.mark.parametrize("change", ["shorter", "missing", "facts"])
def test_a_changed_corpus_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text(1000))
    write_corpus(plan_source(str(path)), tmp_path / "data", {})
    if change == "shorter":
        (tmp_path / "data" / "train.bin").write_bytes(b"x")
    elif change == "missing":
        (tmp_path / "data" / "valid.bin").unlink()
    else:
        (tmp_path / "data" / FACTS).write_text("{")
    with pytest.raises(MapformersError, match="data: "):
        load_corpus(tmp_path / "data")


def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    empty = tmp_path / "empty.txt"
    empty.touch()
    (tmp_path / "nothing").mkdir()
    cases = {
        "": "must not be empty",
        str(tmp_path / "missing"): "must exist",
        str(empty): "must not be empty",
        str(tmp_path / "nothing"): "must hold files",
        str(tmp_path / "*.none"): "no file matches",
        "hf:": "needs a name",
        f"hf:{tmp_path / 'nowhere'}": "could not be loaded",
    }
    for given, rule in cases.items():
        with pytest.raises(MapformersError, match=rule) as caught:
            plan_source(given)
        assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.txt"
    path.write_bytes(text(100))

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MapformersError, match=r"locked\.txt must be readable, got Permission denied"):
        plan_source(str(path))


def test_data_shorter_than_the_context_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_bytes(text(100))
    corpus = write_corpus(plan_source(str(path)), tmp_path / "data", {})
    with pytest.raises(MapformersError, match=r"at least as long as the context \(91 bytes\), got 90"):
        check_corpus(corpus, 91)
    check_corpus(corpus, 90)


def test_binary_files_are_bytes_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", text(500))
    plan = plan_source(str(path))
    assert b"".join(read(plan, split) for split in plan.names) == path.read_bytes()
