"""What every benchmark shares: machine facts, results as dated JSON, standard errors."""

import json
import os
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mapformers.core.errors import require
from mapformers.measure.facts import command_line, machine

RESULTS = Path(__file__).parent / "results"


def command() -> str:
    """The command that was run, to be run again from the root of the repository."""
    program = Path(sys.argv[0])
    root = Path(__file__).parent.parent
    name = program.resolve().relative_to(root) if program.resolve().is_relative_to(root) else program
    return command_line(f"python {name}")


def dated(name: str) -> Path:
    """benchmarks/results/<date>-<name>.json"""
    return RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{name}.json"


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result with its command, date and machine; all or nothing."""
    whole = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "command": command(), "machine": machine(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(whole, indent=1) + "\n")
    temporary.replace(path)


def rows_held(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier result with the same settings, which a study goes on with.

    Raises MapformersError when the file holds others. Which rows and how many seeds may differ.
    """
    if not path.exists():
        return {}
    held = json.loads(path.read_text())
    same = {**held["settings"], "rows": "", "seeds": 0} == {**settings, "rows": "", "seeds": 0}
    require(same, f"{path}: holds rows of other settings; name another --output")
    rows: dict[str, Any] = held["rows"]
    return rows


def summary(values: list[float]) -> dict[str, float]:
    """mean and standard error of the mean (0 of a single value) over seeds."""
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "standard_error": spread}
