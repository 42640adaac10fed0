"""What a run has written down: metrics.jsonl, results.json and config.yaml, read back without failing on a
cut-off line.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class RunRecord:
    """Everything a report needs. `steps` are the lines about training, `checks` those about validation,
    both by step.
    """

    name: str
    config: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of one number of the training lines; `losses.NAME` for an auxiliary loss."""
        return _points(self.steps, key)

    def check_curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of one number of the validation lines."""
        return _points(self.checks, key)

    @property
    def score(self) -> str:
        """The figure that the run is judged by."""
        checked = next((key for line in self.checks for key in line if key.startswith("valid_")), None)
        found = self.results.get("score") or (checked or "bits_per_byte").removeprefix("valid_")
        return str(found)

    @property
    def unit(self) -> str:
        """The same for people."""
        return str(self.results.get("unit") or self.score.replace("_", " "))

    def speed(self) -> str:
        """The name of the number that says how fast it trained; empty where there is none."""
        names = (key for line in self.steps for key in line if key.endswith("_per_second"))
        return next(names, "")

    def auxiliary(self) -> list[str]:
        """The names of the auxiliary losses."""
        return sorted({name for line in self.steps for name in line.get("losses", {})})

    def telemetry(self, key: str) -> dict[str, list[tuple[float, float]]]:
        """(step, value) of one number of the telemetry, by layer."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for line in self.checks:
            for layer, numbers in enumerate(line.get("telemetry", [])):
                if key in numbers:
                    curves.setdefault(f"layer {layer + 1}", []).append((line["step"], numbers[key]))
        return curves


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; nothing when there is no file."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut off by a kill
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def read_run(folder: Path) -> RunRecord:
    """The record of a run folder."""
    lines = read_metrics(folder / "metrics.jsonl")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return RunRecord(
        name=folder.resolve().name,
        config=config,
        steps=[line for line in lines if "loss" in line],
        checks=[line for line in lines if any(key.startswith("valid_") for key in line)],
        results=_json(folder / "results.json"),
        facts=_json(folder / "data" / "facts.json"),
    )


def _points(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    points = []
    for line in lines:
        outer, _, inner = key.partition(".")
        value = line.get(outer) if not inner else line.get(outer, {}).get(inner)
        if value is not None:
            points.append((line["step"], value))
    return points


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
