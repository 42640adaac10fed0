"""Time series: a CSV file with a column of dates, scaled by what is trained on, cut into windows.

Formula  z = (x - mean) / deviation of the training steps; a window at t has `context` steps before t and
         `horizon` steps from t on
"""

from __future__ import annotations

import csv
import datetime
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mapformers.core.errors import MapformersError, require, require_known

FEATURES = ("hour of day", "day of week", "day of month", "day of year")
SHARES = (0.6, 0.2, 0.2)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Series:
    """values [n, channels] float64 as they stand in the file, dates of the n steps, names of the channels."""

    values: np.ndarray
    dates: list[datetime.datetime]
    names: tuple[str, ...]

    def features(self) -> np.ndarray:
        """[n, 4] float32: hour, day of week, of month and of year, each from -0.5 to 0.5."""
        rows = [
            (
                (date.hour + date.minute / 60) / 23,
                date.weekday() / 6,
                (date.day - 1) / 30,
                (date.timetuple().tm_yday - 1) / 365,
            )
            for date in self.dates
        ]
        return np.asarray(rows, dtype=np.float32) - 0.5

    def steps_of_a_day(self) -> int:
        """Steps from one hour to the same of the next day; 1 where a step is a day or more."""
        gaps = [(b - a) / DAY for a, b in itertools.pairwise(self.dates[:50])]
        gap = sorted(gaps)[len(gaps) // 2]
        return max(1, round(1 / gap)) if gap > 0 else 1


def read_series(path: Path, target: str | None = None) -> Series:
    """A CSV file: a header, a first column of dates, then columns of numbers; `target` = one of them alone.

    Raises MapformersError naming the file and the line of what cannot be read, and of values that are no
    finite numbers.
    """
    require(path.is_file(), f"data: {path} must be a CSV file, got none; give a file with a header")
    dates: list[datetime.datetime] = []
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            require(
                len(header) >= 2,
                f"data: {path} line 1 must name a column of dates and one of numbers, got {header}; add it",
            )
            for cells in reader:
                date, numbers = _row(path, reader.line_num, cells, header)
                dates.append(date)
                rows.append(numbers)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MapformersError(f"data: {path} must be readable CSV, got {error}; repair it") from None
    require(len(rows) >= 10, f"data: {path} must have 10 steps or more, got {len(rows)}; give more")
    names, values = tuple(header[1:]), np.asarray(rows)
    if target is not None:
        require_known("data", f"column of {path}", target, names)
        values, names = values[:, [names.index(target)]], (target,)
    return Series(values, dates, names)


def seasonal(steps: int, channels: int, seed: int) -> Series:
    """An hourly series made of days, weeks, a slow wave and noise: something to try a model on."""
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, steps, channels))))
    hours = np.arange(steps)[:, None]
    values = draw.normal(size=(steps, channels)) * 0.2
    for period, size in ((24, 1.0), (168, 0.5), (2000, 0.5)):
        phase, weight = draw.random(channels) * 2 * math.pi, draw.random(channels) + 0.5
        values = values + size * weight * np.sin(2 * math.pi * hours / period + phase)
    start = datetime.datetime(2020, 1, 1)
    dates = [start + datetime.timedelta(hours=int(i)) for i in range(steps)]
    return Series(values, dates, tuple(f"channel {i + 1}" for i in range(channels)))


def borders_of(steps: int, given: list[int] | None, context: int, horizon: int) -> tuple[int, int, int]:
    """The ends of train, valid and test. Raises MapformersError where a split has no whole window."""
    sizes = [int(steps * share) for share in SHARES] if given is None else given
    require(
        sum(sizes) <= steps,
        f"data: borders must sum to at most the {steps} steps there are, got {sizes}; lower them",
    )
    require(
        sizes[0] >= context + horizon and min(sizes[1:]) >= horizon,
        f"data: train must hold context + horizon = {context + horizon} steps and the others {horizon}, got "
        f"{sizes}; give more data or lower data.context and data.horizon",
    )
    return sizes[0], sizes[0] + sizes[1], sum(sizes)


def scaled(values: np.ndarray, train: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(z, mean, deviation): float32 [n, channels] standardised by the first `train` steps alone."""
    mean, deviation = values[:train].mean(0), values[:train].std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return ((values - mean) / deviation).astype(np.float32), mean, deviation


def naive_errors(
    values: np.ndarray, start: int, end: int, horizon: int, day: int
) -> dict[str, dict[str, float]]:
    """Mean squared and absolute errors of forecasts without a model, over every window of [start, end).

    values [n, channels] are standardised by the training steps, so that 0 is their mean.
    """
    windows = np.lib.stride_tricks.sliding_window_view(values[start:end], horizon, axis=0)  # [w, C, h]
    count = windows.shape[0]
    forecasts = {
        "repeat the last day": np.stack(
            [values[start - day + i % day :][:count] for i in range(horizon)], -1
        ),
        "repeat the last value": np.repeat(values[start - 1 : start - 1 + count, :, None], horizon, -1),
        "mean of train": np.zeros(1, dtype=values.dtype),
    }
    return {
        name: {
            "mse": float(np.square(windows - guess, dtype=np.float64).mean()),
            "mae": float(np.abs(windows - guess, dtype=np.float64).mean()),
        }
        for name, guess in forecasts.items()
    }


def _row(path: Path, line: int, cells: list[str], header: list[str]) -> tuple[datetime.datetime, list[float]]:
    """The date and the numbers of a line."""
    require(
        len(cells) == len(header),
        f"data: {path} line {line} must have {len(header)} cells, got {len(cells)}; repair it",
    )
    try:
        date = datetime.datetime.fromisoformat(cells[0].strip())
    except ValueError:
        raise MapformersError(
            f"data: {path} line {line} must begin with a date like 2016-07-01 00:00:00, got "
            f"{cells[0][:40]!r}; repair it"
        ) from None
    numbers = []
    for name, cell in zip(header[1:], cells[1:], strict=True):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        require(
            math.isfinite(number),
            f"data: {path} line {line} must have a finite number in column {name}, got {cell[:40]!r}; fill "
            "the gap or leave the line out",
        )
        numbers.append(number)
    return date, numbers
