"""Whole processes: killed at any moment, and two at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mapformers.report.results import read_metrics
from mapformers.train.checkpoint import checkpoints
from tests.train.test_run import numbers
from tests.train.tiny import command, write_text_file

STEPS = 40
PATIENCE = 120.0  # seconds that a process may take on a busy machine


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mapformers.cli", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, shown
    return shown


def kill_after(process: subprocess.Popen[str], run: Path, lines: int) -> None:
    """kill -9 as soon as metrics.jsonl has that many lines."""
    until = time.monotonic() + PATIENCE
    while len(read_metrics(run / "metrics.jsonl")) < lines:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "the run does not get on"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    source = write_text_file(tmp_path)
    more = ("--max-steps", str(STEPS), "--set", "model.residual_dropout=0.1")
    finish(start(command(source, tmp_path / "whole", *more)))
    run = tmp_path / "killed"
    for lines in (0, 9, 30):
        kill_after(start(command(source, run, *more, "--resume")), run, lines)
    finish(start(command(source, run, *more, "--resume")))
    assert numbers(run) == numbers(tmp_path / "whole")
    assert [step for step, _ in checkpoints(run)] == [STEPS - 2, STEPS]
    left = {path.name for path in run.iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}
    assert (run / "results.json").exists()


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_joined_batch(tmp_path: Path) -> None:
    source = write_text_file(tmp_path)
    finish(start(command(source, tmp_path / "one", "--set", "data.batch=4")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    two = tmp_path / "two"
    asked = ["-m", "mapformers.cli", *command(source, two)]
    done = subprocess.run(
        [*launch, *asked], env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out bits per byte") == 1
    for mine, joined in zip(numbers(two), numbers(tmp_path / "one"), strict=True):
        assert mine["step"] == joined["step"]
        for key in {"loss", "valid_bits_per_byte", "grad_norm"} & set(joined):
            assert mine[key] == pytest.approx(joined[key], rel=1e-4)
    again = subprocess.run(
        [*launch, "-m", "mapformers.cli", "train", "--output", str(two), "--resume", "--max-steps", "8"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert [step for step, _ in checkpoints(two)] == [6, 8]
