"""What a number depends on besides the code: the machine, the versions, the command."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import mapformers


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions and commit, as plain data."""
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


def command_line(program: str, arguments: list[str] | None = None) -> str:
    """The command that is running, to be typed again: the program's name, arguments, and OMP_NUM_THREADS."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = [*program.split(), *(sys.argv[1:] if arguments is None else arguments)]
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(words)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Of the checkout that the package is installed from; unknown for an installed wheel."""
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
