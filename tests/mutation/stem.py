"""A process that has loaded torch and pytest once, and runs tests in forks of itself.

Loading takes longer than most mutants need. The package under test is not loaded here: each fork finds the
copy that it is told to test.

Reads one JSON object a line: package, arguments, output (a file), environment, limit (seconds). Answers with
the exit code, a line each; -1 where the limit was reached.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOADED = ("hypothesis", "numpy", "pytest", "torch", "transformers")  # by most tests
OPTIONS = ("-x", "-q", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist")
LIMIT = 300  # seconds for the tests of a mutant
WAIT = 0.02  # seconds between looks at a fork


@dataclass(frozen=True)
class Outcome:
    """Exit code of pytest, and what it printed."""

    code: int
    printed: str


@dataclass(frozen=True)
class Stem:
    """The process, seen from outside."""

    process: "subprocess.Popen[str]"

    def run(self, arguments: list[str], package: Path, environment: dict[str, str]) -> Outcome:
        """pytest on the package found in that folder."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            output.touch()
            environment = {"PYTHONPATH": str(package), **environment}
            job = {
                "package": str(package),
                "arguments": [*OPTIONS, *arguments],
                "output": str(output),
                "environment": environment,
                "limit": LIMIT,
            }
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            assert answer, "the process that runs mutants ended"
            return Outcome(int(answer), output.read_text(encoding="utf-8"))


@contextlib.contextmanager
def stem() -> Iterator[Stem]:
    """A process to run mutants in."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PYTHONPATH"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.mutation.stem"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield Stem(process)


def in_fork(job: dict[str, Any]) -> int:
    """pytest on the package of the job; what is printed goes into its file."""
    import pytest

    with Path(job["output"]).open("w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(job["environment"])
    sys.path.insert(0, job["package"])
    return int(pytest.main(job["arguments"]))


def fork(job: dict[str, Any]) -> int:
    """Exit code of the job."""
    child = os.fork()
    if child == 0:
        code = 3  # pytest's own for an error inside it
        try:
            os.setpgid(0, 0)  # what it starts ends with it
            code = in_fork(job)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + job["limit"]
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(WAIT)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def main() -> None:
    """Until the input ends."""
    for module in LOADED:
        importlib.import_module(module)
    assert "mapformers" not in sys.modules
    for line in sys.stdin:
        print(fork(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
