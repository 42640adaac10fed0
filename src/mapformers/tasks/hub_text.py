"""hf:NAME[,CONFIG]: text from a Hugging Face data set, or from a folder in one of its formats, through
`datasets`.
"""

from collections.abc import Iterator
from typing import Any

from mapformers.core.errors import require
from mapformers.tasks.hub import load_hub
from mapformers.tasks.source import SPLITS, SourcePlan

COLUMNS = ("text", "content", "document", "article", "sentence")
ALIASES = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}


class Rows:
    """The text column of rows [start, stop) of a data set, a line break after each."""

    def __init__(self, data: Any, column: str, start: int = 0, stop: int | None = None) -> None:
        self.data, self.column = data, column
        self.start, self.stop = start, len(data) if stop is None else stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[str]:
        for row in range(self.start, self.stop):
            text = self.data[row][self.column] or ""
            yield text if text.endswith("\n") else text + "\n"


def plan_hub(source: str) -> SourcePlan:
    """The plan for hf:NAME[,CONFIG]; missing splits are cut from the rows of train.

    Downloads through `datasets`.
    """
    loaded = load_hub(source)
    column = _text_column(source, loaded)
    found: dict[str, Any] = {}
    for split in SPLITS:
        for alias in ALIASES[split]:
            if alias in loaded:
                found[split] = loaded[alias]
    train = found["train"] if "train" in found else next(iter(loaded.values()))
    require(
        len(train) > 0,
        f"data: {source} must not be empty, got 0 rows; choose another data set or configuration",
    )
    if len(found) == len(SPLITS):
        texts = {split: Rows(data, column) for split, data in found.items()}
        return SourcePlan(source, "the splits of the data set", 0, {}, texts)
    held_out = max(1, int(len(train) * SPLITS["test"]))
    require(
        len(train) >= 3,
        f"data: {source} must have 3 rows or more to be split, got {len(train)}; use a file instead",
    )
    border = len(train) - 2 * held_out
    texts = {
        "train": Rows(train, column, 0, border),
        "valid": Rows(train, column, border, border + held_out),
        "test": Rows(train, column, border + held_out),
    }
    return SourcePlan(
        source, "first 90 % of the rows to train, next 5 % to valid, last 5 % to test", 0, {}, texts
    )


def _text_column(source: str, loaded: Any) -> str:
    columns = next(iter(loaded.values())).column_names
    column = next((name for name in COLUMNS if name in columns), None)
    require(
        column is not None,
        f"data: {source} must have a text column ({', '.join(COLUMNS)}), got {', '.join(columns)}; use a "
        "file instead",
    )
    return str(column)
