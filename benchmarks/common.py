"""What every benchmark shares: machine facts, results as dated JSON, standard errors."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import mapformers
from mapformers.core.errors import require

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mapformers": getattr(mapformers, "__version__", "unknown"),
        "commit": _commit(),
    }


def command() -> str:
    """The command that was run, to be run again from the root of the repository."""
    program = Path(sys.argv[0])
    root = Path(__file__).parent.parent
    name = program.resolve().relative_to(root) if program.resolve().is_relative_to(root) else program
    threads = os.environ.get("OMP_NUM_THREADS")
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(
        ["python", str(name), *sys.argv[1:]]
    )


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


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"
