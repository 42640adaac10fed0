"""Labelled examples out of the rows of hf:NAME: what texts, images and sound share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mapformers.tasks.hub import HubData, label_of
from mapformers.tasks.labelled import Labelled, Piece, Shape, class_name, from_pieces


@dataclass(frozen=True)
class HubItem:
    """What a row of a data set holds before it is read, and where it stands."""

    where: str
    value: Any
    label: str
    key: str
    split: str

    def piece(self, row: np.ndarray) -> Piece:
        """The example, given the row [length, ...] read from the value."""
        return Piece(row, self.label, self.key, self.split)


def hub_items(data: HubData, value: str, label: str) -> Iterator[HubItem]:
    """The rows of all splits; classes that are stored as numbers get their names back."""
    names = getattr(data.features(label), "names", None)
    for split in data.splits:
        for number, row in enumerate(data.rows(split, (value, label))):
            name = class_name(row.where, label_of(row.where, row.values[1], names))
            yield HubItem(row.where, row.values[0], name, str(number), split)


def from_hub(data: HubData, pieces: Sequence[Piece], shape: Shape = None) -> Labelled:
    """Examples from the pieces of a data set; the rule names the splits that are left out."""
    made = from_pieces(data.source, pieces, "row index", shape)
    return Labelled(made.splits, made.classes, made.rule + data.remark, shape)
