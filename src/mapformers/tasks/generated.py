"""Labelled examples out of a generator: the same ones for the same seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mapformers.core.errors import require, require_known
from mapformers.tasks.examples import Examples
from mapformers.tasks.grammar import Grammar
from mapformers.tasks.labelled import Labelled
from mapformers.tasks.listops import ListOps
from mapformers.tasks.pathfinder import Pathfinder
from mapformers.tasks.tones import Tones

Rows = tuple[list[np.ndarray], list[int]]
AT_ONCE = 250


def _listops(task: Any, size: int, generator: torch.Generator) -> Rows:
    made = task.batch(size, generator)
    tokens = zip(made.tokens.numpy(), made.is_real.numpy(), strict=True)
    return [row[real].astype(np.uint8) for row, real in tokens], made.target.tolist()


def _pathfinder(task: Any, size: int, generator: torch.Generator) -> Rows:
    made = task.batch(size, generator)
    return [row.numpy().reshape(-1, 1).astype(np.float32) for row in made.images], made.target.tolist()


def _tones(task: Any, size: int, generator: torch.Generator) -> Rows:
    made = task.batch(size, generator)
    return [row.numpy()[:, None].astype(np.float32) for row in made.samples], made.target.tolist()


@dataclass(frozen=True)
class Agreement:
    """Sentences of the made-up language of tasks/grammar.py: does the verb at the end agree with its subject?

    Half of them, class 0, have the verb of the other number. What tells stands at the other end.
    """

    def batch(self, size: int, generator: torch.Generator) -> tuple[list[str], list[int]]:
        """Sentences and classes out of the generator."""
        right = torch.randint(2, (size,), generator=generator).tolist()
        sentences = [target for _, target in Grammar().pairs(size, generator)]
        return [
            sentence if fine else sentence[:-2] + {"is": "en", "en": "is"}[sentence[-2:]]
            for sentence, fine in zip(sentences, right, strict=True)
        ], right


def _agreement(task: Any, size: int, generator: torch.Generator) -> Rows:
    sentences, labels = task.batch(size, generator)
    return [np.frombuffer(sentence.encode(), dtype=np.uint8) for sentence in sentences], labels


GENERATORS: dict[str, tuple[type, Callable[[Any, int, torch.Generator], Rows]]] = {
    "agreement": (Agreement, _agreement),
    "listops": (ListOps, _listops),
    "pathfinder": (Pathfinder, _pathfinder),
    "tones": (Tones, _tones),
}


def options_of(name: str, kind: type, options: dict[str, Any]) -> Any:
    """A generator with these options. Raises MapformersError for unknown ones."""
    known = list(inspect.signature(kind).parameters)
    for key in options:
        require_known(f"data: options of {name}", "option", key, known)
    return kind(**options)


def generate_labelled(name: str, options: dict[str, Any], counts: Sequence[int], seed: int) -> Labelled:
    """counts = (train, valid, test) examples of a generator.

    Raises MapformersError for unknown names and options.
    """
    require_known("data", "generator", name, GENERATORS)
    kind, make = GENERATORS[name]
    task = options_of(name, kind, options)
    generator = torch.Generator().manual_seed(seed)
    splits = {}
    for split, count in zip(("train", "valid", "test"), counts, strict=True):
        rows: list[np.ndarray] = []
        labels: list[int] = []
        while len(rows) < count:
            more, named = make(task, min(AT_ONCE, count - len(rows)), generator)
            rows, labels = rows + more, labels + named
        splits[split] = Examples.of(rows, labels)
    classes = 1 + max(int(examples.labels.max()) for examples in splits.values())
    require(classes >= 2, f"data: {name} must make 2 classes or more, got {classes}; ask for more examples")
    side = getattr(task, "size", None)
    shape = (side, side) if name == "pathfinder" else None
    return Labelled(splits, tuple(map(str, range(classes))), f"made with seed {seed}", shape)
