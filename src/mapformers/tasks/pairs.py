"""Pairs of sentences: two text files line by line, or a generated grammar."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from mapformers.core.errors import MapformersError, require
from mapformers.tasks.grammar import Grammar
from mapformers.tasks.hub import is_hub, open_hub

SHARES = (("train", 0.8), ("valid", 0.9), ("test", 1.0))  # up to which part of the hashes
REMEDY = "give SOURCE.txt,TARGET.txt with a sentence a line, hf:NAME, or grammar"
Pair = tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Pairs (source, target) by split, and how the split was made."""

    splits: dict[str, list[Pair]]
    rule: str


def read_pairs(source: str, generated: int, seed: int) -> Pairs:
    """Pairs of SOURCE; `grammar` makes `generated` of them. A sentence with all its translations lies in one
    split.

    Raises MapformersError for files that are missing, empty, no UTF-8, or of different numbers of lines.
    """
    require(bool(source), f"data: SOURCE must not be empty, got ''; {REMEDY}")
    if is_hub(source):
        return _of_hub(source)
    if source == "grammar":
        pairs = Grammar().pairs(generated, torch.Generator().manual_seed(seed))
        rule = f"made with seed {seed}, 80/10/10 by the SHA-256 of each source sentence"
    else:
        names = source.split(",")
        require(len(names) == 2, f"data: SOURCE must name two files, got {source}; {REMEDY}")
        left, right = (_lines(Path(name).expanduser()) for name in names)
        require(
            len(left) == len(right),
            f"data: {names[0]} and {names[1]} must have as many lines, got {len(left)} and {len(right)}; "
            "line n of one is the translation of line n of the other",
        )
        for name, lines in zip(names, (left, right), strict=True):
            empty = next((i for i, line in enumerate(lines) if not line.strip()), None)
            require(
                empty is None, f"data: {name} line {(empty or 0) + 1} must hold a sentence, got none; drop it"
            )
        pairs = list(zip(left, right, strict=True))
        rule = "80/10/10 by the SHA-256 of each source sentence"
    splits: dict[str, list[Pair]] = {name: [] for name, _ in SHARES}
    for pair in pairs:
        splits[_split_of(pair[0])].append(pair)
    return _checked(source, Pairs(splits, rule))


def _of_hub(source: str) -> Pairs:
    """A column `translation` with two languages, or columns source and target; published splits stay.

    Raises MapformersError for other columns and for rows without a sentence.
    """
    data = open_hub(source)
    if all("translation" in rows.column_names for rows in data.splits.values()):
        languages = list(data.features("translation").languages)
        require(
            len(languages) == 2,
            f"data: {source} must be of two languages, got {', '.join(languages)}; name a CONFIG of a pair",
        )
        columns, way = ["translation"], f", {languages[0]} to {languages[1]}"
    else:
        columns, languages, way = [data.column("source"), data.column("target")], [], ""
    splits: dict[str, list[Pair]] = {name: [] for name, _ in SHARES}
    for split in data.splits:
        for row in data.rows(split, columns):
            held = [row.values[0].get(one) for one in languages] if languages else row.values
            pair = tuple(_sentence(row.where, one) for one in held)
            splits[split if len(data.splits) == len(SHARES) else _split_of(pair[0])].append(pair)  # type: ignore[arg-type]
    whole = len(data.splits) == len(SHARES)
    rule = "the published splits" if whole else "80/10/10 by the SHA-256 of each source sentence"
    return _checked(source, Pairs(splits, rule + way + data.remark))


def _sentence(where: str, text: object) -> str:
    """One line."""
    got = "none" if text is None else type(text).__name__ if not isinstance(text, str) else "an empty text"
    require(
        isinstance(text, str) and bool(text.strip()),
        f"data: {where} must hold a sentence in both languages, got {got}; leave it out",
    )
    return " ".join(str(text).split())


def _checked(source: str, pairs: Pairs) -> Pairs:
    for name, found in pairs.splits.items():
        require(
            bool(found), f"data: the {name} split of {source} must hold pairs, got none; give more of them"
        )
    return pairs


def _split_of(sentence: str) -> str:
    share = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4], "big") / 2**32
    return next(name for name, border in SHARES if share < border)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise MapformersError(f"data: {path} must exist, got none; {REMEDY}") from None
    except UnicodeDecodeError as error:
        raise MapformersError(
            f"data: {path} must be UTF-8, got another byte at offset {error.start}; convert it"
        ) from None
    except OSError as error:
        raise MapformersError(
            f"data: {path} must be readable, got {error.strerror or error}; check it"
        ) from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines and not lines[-1]:
        lines.pop()
    require(bool(lines), f"data: {path} must hold sentences, got an empty file; {REMEDY}")
    return lines
