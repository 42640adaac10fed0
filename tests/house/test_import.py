"""`import mapformers` is light."""

import subprocess
import sys

import pytest

MOST_SECONDS = 0.3
HEAVY = (
    "transformers",
    "matplotlib",
    "datasets",
    "accelerate",
    "typer",
    "pandas",
    "yaml",
    "safetensors",
    "rich",
)

PROGRAM = f"""
import sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import mapformers
seconds = time.perf_counter() - start
heavy = [name for name in {HEAVY!r} if name in sys.modules and name not in before]
print(seconds, *heavy)
"""


def import_once() -> list[str]:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_import_adds_little_to_torch_and_pulls_in_nothing_heavy() -> None:
    """The best of three runs counts, so a busy machine does not fail it; one good run is enough."""
    taken = []
    for _ in range(3):
        seconds, *heavy = import_once()
        assert not heavy, f"import mapformers imports {heavy}"
        taken.append(float(seconds))
        if taken[-1] <= MOST_SECONDS:
            return
    pytest.fail(f"import mapformers adds {min(taken):.2f} s to import torch")
