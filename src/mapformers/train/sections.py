"""The sections of a preset: what is read, how it is optimised, how long. Each checks its own values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mapformers.core.errors import require, require_known


@dataclass(frozen=True)
class LanguageData:
    """What is read: source, context in bytes, sequences per step and process, and how much of each split is
    used.
    """

    source: str = "stdlib"
    context: int = 1024
    batch: int = 4
    record: int = 1  # sequences start at multiples of this (bytes of an image, say)
    train_bytes: int | None = None  # None = all
    valid_bytes: int | None = 65536
    test_bytes: int | None = None

    def __post_init__(self) -> None:
        _positive("data", self, "context", "batch", "record", "train_bytes", "valid_bytes", "test_bytes")
        require(self.context >= 2, f"data: context must be 2 or more, got {self.context}; raise data.context")


@dataclass(frozen=True)
class LabelledData:
    """Examples with classes: texts, images, sounds, point sets, or a generator.

    source     as in tasks/labelled.py, or the name of a generator: agreement, listops, pathfinder, tones
    size       images are resized to size x size; None = as they are
    longest    longer rows are cut; None = none is cut
    options    of the generator
    classes    how many there must be; None = as many as there are
    permute    put the places of every row into one random order, the same for all
    """

    kind: Literal["text", "image", "audio", "points"] = "image"
    source: str = "digits"
    batch: int = 64
    size: int | None = None
    longest: int | None = None
    train_examples: int | None = None  # None = all; of a generator, how many are made
    valid_examples: int | None = None
    test_examples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    permute: bool = False
    classes: int | None = None

    def __post_init__(self) -> None:
        _positive("data", self, "batch", "size", "longest", "classes")
        _positive("data", self, "train_examples", "valid_examples", "test_examples")


@dataclass(frozen=True)
class AnswersData:
    """A generator of sequences in which some places ask for an answer, fresh ones in every step.

    options    of the generator; see the file of that name in tasks
    """

    source: Literal["recall", "duplication", "copying", "selective_copying", "induction", "passkey"] = (
        "recall"
    )
    batch: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    valid_examples: int = 512
    test_examples: int = 2000

    def __post_init__(self) -> None:
        _positive("data", self, "batch", "valid_examples", "test_examples")


@dataclass(frozen=True)
class PairsData:
    """Pairs of sentences: SOURCE,TARGET names two text files line by line, `grammar` a generator."""

    source: str = "grammar"
    batch: int = 32
    tokenizer: str | None = None  # a tokenizer.json, or a name of the hub; None = bytes
    longest: int = (
        256  # bytes or tokens; longer pairs are left out of training, and refused in the other splits
    )
    train_examples: int | None = None
    valid_examples: int | None = 200
    test_examples: int | None = 500

    def __post_init__(self) -> None:
        _positive("data", self, "batch", "longest", "train_examples", "valid_examples", "test_examples")


@dataclass(frozen=True)
class SeriesData:
    """Windows of a time series in a CSV file: a column of dates, then columns of numbers.

    target     the one column to forecast from itself; None = all columns from all
    context    steps the encoder reads; known: steps of them the decoder reads again; horizon: steps ahead
    borders    steps of train, valid and test; None = 60, 20 and 20 percent
    """

    source: str = ""
    batch: int = 32
    target: str | None = None
    context: int = 96
    known: int = 48
    horizon: int = 24
    borders: list[int] | None = None

    def __post_init__(self) -> None:
        _positive("data", self, "batch", "context", "known", "horizon")
        require(
            self.known <= self.context,
            f"data: known must be at most context={self.context}, got {self.known}; lower it",
        )
        require(
            self.borders is None or (len(self.borders) == 3 and min(self.borders) > 0),
            f"data: borders must be three numbers of steps, got {self.borders}; give train, valid and test",
        )


# What a task reads; the tasks themselves stand in tasks.py.
DATA: dict[str, type] = {
    "language-model": LanguageData,
    "masked-language-model": LanguageData,
    "image-generation": LabelledData,
    "classification": LabelledData,
    "answers": AnswersData,
    "translation": PairsData,
    "forecasting": SeriesData,
}
ARCHITECTURES = ("mapformer", "perceiver", "perceiver-ar")


def require_task(task: str, architecture: str) -> None:
    """Raise MapformersError for names that are not known."""
    require_known("preset", "task", task, DATA)
    require_known("preset", "architecture", architecture, ARCHITECTURES)


@dataclass(frozen=True)
class Optimiser:
    """AdamW and its learning rate over time."""

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt"] = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.1  # cosine and linear end at this share of the learning rate
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # largest norm of the gradient; 0 = no limit

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0,
            f"optimiser: learning_rate must be > 0, got {self.learning_rate}; raise it",
        )
        require(
            0 <= self.final_ratio <= 1,
            f"optimiser: final_ratio must lie in 0..1, got {self.final_ratio}; change it",
        )
        require(
            all(0 <= b < 1 for b in self.betas),
            f"optimiser: betas must lie in 0..1, got {self.betas}; lower them",
        )
        for name in ("warmup_steps", "weight_decay", "clip"):
            require(
                getattr(self, name) >= 0,
                f"optimiser: {name} must be >= 0, got {getattr(self, name)}; raise it",
            )


@dataclass(frozen=True)
class Training:
    """How long, how often, how exactly. Every `_every` counts optimiser steps."""

    max_steps: int = 1000
    accumulate: int = 1  # micro-batches per optimiser step
    eval_every: int = 200
    save_every: int = 200
    log_every: int = 10
    seed: int = 0
    precision: Literal["float32", "bfloat16", "auto"] = "float32"  # bfloat16 = autocast; auto: where fast
    activation_checkpointing: bool = False
    start_from: str | None = None  # a run or one of its checkpoints, whose weights are the start

    def __post_init__(self) -> None:
        _positive("training", self, "max_steps", "accumulate", "eval_every", "save_every", "log_every")
        require(
            0 <= self.seed < 2**32, f"training: seed must lie in 0..2^32-1, got {self.seed}; choose another"
        )


def _positive(who: str, section: Any, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        require(
            value is None or value > 0, f"{who}: {name} must be 1 or more, got {value}; raise {who}.{name}"
        )
