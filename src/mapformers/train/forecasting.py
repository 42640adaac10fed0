"""The task forecasting: the next steps of a time series, beside forecasts that need no model."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mapformers.core.errors import require, require_known
from mapformers.tasks.corpus import FACTS, write_text
from mapformers.tasks.series import borders_of, naive_errors, read_series, scaled, seasonal
from mapformers.train.classification import facts_of
from mapformers.train.presets import Preset
from mapformers.train.shuffled import Shuffled
from mapformers.train.task import Asked, Check, Feed, Score, Task, refuse_language_options

GENERATED = "seasonal"
STEPS, CHANNELS = 6000, 3  # of the generated series
BATCH = 64  # windows of a validation at once
SPLITS = ("valid", "test")


class Forecasting(Task):
    """Mean squared error over every window of the test split, of standardised values."""

    score, unit, counted = "mse", "mean squared error", "windows"

    def check(self, preset: Preset) -> None:
        """The file must be named."""
        require(
            bool(preset.data.source), "data: SOURCE must be a CSV file, got ''; give --data FILE, or seasonal"
        )

    def write_data(self, preset: Preset, folder: Path) -> None:
        """Standardised values and features of all steps, and what they are."""
        data = preset.data
        source = data.source
        series = (
            seasonal(STEPS, CHANNELS, preset.training.seed)
            if source == GENERATED
            else read_series(Path(source).expanduser(), data.target)
        )
        ends = borders_of(len(series.values), data.borders, data.context, data.horizon)
        z, mean, deviation = scaled(series.values, ends[0])
        day = series.steps_of_a_day()
        folder.mkdir(parents=True)
        np.save(folder / "values.npy", z[: ends[2]], allow_pickle=False)
        np.save(folder / "features.npy", series.features()[: ends[2]], allow_pickle=False)
        facts = {
            "source": source,
            "rule": f"{ends[0]:,} steps to train, then {ends[1] - ends[0]:,} and {ends[2] - ends[1]:,}",
            "channels": list(series.names),
            "mean": mean.tolist(),
            "deviation": deviation.tolist(),
            "ends": list(ends),
            "steps_of_a_day": day,
            "sha256": hashlib.sha256(z.tobytes()).hexdigest(),
            "python": platform.python_version(),
            "splits": {
                name: {"steps": stop - start}
                for name, start, stop in zip(("train", *SPLITS), (0, *ends), ends, strict=False)
            },
        }
        write_text(folder / FACTS, json.dumps(facts, indent=1))

    def describe(self, folder: Path) -> str:
        """Source, channels and splits."""
        facts = facts_of(folder)
        return (
            f"{facts['source']}: {len(facts['channels'])} channels ({', '.join(facts['channels'][:8])}); "
            f"split: {facts['rule']}; scaled by train; SHA-256 {facts['sha256'][:12]}"
        )

    def model_fields(self, preset: Preset, folder: Path | None) -> dict[str, Any]:
        """Channels and lengths."""
        data = preset.data
        channels = 7 if folder is None else len(facts_of(folder)["channels"])
        channels = 1 if data.target is not None else channels
        sizes = {"context": data.context, "known": data.known, "horizon": data.horizon}
        sizes = {**sizes, "channels": channels, "outputs": channels}
        return {"input": {**(preset.model.get("input") or {}), "kind": "series", **sizes}, "rotary": False}

    def feed(self, preset: Preset, folder: Path) -> Feed:
        """Every window of the training steps, in an order of its own for each pass."""
        data, windows = preset.data, _Windows(preset, folder)
        count = windows.ends[0] - data.context - data.horizon + 1
        rows = Shuffled(count, lambda i: windows.at(data.context + i), preset.training.seed)
        return Feed(rows, _collate)

    def validate(self, model: nn.Module, preset: Preset, folder: Path) -> Check:
        """Errors on the validation split."""
        mse, mae, count = _errors(model, preset, folder, "valid")
        text = f"mse {mse:.3f}, mae {mae:.3f} on {count:,} validation windows"
        return Check({"mse": mse, "mae": mae}, text)

    def score_model(self, model: nn.Module, preset: Preset, folder: Path) -> Score:
        """Errors on the test split, beside those of repeating what was seen."""
        mse, mae, count = _errors(model, preset, folder, "test")
        naive = _naive(preset, folder, "test")
        test = {"mse": mse, "mae": mae, "examples": count, "horizon": preset.data.horizon}
        return Score(test, {name: row["mse"] for name, row in naive.items()}, {"naive": naive})

    def assess(self, model: nn.Module, preset: Preset, folder: Path, asked: Asked) -> dict[str, Any]:
        """Errors on a split, or on the test split of another file scaled as its own training steps say."""
        refuse_language_options(asked)
        split, source = asked.split or "test", asked.data or preset.data.source
        require_known("eval", "--split", split, SPLITS)
        if source == preset.data.source:
            return self._assess(model, preset, folder, split, asked)
        plain = preset.as_dict()
        plain["data"]["source"] = source
        from mapformers.train.presets import preset_from

        other = preset_from(plain)
        with tempfile.TemporaryDirectory(prefix="mapformers-") as scratch:
            self.write_data(other, Path(scratch) / "data")
            held, found = (facts_of(path)["channels"] for path in (folder, Path(scratch) / "data"))
            require(
                held == found,
                f"eval: {source} must have the columns {', '.join(held)}, got {', '.join(found)}; give data "
                "of the same kind",
            )
            return self._assess(model, other, Path(scratch) / "data", split, asked)

    def _assess(
        self, model: nn.Module, preset: Preset, folder: Path, split: str, asked: Asked
    ) -> dict[str, Any]:
        mse, mae, count = _errors(model, preset, folder, split, asked)
        return {
            "mse": mse,
            "mae": mae,
            "windows": count,
            "horizon": preset.data.horizon,
            "naive": _naive(preset, folder, split),
            "source": preset.data.source,
            "split": split,
        }

    def line(self, result: dict[str, Any]) -> str:
        """The model and the naive rows."""
        head = (
            f"{result['windows']:,} windows of {result['split']} of {result['source']}, horizon "
            f"{result['horizon']}, step {result['step']:,}:"
        )
        return "\n".join([head, *_rows({"this model": result, **result["naive"]})])

    def summary(self, output: Path, results: dict[str, Any]) -> list[str]:
        """The model and the naive rows."""
        test = results["test"]
        name = f"this model, step {results['step']:,}"
        return [
            f"{test['examples']:,} test windows, horizon {test['horizon']}, standardised values:",
            *_rows({name: test, **results["naive"]}),
            f"report: {output / 'report.html'}",
            "next:",
            f"  mapformers eval {output} --json",
        ]


class _Windows:
    """Windows of the data of a run."""

    def __init__(self, preset: Preset, folder: Path) -> None:
        self.data = preset.data
        self.values = np.load(folder / "values.npy")
        self.features = np.load(folder / "features.npy")
        self.ends = facts_of(folder)["ends"]

    def at(self, first: int) -> dict[str, np.ndarray]:
        """The window whose first step to forecast is `first`."""
        context, horizon = self.data.context, self.data.horizon
        return {
            "values": self.values[first - context : first],
            "features": self.features[first - context : first + horizon],
            "labels": self.values[first : first + horizon],
        }


def _collate(rows: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _borders(folder: Path, split: str) -> tuple[int, int]:
    ends = facts_of(folder)["ends"]
    return (ends[0], ends[1]) if split == "valid" else (ends[1], ends[2])


def _naive(preset: Preset, folder: Path, split: str) -> dict[str, dict[str, float]]:
    values, (start, end) = np.load(folder / "values.npy"), _borders(folder, split)
    return naive_errors(values, start, end, preset.data.horizon, facts_of(folder)["steps_of_a_day"])


@torch.no_grad()
def _errors(
    model: Any, preset: Preset, folder: Path, split: str, asked: Asked | None = None
) -> tuple[float, float, int]:
    """Mean squared and absolute error over every window of a split, and their number."""
    windows, (start, end) = _Windows(preset, folder), _borders(folder, split)
    firsts = range(start, end - preset.data.horizon + 1)
    device, squared, absolute = next(model.parameters()).device, 0.0, 0.0
    for begin in range(0, len(firsts), BATCH):
        part = firsts[begin : begin + BATCH]
        batch = {name: x.to(device) for name, x in _collate([windows.at(i) for i in part]).items()}
        difference = (model(**batch).logits - batch["labels"]).double()
        squared += float(difference.square().mean()) * len(part)
        absolute += float(difference.abs().mean()) * len(part)
        if asked is not None and asked.tick is not None:
            asked.tick((begin + len(part)) / len(firsts))
    return squared / len(firsts), absolute / len(firsts), len(firsts)


def _rows(rows: dict[str, dict[str, float]]) -> list[str]:
    width = max(map(len, rows))
    lines = [f"  {'':<{width}}    mse    mae"]
    return lines + [f"  {name:<{width}} {row['mse']:6.3f} {row['mae']:6.3f}" for name, row in rows.items()]
