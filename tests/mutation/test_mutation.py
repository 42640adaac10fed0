"""The suite itself is tested: every injected bug must be caught by the tests named beside it.

Each mutant runs in a process of its own on a copy of the package. For the whole table, two at a time:
python -m tests.mutation.test_mutation
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mapformers.kernels.native.build import compiler
from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mapformers"


def mutated(mutant: Mutant, folder: Path) -> Path:
    """A copy of the package below `folder` with the bug in it."""
    shutil.copytree(PACKAGE, folder / "mapformers", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "mapformers" / mutant.file
    source = path.read_text(encoding="utf-8")
    found = source.count(mutant.old)
    assert found == 1, (
        f"{mutant.name}: the source changed, {mutant.file} holds the text {found} times; mend mutants.py"
    )
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return folder


def run_tests(
    arguments: list[str], package: Path, cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """pytest on the package found in that folder, native code from that cache instead of the user's."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    if cache is not None:
        environment["MAPFORMERS_CACHE"] = str(cache)
    environment |= {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", *plugins, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def caught_by(mutant: Mutant) -> str | None:
    """The test that fails on the mutant, or None when it survives."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = mutant.file.endswith(".cpp")
        package = mutated(mutant, Path(folder))
        result = run_tests(mutant.arguments, package, Path(folder) / "cache" if compiled else None)
    assert result.returncode in (0, 1), f"{mutant.name}: pytest did not run\n{result.stdout}\n{result.stderr}"
    if result.returncode == 0:
        return None
    match = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", result.stdout, re.MULTILINE)
    assert match, f"{mutant.name}: pytest failed without naming a test\n{result.stdout}"
    return match.group(1)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_is_caught(mutant: Mutant, record_property: Callable[[str, object], None]) -> None:
    if mutant.file.endswith(".cpp") and compiler() is None:
        pytest.skip("no C++ compiler")
    test = caught_by(mutant)
    record_property("mutant", mutant.name)
    record_property("caught_by", test)
    print(f"{mutant.name}: {test}")
    assert test is not None, f"{mutant.name}: survived {' '.join(mutant.arguments)}"


@pytest.mark.slow
def test_an_unharmed_copy_passes() -> None:
    """A copy fails because of its bug, not because it is a copy."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGE, Path(folder) / "mapformers")
        result = run_tests(
            ["tests/contract/test_catalog.py", "tests/mechanisms/test_by_hand.py"], Path(folder)
        )
    assert result.returncode == 0, result.stdout


def test_there_are_enough_and_no_two_alike() -> None:
    assert len(MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_still_fits_the_source(mutant: Mutant) -> None:
    source = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, f"{mutant.file} changed: mend tests/mutation/mutants.py"
    if mutant.file.endswith(".py"):
        ast.parse(source.replace(mutant.old, mutant.new), mutant.file)


def row(mutant: Mutant) -> bool:
    """Print the mutant's row of the table as soon as it is known."""
    try:
        test = caught_by(mutant)
    except AssertionError as error:
        test = f"ERROR {str(error).splitlines()[0]}"
    print(f"{mutant.name:<60} {test or 'SURVIVED'}", flush=True)
    return test is not None and not test.startswith("ERROR")


def main() -> int:
    """Print the table; 1 when a mutant survives."""
    with ThreadPoolExecutor(2) as pool:
        caught = list(pool.map(row, MUTANTS))
    print(f"{sum(caught)} of {len(MUTANTS)} caught")
    return int(not all(caught))


if __name__ == "__main__":
    sys.exit(main())
