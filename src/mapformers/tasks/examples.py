"""Labelled examples on disk: rows of any lengths in one array, memory-mapped.

A folder holds values.npy, ends.npy and labels.npy; none of them holds objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapformers.core.errors import MapformersError, require

NAMES = ("values", "ends", "labels")


@dataclass(frozen=True)
class Examples:
    """n rows of different lengths.

    values  [total, ...] all rows one after the other: bytes as uint8, pixels or samples as float32 [total, C]
    ends    [n] int64, where each row ends in `values`
    labels  [n] int64, the class of each row
    """

    values: np.ndarray
    ends: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        rows, total = len(self.ends), int(self.ends[-1]) if len(self.ends) else 0
        require(
            len(self.labels) == rows and total == len(self.values),
            f"examples: {rows} rows must end at {len(self.values)} values and have {rows} labels, got "
            f"the end {total} and {len(self.labels)} labels; the files do not belong together",
        )

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], labels: Sequence[int]) -> Examples:
        """From rows [length, ...] of one type."""
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        values = np.concatenate(rows) if len(rows) else np.zeros(0, dtype=np.uint8)
        return cls(values, ends, np.asarray(labels, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> np.ndarray:
        """[length, ...] of one example."""
        start = 0 if index == 0 else int(self.ends[index - 1])
        return self.values[start : int(self.ends[index])]

    def longest(self) -> int:
        """Length of the longest row; 0 where there is none."""
        return int(np.diff(self.ends, prepend=0).max()) if len(self) else 0

    def save(self, folder: Path) -> None:
        """Write the three arrays into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)


def load_examples(folder: Path) -> Examples:
    """Examples written before; the values stay on disk.

    Raises MapformersError when a file is missing or damaged.
    """
    return Examples(*(_array(folder / f"{name}.npy", name == "values") for name in NAMES))


def _array(path: Path, mapped: bool) -> Any:
    try:
        return np.load(path, mmap_mode="r" if mapped and path.stat().st_size > 1 << 20 else None)
    except (OSError, ValueError) as error:
        raise MapformersError(
            f"data: {path} must be a readable array, got {type(error).__name__}; start a new run"
        ) from None
