"""One example of a run's data, and how its places are laid out as cells of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapformers.core.errors import require, require_known
from mapformers.models.adapters.options import GridInput, input_options
from mapformers.models.losses import IGNORED
from mapformers.models.perceiver.model import PerceiverPreTrainedModel
from mapformers.tasks.corpus import load_corpus
from mapformers.tasks.examples import Examples, load_examples
from mapformers.train.classification import SPLITS, collate, facts_of, order_of
from mapformers.train.image_generation import image_tokens
from mapformers.train.loading import Trained
from mapformers.train.masked_language_model import BYTES, hidden_bytes
from mapformers.train.presets import Preset
from mapformers.train.shuffled import seed_of

WIDE = 48  # cells in a line of what has no shape of its own
MOST_CELLS = 4096  # a picture of more places is shown by areas
SHOWN = (
    "classification",
    "image-generation",
    "masked-language-model",
)  # tasks whose examples can be laid out


@dataclass(frozen=True)
class Example:
    """What a model reads, and where it stands in the picture.

    inputs  arguments of the model's forward, one row
    cells   (lines, columns); a text or a sound goes on line by line
    cell    [M] int64, the cell of each place that is attended to; -1 = none
    pixels  [height, width, 3] uint8 that fill the picture, None for a text
    glyphs  [M] uint8 bytes of a text, None for others
    said    where it comes from; label its class, None where there is none
    in_lines  whether the lines are one long line, as of a sound
    """

    inputs: dict[str, Tensor]
    cells: tuple[int, int]
    cell: np.ndarray
    pixels: np.ndarray | None
    glyphs: np.ndarray | None
    said: str
    label: int | None
    in_lines: bool = False


def example_of(trained: Trained, number: int, split: str) -> Example:
    """Example `number` of a split of the run's data.

    Raises MapformersError for numbers and splits that are not there.
    """
    preset, folder = trained.run.preset, trained.run.data
    require_known("inspect", "--split", split, SPLITS)
    if preset.task == "masked-language-model":
        return _hidden_text(trained, number, split)
    examples = load_examples(folder / split)
    require(
        0 <= number < len(examples),
        f"inspect: --example must lie in 0..{len(examples) - 1}, got {number}; choose another",
    )
    said = f"example {number:,} of {len(examples):,} ({split} of {preset.data.source})"
    facts = facts_of(folder)
    if preset.task == "image-generation":
        return _generated(examples, number, facts, said)
    return _labelled(trained.model, preset, examples, number, facts, said)


def _hidden_text(trained: Trained, number: int, split: str) -> Example:
    """Window `number` of a text, which the model reads with some bytes hidden; the picture shows them all."""
    preset, length = trained.run.preset, trained.run.preset.data.context
    text = load_corpus(trained.run.data).split(split)
    count = max(1, len(text) // length)
    require(
        0 <= number < count, f"inspect: --example must lie in 0..{count - 1}, got {number}; choose another"
    )
    part = np.array(text[number * length : (number + 1) * length], dtype=np.uint8)
    tokens = torch.from_numpy(part.astype(np.int64)) + BYTES
    made = hidden_bytes(tokens, seed_of(preset.training.seed, number))
    cell, cells = _areas((-(-len(part) // WIDE), WIDE), False)
    asked = int((made["labels"] != IGNORED).sum())
    said = f"window {number:,} of {count:,} ({split} of {preset.data.source}), {asked} bytes hidden"
    inputs = {"input_ids": made["input_ids"][None]}
    return Example(inputs, cells, cell[: len(part)], None, part, said, None)


def _generated(examples: Examples, number: int, facts: dict[str, Any], said: str) -> Example:
    """Value by value, behind a start: place i + 1 holds value i."""
    (height, width), channels = facts["shape"], facts["channels"]
    tokens = image_tokens(examples, number)  # [1 + n]
    cell = np.concatenate([[-1], np.arange(len(tokens) - 1) // channels])
    pixels = _pixels(examples.row(number).reshape(height, width, -1))
    return Example({"input_ids": tokens[None]}, (height, width), cell, pixels, None, said, None)


def _labelled(
    model: Any, preset: Preset, examples: Examples, number: int, facts: dict[str, Any], said: str
) -> Example:
    row, label = np.asarray(examples.row(number)), int(examples.labels[number])
    order = order_of(preset, examples)
    batch = collate([(row if order is None else row[order], label)])
    batch.pop("labels")
    grid = _grid(model, facts, len(row))
    count = math.prod(grid) if facts["kind"] == "image" else -(-len(row) // _step(model))
    cell, cells = _areas(grid, isinstance(model, PerceiverPreTrainedModel))
    cell = cell[:count] if order is None else cell[order]
    if facts["kind"] == "text":
        return Example(batch, cells, cell, None, row, said, label)
    if facts["kind"] == "image":
        pixels = _pixels(row.reshape(*facts["shape"], -1))
    else:
        pixels = _in_lines(row, grid, _step(model))
    return Example(batch, cells, cell, pixels, None, said, label, in_lines=facts["kind"] != "image")


def _grid(model: Any, facts: dict[str, Any], length: int) -> tuple[int, int]:
    """(lines, columns) of the places of the array."""
    options = _options(model)
    if facts["kind"] == "image":
        lines, columns = options.places if options is not None else facts["shape"]
        return int(lines), int(columns)
    count = -(-length // _step(model))
    return -(-count // WIDE), min(count, WIDE)


def _options(model: Any) -> GridInput | None:
    """Of the adapter that lays values out on a grid, where the model has one."""
    plain = getattr(model.config, "input", None)
    found = None if plain is None else input_options(plain)
    return found if isinstance(found, GridInput) else None


def _step(model: Any) -> int:
    """Samples that are one place of the array."""
    options = _options(model)
    return 1 if options is None else math.prod(options.steps)


def _areas(grid: tuple[int, int], pooled: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """The cell of each place of a grid, in raster order, and the cells: areas where there are too many."""
    lines, columns = grid
    side = math.ceil(math.sqrt(lines * columns / MOST_CELLS)) if pooled else 1
    cells = -(-lines // side), -(-columns // side)
    line, column = np.divmod(np.arange(lines * columns), columns)
    return (line // side) * cells[1] + column // side, cells


def _pixels(values: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 of values [H, W, C] in 0 .. 1, or of any range, which is spread."""
    values = np.asarray(values, dtype=np.float64)
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    shade = np.rint(255 * (values - low) / (high - low)).astype(np.uint8)
    return shade[..., :3] if shade.shape[-1] >= 3 else np.repeat(shade[..., :1], 3, axis=-1)


def _in_lines(row: np.ndarray, grid: tuple[int, int], step: int) -> np.ndarray:
    """The first channel of a sound or of points, mean over each place, spread over the shades."""
    padded = np.pad(row[:, 0].astype(np.float64), (0, -len(row) % step), mode="edge")
    means = padded.reshape(-1, step).mean(1)
    means = (means - means.min()) / max(float(np.ptp(means)), 1e-9)
    filled = np.concatenate([means, np.ones(math.prod(grid) - len(means))])
    return _pixels(filled.reshape(*grid, 1))
