"""Labelled texts: class folders, .csv, .jsonl, folders with train.csv, .npz, and hf:NAME.

A row is uint8 [n]: the bytes of a text, UTF-8 where the source has characters.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapformers.tasks.hub import SPLIT_NAMES, open_hub
from mapformers.tasks.labelled import (
    Labelled,
    Piece,
    class_files,
    class_name,
    from_blocks,
    from_pieces,
    read_bytes,
    read_npz,
    refuse,
    refuse_form,
)
from mapformers.tasks.labelled_hub import from_hub, hub_items

TABLES = (".csv", ".jsonl")
NAMES = ", ".join(SPLIT_NAMES)


@dataclass(frozen=True)
class Record:
    """A row of a table: where it stands, and what its columns hold. `split` is None without such a column."""

    where: str
    text: Any
    label: Any
    split: Any = None


def read_texts(path: Path) -> Labelled:
    """The texts of an .npz, .csv or .jsonl file, of class folders, or of a folder with train.csv or
    train.jsonl.

    Raises MapformersError naming the file, and its line or byte.
    """
    if path.is_dir():
        tables = _split_tables(path)
        return _from_tables(path, tables) if tables else _from_files(path)
    if path.suffix.lower() in TABLES:
        return _from_tables(path, {None: path})
    if path.suffix.lower() != ".npz":
        refuse_form("text", path)
    blocks = read_npz(path)
    for block in blocks:
        if block.x.dtype != np.uint8 or block.x.ndim != 2:
            got = f"{block.x.dtype} of the shape {block.x.shape}"
            refuse(block.where, "must be uint8 of the shape [n, bytes]", got, "save the bytes of the texts")
    return from_blocks(path, blocks, [list(block.x) for block in blocks])


def read_hub_texts(source: str) -> Labelled:
    """The columns text and label of hf:NAME[,CONFIG], through `datasets`, which downloads.

    Raises MapformersError when the package, the data set or a column is missing, and for rows without text
    or label.
    """
    data = open_hub(source)
    items = hub_items(data, data.column("text"), data.column("label"))
    return from_hub(data, [item.piece(_bytes_of(item.where, item.value)) for item in items])


def _from_files(folder: Path) -> Labelled:
    pieces = []
    for file in class_files("text", folder, None):
        row = np.frombuffer(read_bytes(file.path), np.uint8)
        if not len(row):
            refuse(str(file.path), "must not be empty", "0 bytes", "give it text or leave it out")
        pieces.append(file.piece(row))
    return from_pieces(folder, pieces)


def _split_tables(folder: Path) -> dict[str | None, Path]:
    """The files of a folder that are named after splits."""
    found: dict[str | None, Path] = {}
    for path in sorted(folder.glob("*")):
        split = SPLIT_NAMES.get(path.stem)
        if split is None or path.suffix.lower() not in TABLES or not path.is_file():
            continue
        if split in found:
            got = f"{found[split].name} and {path.name}"
            refuse(str(folder), f"must hold {split} once", got, "remove one of them")
        found[split] = path
    return found


def _from_tables(source: Path, tables: dict[str | None, Path]) -> Labelled:
    records = []
    for split, path in tables.items():
        rows = list(_csv_records(path) if path.suffix.lower() == ".csv" else _json_records(path))
        if not rows:
            refuse(str(path), "must hold rows", "none", "add rows with text and label")
        if split is not None and rows[0].split is not None:
            refuse(rows[0].where, f"must not name a split in {path.name}", repr(rows[0].split), "drop split")
        records.append(rows)
    return from_pieces(source, _pieces(records, list(tables)), "row index")


def _pieces(tables: Sequence[Sequence[Record]], splits: Sequence[str | None]) -> list[Piece]:
    """The examples of each table; `splits` has the published split of each, or None."""
    pieces = []
    for records, split in zip(tables, splits, strict=True):
        for index, record in enumerate(records):
            has_split = records[0].split is not None
            if (record.split is not None) != has_split:
                rule = "must name a split as all rows or none"
                refuse(record.where, rule, repr(record.split), f"write one of {NAMES}")
            own = _split(record) if has_split else split
            row, label = _bytes_of(record.where, record.text), class_name(record.where, record.label)
            pieces.append(Piece(row, label, str(index), own))
    return pieces


def _bytes_of(where: str, text: Any) -> np.ndarray:
    """uint8 [n]"""
    if not isinstance(text, str) or not text:
        got = "an empty text" if text == "" else type(text).__name__
        refuse(where, "must have a text that is not empty", got, "give it text or leave it out")
    try:
        return np.frombuffer(text.encode("utf-8"), np.uint8)
    except UnicodeEncodeError as error:
        got = f"{text[error.start]!a} at character {error.start}"
        refuse(where, "must be text that UTF-8 can hold", got, "mend it or leave it out")


def _split(record: Record) -> str:
    word = record.split.strip().lower() if isinstance(record.split, str) else ""
    if word not in SPLIT_NAMES:
        refuse(record.where, f"must have a split of {NAMES}", repr(record.split)[:60], "correct it")
    return SPLIT_NAMES[word]


def _characters(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        got = f"0x{error.object[error.start]:02x}"
        refuse(f"{path} byte {error.start}", "must be UTF-8", got, "save the file as UTF-8")


def _csv_records(path: Path) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(_characters(path), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path} line {reader.line_num + 1}"  # a quoted text may go on over further lines
        try:
            row = next(reader, None)
        except csv.Error as error:  # an open quote, or a text above the limit of the csv module
            refuse(where, "must be a readable row", str(error), "close its quotes, or use .jsonl")
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = _header(where, row)
            continue
        if len(row) != len(header):
            remedy = "complete the row, and quote texts with commas"
            refuse(where, f"must have {len(header)} columns as the header", str(len(row)), remedy)
        split = row[header.index("split")] if "split" in header else None
        yield Record(where, row[header.index("text")], row[header.index("label")], split)


def _header(where: str, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    if names.count("text") != 1 or names.count("label") != 1 or names.count("split") > 1:
        got = ", ".join(names)[:100]
        refuse(where, "must name the columns text and label once", got, "add a header line")
    return names


def _json_records(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_characters(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:  # deep nesting is the second
            refuse(where, "must be JSON", str(error).splitlines()[0][:100], "write one object in each line")
        if not isinstance(said, dict) or "text" not in said or "label" not in said:
            got = f"the keys {', '.join(said)}"[:100] if isinstance(said, dict) else type(said).__name__
            refuse(where, "must be an object with text and label", got, "add the missing key")
        yield Record(where, said["text"], said["label"], said.get("split"))
