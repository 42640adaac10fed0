"""What a run is about: a task knows its data, its model, its loss and how it is scored.

`run`, `eval` and the report ask the task; none of them knows what a text or an image is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from torch.utils.data import Dataset

from mapformers.core.errors import require
from mapformers.train.presets import Preset


@dataclass(frozen=True)
class Check:
    """A validation: figures by name, the same as a line for people, and a sample of what the model makes."""

    figures: dict[str, float]
    text: str
    sample: dict[str, str] | None = None


@dataclass(frozen=True)
class Asked:
    """What `eval` asks for. `positions` and `stride` mean something to language models only."""

    data: str | None = None
    split: str | None = None
    positions: int | None = None
    stride: int | None = None
    tick: Callable[[float], None] | None = None


@dataclass(frozen=True)
class Prompt:
    """What `generate` asks for: at most `count` new bytes behind `text`, handed to `write` as they come."""

    text: str
    count: int
    temperature: float
    seed: int
    write: Callable[[str], None]


@dataclass(frozen=True)
class Feed:
    """What training reads: an endless data set, and how rows become a batch (None = stacked)."""

    rows: Dataset[Any]
    collate: Callable[[list[Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Score:
    """The end of a run on data it has not seen.

    test       figures by name, that of the task among them
    baselines  the same figure of simple models, by what they are
    more       further parts of results.json
    """

    test: dict[str, Any]
    baselines: dict[str, float]
    more: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """score and unit name the figure that a run is judged by."""

    score: ClassVar[str]
    unit: ClassVar[str]
    counted: ClassVar[str] = "examples"  # what the speed is said in
    loss: ClassVar[str] = "task"  # the part of a model's losses that is the task's own

    @abstractmethod
    def check(self, preset: Preset) -> None:
        """Raise MapformersError for what can be seen to be wrong before anything is written."""

    @abstractmethod
    def write_data(self, preset: Preset, folder: Path) -> None:
        """Write the data of a run into `folder`, which does not exist yet, facts.json last."""

    @abstractmethod
    def describe(self, folder: Path) -> str:
        """The data in `folder` in one line."""

    @abstractmethod
    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """Fields of the model's config that follow from the data; without a folder from the preset alone."""

    @abstractmethod
    def feed(self, preset: Preset, folder: Path) -> Feed:
        """What training reads."""

    @abstractmethod
    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """A model in evaluation mode on the validation split."""

    @abstractmethod
    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """A model in evaluation mode on the test split."""

    @abstractmethod
    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """The same as asked for on the command line, as plain data."""

    @abstractmethod
    def line(self, result: dict[str, Any]) -> str:
        """What `assess` found, for people."""

    @abstractmethod
    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """results.json for people, and what to do next."""

    def figures(self, loss: float) -> dict[str, float]:
        """What follows from the mean loss in training, by name."""
        return {}

    def progress(self, loss: float) -> str:
        """The same as a part of a line."""
        return f"loss {loss:.3f}"

    def size(self, inputs: dict[str, Any]) -> int:
        """How many of what is `counted` stand in a micro-batch."""
        return len(next(iter(inputs.values())))

    def generate(self, model: nn.Module, folder: Path, prompt: Prompt) -> None:
        """What a model makes of a prompt. Raises MapformersError where it makes nothing."""
        name = type(self).__name__.lower()
        require(False, f"generate: RUN must write text, got the task {name}; see mapformers eval")


def refuse_language_options(asked: Asked) -> None:
    """Raise MapformersError for options of `eval` that only language models know."""
    for name, value in (("--prefix-only", asked.positions), ("--stride", asked.stride)):
        require(
            value is None,
            f"eval: {name} is for language models, got {value}; leave it out",
        )


def table(rows: list[tuple[str, float]], digits: int = 3) -> list[str]:
    """Lines of names and numbers, the numbers below each other."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}} {value:{digits + 5}.{digits}f}" for name, value in rows]
