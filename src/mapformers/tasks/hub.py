"""hf:NAME[,CONFIG]: data sets of the Hugging Face hub, or folders in one of their formats (`datasets`)."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mapformers.core.errors import MapformersError, require

SPLITS = ("train", "valid", "test")
# How folders, files and data sets call a split.
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "validation", "dev"), "valid")
PREFIX = "hf:"


class HubRow(NamedTuple):
    """What the wanted columns of a row hold, and where it stands: hf:NAME SPLIT[INDEX]."""

    where: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class HubData:
    """Splits of a data set: ours (train, valid, test) to the data; the names of those that are left out."""

    source: str
    splits: dict[str, Any]
    named: dict[str, str]
    left_out: tuple[str, ...]

    @property
    def remark(self) -> str:
        """The splits that are not read, for the rule of a source; empty where there are none."""
        return f"; left out: {', '.join(self.left_out)}" if self.left_out else ""

    def features(self, column: str) -> Any:
        """The feature of a column in the first split."""
        return next(iter(self.splits.values())).features[column]

    def column(self, *names: str) -> str:
        """The first of these columns that all splits have.

        Raises MapformersError naming the split that has none.
        """
        for name in names:
            if all(name in data.column_names for data in self.splits.values()):
                return name
        split, data = next(
            (split, data) for split, data in self.splits.items() if names[0] not in data.column_names
        )
        raise MapformersError(
            f"data: {self.source} {self.named[split]} must have the column {' or '.join(names)}, got "
            f"{', '.join(data.column_names)}; use a file instead"
        )

    def rows(self, split: str, columns: Iterable[str]) -> Iterable[HubRow]:
        """The rows of one of our splits, one after the other."""
        data = self.splits[split]
        columns = list(columns)
        for index in range(len(data)):
            row = data[index]
            where = f"{self.source} {self.named[split]}[{index}]"
            yield HubRow(where, tuple(row[column] for column in columns))

    def undecoded(self, column: str) -> "HubData":
        """The same with the files of a column as they are, {bytes, path}: our own readers open them."""
        kind = type(self.features(column))
        decodes = hasattr(self.features(column), "decode")
        require(
            decodes,
            f"data: {self.source} column {column} must hold files, got {kind.__name__}; use a file instead",
        )
        raw = {split: data.cast_column(column, kind(decode=False)) for split, data in self.splits.items()}
        return HubData(self.source, raw, self.named, self.left_out)


def is_hub(source: str) -> bool:
    """Whether a SOURCE is hf:NAME."""
    return source.startswith(PREFIX)


def open_hub(source: str) -> HubData:
    """The splits train, valid and test of hf:NAME[,CONFIG]; a single split of any name serves as train.

    Raises MapformersError without the package datasets, for what cannot be loaded, and without splits.
    """
    loaded = load_hub(source)
    found: dict[str, str] = {}
    for key in loaded:
        found.setdefault(SPLIT_NAMES.get(key, ""), key)
    found.pop("", None)
    if not found and len(loaded) == 1:
        found = {"train": next(iter(loaded))}
    require(
        bool(found),
        f"data: {source} must have the split train, got {', '.join(loaded)}; choose another data set",
    )
    splits = {split: loaded[found[split]] for split in SPLITS if split in found}
    for split, data in splits.items():
        require(
            len(data) > 0, f"data: {source} {found[split]} must hold rows, got none; choose another data set"
        )
    left_out = tuple(sorted(set(loaded) - set(found.values())))
    return HubData(source, splits, found, left_out)


def load_hub(source: str) -> Any:
    """All splits of hf:NAME[,CONFIG] by the names of the data set. Downloads through `datasets`."""
    name, _, config = source.removeprefix(PREFIX).partition(",")
    require(bool(name), f"data: hf: needs a name, got {source!r}; write hf:NAME or hf:NAME,CONFIG")
    try:
        import datasets
    except ImportError:
        message = f"data: {source} needs the package datasets, got none; pip install datasets"
        raise MapformersError(message) from None
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # whatever the hub, the network or a script raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        message = (
            f"data: {source} could not be loaded, got {type(error).__name__}: {first}; check name and network"
        )
        raise MapformersError(message) from None
    require(
        hasattr(loaded, "values"),
        f"data: {source} must have splits, got {type(loaded).__name__}; use a file instead",
    )
    return loaded


def opened(where: str, file: Any) -> Path | BinaryIO:
    """What an undecoded column holds, {bytes, path}: its bytes as a file, or the path.

    Raises MapformersError for a row without a file.
    """
    held = file if isinstance(file, dict) else {}
    if held.get("bytes") is not None:
        return io.BytesIO(held["bytes"])
    require(held.get("path") is not None, f"data: {where} must hold a file, got {file!r}; leave the row out")
    return Path(held["path"])


def label_of(where: str, label: Any, names: Any) -> Any:
    """The name of a class that is stored as a number; names None = labels stand for themselves.

    Raises MapformersError for numbers outside of the names: -1 marks a row whose label is kept secret.
    """
    if names is None or label is None:
        return label
    require(
        0 <= label < len(names),
        f"data: {where} must have a label of 0 to {len(names) - 1}, got {label}; use a file instead",
    )
    return names[label]
